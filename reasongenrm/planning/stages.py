"""The work of every stage of a run, in the order of the data flow: from a run's configuration and a few assumptions.

`run_stages` names the stages as the pipeline does (pipelines/reason_reward_model.py; a test compares), and says for
each what kind of work it is, how much of it there is, with which model, and how many bytes stay in the store.
"""

import math
from dataclasses import dataclass
from typing import Literal

from reasongenrm.config import DistillConfig, RunConfig, SampleConfig, TrainConfig
from reasongenrm.planning.points import Kind, Work
from reasongenrm.training.shapes import INFERENCE_BYTES, RESUME_BYTES, ModelShape

REWARD_BENCH_ROWS = 2_985
BYTES_PER_TOKEN = 4.6  # of text: RewardBench's answers under SmolLM2's tokenizer, 1,000 rows
RECORD_BYTES = 250  # of a record's other fields: ids, names, numbers
VERDICT_TOKENS = 5  # [[A]] and the markup round it
Needs = Literal["serve", "score", "train", "no GPU"]


@dataclass(frozen=True)
class Assumptions:
    """What a configuration does not say.

    Attributes:
        num_pairs: preference pairs, before `pairs.limit`.
        prompt_tokens: of a judge prompt, on average.
        reason_tokens: of a reason, on average.
        kept_fraction: of the prompts that get an R*, and of those sampled that get a DPO pair. The reference kept 51 %
            (8B) and 56 % (14B) for SFT and does not say how many for DPO; a half of them is our assumption.
        benchmark_rows: that are judged, before `evaluate.limit`.
    """

    num_pairs: int
    prompt_tokens: int = 1_000
    reason_tokens: int = 500
    kept_fraction: float = 0.5
    benchmark_rows: int = REWARD_BENCH_ROWS


@dataclass(frozen=True)
class StageWork:
    """One stage.

    Attributes:
        stage: its name in the pipeline.
        kind: whose law says how long it takes; None: nothing grows, or it waits for a cluster.
        work: of which `num_steps` of written reasons is not known yet: it depends on how many are in flight.
        kept_bytes: of its artifact.
        passing_bytes: that it needs in the store besides while it runs: parts, and two checkpoints to resume from (the
            older goes when the newer is whole).
    """

    stage: str
    kind: Kind | None
    work: Work
    model: ModelShape | None = None
    needs: Needs = "no GPU"
    kept_bytes: float = 0.0
    passing_bytes: float = 0.0


def run_stages(
    config: RunConfig, assumed: Assumptions, judge: ModelShape, teacher: ModelShape | None
) -> list[StageWork]:
    """Every stage of a run.

    Args:
        teacher: None: an endpoint, whose hours are its owner's.
    """
    pairs = min(assumed.num_pairs, config.pairs.limit or assumed.num_pairs)
    num_prompts = pairs * (2 if config.pairs.order == "mirrored" else 1)
    num_sampled = min(num_prompts, config.sample.limit or num_prompts)
    num_kept, num_preferred = (max(1, round(n * assumed.kept_fraction)) for n in (num_prompts, num_sampled))
    distilled = _written(assumed, num_prompts, config.distill)
    sampled = _written(assumed, num_sampled, config.sample)
    text = _bytes(assumed.reason_tokens)
    row = _bytes(assumed.prompt_tokens)

    def written(stage: str, work: Work, model: ModelShape | None) -> StageWork:
        size = work.num_reasons * text
        return StageWork(stage, "generate" if model else None, work, model, "serve" if model else "no GPU", size, size)

    def scored(stage: str, work: Work) -> StageWork:
        size = work.num_reasons * text
        return StageWork(stage, "score", work, judge, "score", size, size)

    def light(stage: str, kind: Kind, num_rows: int, kept_bytes: float) -> StageWork:
        return StageWork(stage, kind, Work(num_rows=num_rows), kept_bytes=kept_bytes)

    base_bytes = judge.num_parameters * INFERENCE_BYTES
    return [
        StageWork("import_model", "store", Work(num_bytes=base_bytes), kept_bytes=base_bytes),
        light("prepare_pairs", "prepare", pairs, num_prompts * row),
        written("distill_reasons", distilled, teacher),
        scored("score_reasons (of the teacher)", distilled),
        light("select_reasons", "select", distilled.num_reasons, num_kept * (row + text)),
        _trained("train_sft (genrm)", "sft", config.genrm, judge, num_kept, assumed.prompt_tokens, 1, VERDICT_TOKENS),
        _trained("train_sft (sft)", "sft", config.sft, judge, num_kept, *_with_reasons(assumed, 1, VERDICT_TOKENS)),
        written("sample_reasons", sampled, judge),
        scored("score_reasons (of the policy)", sampled),
        light("select_preferences", "select", sampled.num_reasons, num_preferred * (row + 2 * text)),
        _trained("train_dpo", "dpo", config.dpo, judge, num_preferred, *_with_reasons(assumed, 2, 0)),
        *(_evaluated(variant, config, assumed, judge) for variant in ("base", "genrm", "sft", "dpo")),
        StageWork("select_winner", None, Work()),
        StageWork("deploy_kserve", None, Work()),
    ]


def _bytes(num_tokens: float) -> float:
    """Of a record with so many tokens of text."""
    return num_tokens * BYTES_PER_TOKEN + RECORD_BYTES


def _written(assumed: Assumptions, num_prompts: int, config: DistillConfig | SampleConfig) -> Work:
    num_reasons = num_prompts * config.num_samples
    return Work(
        num_prompts=num_prompts,
        prompt_tokens=num_prompts * assumed.prompt_tokens,
        num_reasons=num_reasons,
        reason_tokens=num_reasons * min(assumed.reason_tokens, config.max_tokens),
    )


def _with_reasons(assumed: Assumptions, num_reasons: int, verdict_tokens: int) -> tuple[int, int, int]:
    """Prompt tokens, reasons behind a prompt, and tokens of one of them."""
    return assumed.prompt_tokens, num_reasons, assumed.reason_tokens + verdict_tokens


def _trained(
    stage: str,
    kind: Kind,
    config: TrainConfig,
    judge: ModelShape,
    num_rows: int,
    prompt_tokens: int,
    num_reasons: int,
    reason_tokens: int,
) -> StageWork:
    """A training on `num_rows` prompts with `num_reasons` behind each; with `max_steps`, so many batches."""
    steps = max(1, math.ceil(round(config.num_train_epochs * num_rows / config.train_batch_size, 6)))
    seen = round(config.num_train_epochs * num_rows)
    if config.max_steps > 0:
        steps, seen = config.max_steps, config.max_steps * config.train_batch_size
    work = Work(
        num_prompts=seen,
        prompt_tokens=seen * prompt_tokens,
        num_reasons=seen * num_reasons,
        reason_tokens=seen * num_reasons * reason_tokens,
        num_steps=steps,
    )
    kept = judge.num_parameters * (INFERENCE_BYTES if config.dtype == "bfloat16" else 4)
    passing = min(2, steps // config.save_steps) * judge.num_parameters * RESUME_BYTES
    return StageWork(stage, kind, work, judge, "train", kept, passing)


def _evaluated(variant: str, config: RunConfig, assumed: Assumptions, judge: ModelShape) -> StageWork:
    """The benchmark in both orders; GenRM writes a verdict alone."""
    rows = min(assumed.benchmark_rows, config.evaluate.limit or assumed.benchmark_rows)
    asked = rows * 2
    num = asked * config.evaluate.votes
    tokens = (
        VERDICT_TOKENS
        if variant == "genrm"
        else min(assumed.reason_tokens + VERDICT_TOKENS, config.evaluate.max_tokens)
    )
    work = Work(
        num_prompts=asked, prompt_tokens=asked * assumed.prompt_tokens, num_reasons=num, reason_tokens=num * tokens
    )
    size = num * _bytes(tokens)
    return StageWork(f"evaluate_rewardbench ({variant})", "evaluate", work, judge, "serve", size, size)
