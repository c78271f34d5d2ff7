"""The work of every stage of a run: how much of which kind, with which model, and what stays in the store.

It follows from the run's configuration and a few assumptions. `run_workloads` names the stages as the pipeline does
(components/; a test compares), in the order of the data flow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reasongenrm.config import RunConfig, TrainConfig, WriteConfig
from reasongenrm.data.sections import NUM_OFFICIAL_ROWS
from reasongenrm.planning.measurements import WorkKind, Workload
from reasongenrm.training.shapes import INFERENCE_BYTES, RESUME_BYTES, ModelShape
from reasongenrm.variants import VARIANTS

BYTES_PER_TOKEN = 4.6  # of text: RewardBench's answers under SmolLM2's tokenizer, 1,000 rows
RECORD_BYTES = 250  # of a record's other fields: ids, names, numbers
VERDICT_TOKENS = 5  # [[A]] and the markup around it
NO_WORK = Workload()


@dataclass(frozen=True)
class Assumptions:
    """What a configuration does not say."""

    num_pairs: int  # preference pairs, before `pairs.limit`
    prompt_tokens: int = 1_000  # of a judge prompt, on average
    reason_tokens: int = 500  # of a reason, on average, before `max_tokens`
    # Of the prompts that get an R*, and of those sampled that get a DPO pair. The reference kept 51 % (8B) and 56 %
    # (14B) for SFT and does not say how many for DPO; half of them is our assumption.
    kept_fraction: float = 0.5

    def texts(self, num_prompts: int, reasons_each: int, tokens_each: int) -> Workload:
        """Prompts, each with some reasons of this many tokens."""
        num_reasons = num_prompts * reasons_each
        return Workload(
            num_prompts=num_prompts,
            prompt_tokens=num_prompts * self.prompt_tokens,
            num_reasons=num_reasons,
            reason_tokens=num_reasons * tokens_each,
        )

    def written(self, num_prompts: int, config: WriteConfig) -> Workload:
        """Reasons that a model writes."""
        return self.texts(num_prompts, config.num_samples, min(self.reason_tokens, config.max_tokens))


@dataclass(frozen=True)
class StageWorkload:
    """One stage."""

    stage: str  # its name in the pipeline
    kind: WorkKind | None = None  # of its work; None: it costs no time of these machines, or waits for a cluster
    work: Workload = NO_WORK
    model: ModelShape | None = None
    kept_bytes: float = 0.0  # of its artifact
    # That the store also holds while it runs: parts, and two checkpoints to resume from (the older one goes when the
    # newer one is complete).
    passing_bytes: float = 0.0


def run_workloads(
    config: RunConfig, assumed: Assumptions, judge: ModelShape, teacher: ModelShape | None
) -> Iterator[StageWorkload]:
    """Every stage of a run.

    Args:
        teacher: None: an endpoint, whose hours are its owner's.
    """
    pairs = min(assumed.num_pairs, config.pairs.limit or assumed.num_pairs)
    num_prompts = pairs * (2 if config.pairs.order == "mirrored" else 1)
    num_sampled = min(num_prompts, config.sample.limit or num_prompts)
    num_kept, num_preferred = (max(1, round(n * assumed.kept_fraction)) for n in (num_prompts, num_sampled))
    prompt_bytes, reason_bytes = _bytes(assumed.prompt_tokens), _bytes(assumed.reason_tokens)
    weights = judge.num_parameters * INFERENCE_BYTES

    def written(stage: str, kind: WorkKind | None, work: Workload, model: ModelShape | None) -> StageWorkload:
        size = work.num_reasons * reason_bytes
        return StageWorkload(stage, kind, work, model, size, size)

    def light(stage: str, kind: WorkKind, num_rows: int, kept_bytes: float) -> StageWorkload:
        return StageWorkload(stage, kind, Workload(num_rows=num_rows), kept_bytes=kept_bytes)

    distilled, sampled = assumed.written(num_prompts, config.distill), assumed.written(num_sampled, config.sample)
    verdicts = assumed.texts(num_kept, 1, VERDICT_TOKENS)
    reasons = assumed.texts(num_kept, 1, assumed.reason_tokens + VERDICT_TOKENS)
    preferences = assumed.texts(num_preferred, 2, assumed.reason_tokens)
    yield StageWorkload("import_model", "import_model", Workload(num_bytes=weights), kept_bytes=weights)
    yield light("prepare_pairs", "prepare_pairs", pairs, num_prompts * prompt_bytes)
    yield written("distill_reasons", "write_reasons" if teacher else None, distilled, teacher)
    yield written("score_reasons (of the teacher)", "score_reasons", distilled, judge)
    yield light("select_reasons", "select_reasons", distilled.num_reasons, num_kept * (prompt_bytes + reason_bytes))
    yield _trained("train_sft (genrm)", "train_sft", config.genrm, judge, verdicts)
    yield _trained("train_sft (sft)", "train_sft", config.sft, judge, reasons)
    yield written("sample_reasons", "write_reasons", sampled, judge)
    yield written("score_reasons (of the policy)", "score_reasons", sampled, judge)
    kept_bytes = num_preferred * (prompt_bytes + 2 * reason_bytes)
    yield light("select_preferences", "select_reasons", sampled.num_reasons, kept_bytes)
    yield _trained("train_dpo", "train_dpo", config.dpo, judge, preferences)
    for variant in VARIANTS.values():
        tokens = VERDICT_TOKENS if variant.style == "verdict" else assumed.reason_tokens + VERDICT_TOKENS
        rows = min(NUM_OFFICIAL_ROWS, config.evaluate.limit or NUM_OFFICIAL_ROWS) * 2  # in both orders
        tokens = min(tokens, config.evaluate.max_tokens)
        judged = assumed.texts(rows, config.evaluate.votes, tokens)
        size = judged.num_reasons * _bytes(tokens)
        yield StageWorkload(f"evaluate_rewardbench ({variant.name})", "evaluate", judged, judge, size, size)
    yield StageWorkload("select_winner")
    yield StageWorkload("deploy_kserve")


def _bytes(num_tokens: float) -> float:
    """Of a record with this many tokens of text."""
    return num_tokens * BYTES_PER_TOKEN + RECORD_BYTES


def _trained(stage: str, kind: WorkKind, config: TrainConfig, judge: ModelShape, epoch: Workload) -> StageWorkload:
    """Training for the config's epochs, or for `max_steps` batches."""
    rows, epochs = epoch.num_prompts, config.num_train_epochs
    steps = max(1, math.ceil(round(epochs * rows / config.train_batch_size, 6)))
    if config.max_steps > 0:
        steps, epochs = config.max_steps, config.max_steps * config.train_batch_size / rows
    work = Workload(**{name: round(value * epochs) for name, value in epoch})
    kept = judge.num_parameters * (INFERENCE_BYTES if config.dtype == "bfloat16" else 4)
    passing = min(2, steps // config.save_steps) * judge.num_parameters * RESUME_BYTES
    return StageWorkload(stage, kind, work, judge, kept, passing)
