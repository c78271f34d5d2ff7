"""A published judge's model card (README.md) and its results in the hub's `.eval_results` form.

Names of private places stay private: of a local path or an s3:// address the card shows the last part alone, of an
endpoint only that it is one.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from reasongenrm import __version__
from reasongenrm.data.chat import detect_family, render
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.evaluation.metrics import Evaluation
from reasongenrm.evaluation.report import LineageStep, Report
from reasongenrm.records import Message
from reasongenrm.runs.inventory import StoredModel
from reasongenrm.store.artifacts import is_hub_name
from reasongenrm.store.run_records import RunInputs
from reasongenrm.store.stage import count_lines
from reasongenrm.variants import BASE, VARIANTS, variant_label

if TYPE_CHECKING:
    from jinja2 import Template

TASK = "text-generation"  # of the hub's pipeline tags: the judge writes a reason and a verdict
TAGS = ("reasongenrm", "reward-model", "llm-as-a-judge", "generative-reward-model")


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        name: owner/name on the hub, or the folder's name.
        evaluation: the newest one of this model; `evaluated_at`: when, ISO 8601.
        report: of the run that decided on it; None for a model that no gate has seen.
        lineage: the stages that led to the model, inputs first.
        inputs: what the run was given; None for a model trained by single commands.
    """

    name: str
    model: StoredModel
    evaluation: Evaluation
    evaluated_at: str
    report: Report | None
    lineage: tuple[LineageStep, ...]
    inputs: RunInputs | None


def model_card(facts: CardFacts, folder: Path) -> str:
    """The card as Markdown, with the hub's metadata in front.

    Args:
        folder: the checkpoint, whose tokenizer has the chat template.
    """
    from huggingface_hub import EvalResult, ModelCardData
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    family = detect_family(tokenizer)
    evaluation, variant = facts.evaluation, VARIANTS[facts.model.variant]
    benchmark = evaluation.benchmark
    preferences = facts.inputs.preferences_uri if facts.inputs else None
    data = ModelCardData(
        base_model=facts.model.base if is_hub_name(facts.model.base) else None,
        datasets=[preferences] if preferences and is_hub_name(preferences) else None,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=[*TAGS],
        model_name=facts.name.rpartition("/")[2],
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=benchmark.uri if is_hub_name(benchmark.uri) else benchmark.name,
                dataset_name=benchmark.name,
                metric_type="accuracy",
                metric_name="accuracy in both orders of the answers, %",
                metric_value=_points(evaluation.accuracy),
            )
        ],
    )
    prompt = judge_prompt([Message(role="user", content="{question}")], "{answer_a}", "{answer_b}")
    chat = [{"role": "user", "content": "PROMPT"}]
    reported = facts.report.evaluations if facts.report else (evaluation,)
    differences = facts.report.differences if facts.report else {}
    return _template().render(
        metadata=data.to_yaml(),
        facts=facts,
        evaluation=evaluation,
        variant=variant,
        label=variant_label(variant.name),
        base=public_name(facts.model.base),
        rows=[_figures(found, differences.get(found.variant), found.variant == variant.name) for found in reported],
        sections=[(found.section, _interval(found)) for found in evaluation.sections],
        preferences=preferences and public_name(preferences),
        teacher=facts.inputs and public_name(facts.inputs.teacher_uri),
        is_own_teacher=bool(facts.inputs and facts.inputs.teacher_uri == facts.inputs.model_uri),
        steps=[(step.title, "; ".join(count_lines(step.counts))) for step in facts.lineage if step.counts],
        trainings=[
            (step.title, yaml.safe_dump(step.config, sort_keys=False).strip())
            for step in facts.lineage
            if step.stage.startswith("train_")
        ],
        prompt=prompt,
        opened=tokenizer.decode(render(tokenizer, chat, variant.opening_role)),
        turn_end=family.turn_end,
        assistant_header=family.assistant_header,
        results=[*eval_results(facts)],
        version=__version__,
        is_base_asked_alike=VARIANTS[BASE].style == evaluation.style,
        base_held=next((_interval(found.held) for found in reported if found.held), None),
    )


def eval_results(facts: CardFacts) -> dict[str, str]:
    """The files below `.eval_results`, by name: for the model's page on the hub and for a benchmark's leaderboard.

    Only for a whole benchmark of the hub: figures on a part of it, or on one's own rows, belong on no leaderboard.

    Source: https://huggingface.co/docs/hub/eval-results; huggingface_hub's EvalResultEntry.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    evaluation = facts.evaluation
    benchmark = evaluation.benchmark
    is_partial = benchmark.coverage is not None and benchmark.coverage.is_partial
    if not is_hub_name(benchmark.uri) or is_partial or benchmark.num_rows < benchmark.num_available_rows:
        return {}
    entry = EvalResultEntry(
        dataset_id=benchmark.uri,
        task_id="default",
        value=_points(evaluation.accuracy),
        date=facts.evaluated_at,
        notes=f"each row judged in both orders, {evaluation.votes} vote(s) an order; {_interval(evaluation)}",
    )
    name = benchmark.uri.rpartition("/")[2]
    return {f"{name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)}


def public_name(uri: str) -> str:
    """What a card may say of an address: a hub's name whole, of other places the last part, of an endpoint nothing."""
    if uri.lower().startswith(("http://", "https://")):
        return "an OpenAI-compatible endpoint"
    return uri if is_hub_name(uri) else uri.rstrip("/").rpartition("/")[2]


def _figures(found: Evaluation, difference: Any, is_this: bool) -> dict[str, Any]:
    """A row of the card's table."""
    points, ends = (100 * difference.accuracy, difference.interval) if difference else (None, None)
    return {
        "label": variant_label(found.variant),
        "is_this": is_this,
        "accuracy": _interval(found),
        "difference": f"{points:+.1f} ({100 * ends.low:+.1f} to {100 * ends.high:+.1f})" if ends else "",
        "consistent": f"{100 * found.consistent_fraction:.1f}",
        "unparsed": f"{100 * found.unparsed_fraction:.1f}",
        "tokens": f"{found.mean_output_tokens:.0f}",
    }


def _interval(found: Any) -> str:
    low, high = (f"{100 * end:.1f}" for end in (found.interval.low, found.interval.high))
    return f"{100 * found.accuracy:.1f} ({low} to {high})"


def _points(fraction: float) -> float:
    """Percent with two digits."""
    return round(100 * fraction, 2)


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("reasongenrm.runs") / "model_card.md.j2").read_text(encoding="utf-8")
    # Markdown for a README, no HTML of a page of ours: the hub sanitises what it shows.
    made = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(text)
