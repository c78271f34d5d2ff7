"""How many GPUs, how much memory and how many hours a run needs: computed from measured speeds, not measured.

In go a model's shape, the size of the work and speeds of one H100; out come the tables of docs/install.md
(`python -m reasongenrm.sizing` prints them). Time grows with parameters: 2 FLOPs per parameter and token forward, 6 forward
and backward. Speeds were measured at 7B (generation, scoring) and 1.5B (training) shapes, the rest follows from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

PEAK_FLOPS = 790e12  # bf16, measured on one H100
GPU_BYTES = 80e9  # of an H100
USABLE_FRACTION = 0.9  # vLLM's gpu_memory_utilization; the rest is CUDA's, NCCL's and fragments
MEASURED_PARAMETERS = 7.6e9  # of the shape whose generation and scoring was measured (Qwen2.5-7B)
TENSOR_PARALLEL_EFFICIENCY = 0.8  # assumed: several GPUs that write one token against as many that write apart
SHARDING_EFFICIENCY = 0.9  # assumed: ZeRO-3 within one node
INFERENCE_BYTES = 2  # a parameter in bfloat16
# float32 master weights 4, gradients 4, AdamW's two moments 8 (training.py: autocast, no second copy of the weights).
TRAINING_BYTES = 16
RESUME_BYTES = 12  # of a checkpoint to resume from: float32 weights and both moments


@dataclass(frozen=True)
class ModelShape:
    """What a model's config.json says; parameters are counted with the embeddings."""

    name: str
    num_parameters: float
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int


# From the config.json of each model on the hub.
JUDGE_7B = ModelShape("7B (Qwen2.5-7B)", 7.62e9, 28, 3584, 4, 128, 152064)
JUDGE_8B = ModelShape("8B (Llama-3.1-8B)", 8.03e9, 32, 4096, 8, 128, 128256)
JUDGE_14B = ModelShape("14B (Qwen2.5-14B)", 14.77e9, 48, 5120, 8, 128, 152064)
TEACHER_70B = ModelShape("70B (Llama-3.1-70B)", 70.55e9, 80, 8192, 8, 128, 128256)


@dataclass(frozen=True)
class Workload:
    """The size of a run.

    Attributes:
        num_prompts: judge prompts: the pairs, times two with `pairs.order: mirrored`.
        kept_fraction: of the prompts that get an R*, and of those that get a DPO pair. The reference kept 51 % (8B) and 56 %
            (14B) for SFT and does not say how many for DPO; a half of them is our assumption.
        num_judgments: RewardBench's 2,985 rows, both orders, four variants.
    """

    num_prompts: int = 80_000
    prompt_tokens: int = 1_000
    reason_tokens: int = 500
    verdict_tokens: int = 5
    num_samples: int = 16
    kept_fraction: float = 0.5
    sft_epochs: float = 2.0
    dpo_epochs: float = 1.0
    num_judgments: int = 2_985 * 2 * 4

    @property
    def num_reasons(self) -> int:
        """Reasons that are written and scored, by the teacher and again by the policy."""
        return self.num_prompts * self.num_samples

    @property
    def row_tokens(self) -> int:
        """Tokens of one training row with a reason."""
        return self.prompt_tokens + self.reason_tokens + self.verdict_tokens


@dataclass(frozen=True)
class Speed:
    """What one H100 reached.

    Attributes:
        generated_tokens: a second, a 7B shape, 1,024 reasons in flight (64 prompts x 16 samples x 512 tokens), vLLM 0.22.
        judgments: a second, a 7B shape, greedy, 512 tokens each.
        scored_reasons: a second, a 7B shape, 16 reasons under a prompt of 1,000 tokens.
        training_mfu: useful FLOPs (6N a token) against PEAK_FLOPS, a 1.5B shape, lengths round 1,200 tokens.
    """

    generated_tokens: float
    judgments: float
    scored_reasons: float
    training_mfu: float


# TRL's padded batches with checkpointing, as train_sft works today; one sequence at a time through scoring.
SLOW = Speed(20_900, 23, 21, 0.087)
# Packed rows of variable length with checkpointing, and a prompt's KV cache shared by its reasons: measured in prototypes,
# not in this code yet.
FAST = Speed(20_900, 23, 40, 0.44)


def kv_bytes_per_token(shape: ModelShape) -> int:
    """Bytes of the KV cache for one token in bfloat16: keys and values of every layer."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * INFERENCE_BYTES


def serving_bytes(shape: ModelShape, num_sequences: int, tokens_each: int) -> float:
    """Bytes over all GPUs to serve a model: its weights and the KV cache of all sequences in flight."""
    return shape.num_parameters * INFERENCE_BYTES + num_sequences * tokens_each * kv_bytes_per_token(shape)


def training_bytes(shape: ModelShape, num_gpus: int, tokens_per_gpu: int) -> float:
    """Bytes on each GPU to train with ZeRO-3 and gradient checkpointing.

    = 16 bytes a parameter / num_gpus + tokens x (2 bytes x layers x hidden size + 8 bytes x vocabulary): the states; each
    layer's input in bfloat16; the logits and their gradient in float32.
    """
    activations = 2 * shape.num_layers * shape.hidden_size + 8 * shape.vocab_size
    return shape.num_parameters * TRAINING_BYTES / num_gpus + tokens_per_gpu * activations


def gpus_needed(bytes_per_gpu: Callable[[int], float]) -> int:
    """The smallest power of two of GPUs on which what lies on each fits (tensor parallelism divides attention heads).

    Args:
        bytes_per_gpu: what lies on each of so many GPUs; falls as they become more.

    Raises:
        ValueError: it does not fit on 64 either.
    """
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        if bytes_per_gpu(num_gpus) <= GPU_BYTES * USABLE_FRACTION:
            return num_gpus
    raise ValueError(
        f"sizing: {bytes_per_gpu(64) / 2**30:.0f} GiB on each of 64 GPUs; expected at most "
        f"{GPU_BYTES * USABLE_FRACTION / 2**30:.0f} GiB. Take fewer tokens a GPU."
    )


def gpus_to_serve(shape: ModelShape, num_sequences: int, tokens_each: int) -> int:
    """GPUs that one replica needs with tensor parallelism."""
    return gpus_needed(lambda num_gpus: serving_bytes(shape, num_sequences, tokens_each) / num_gpus)


def gpus_to_train(shape: ModelShape, tokens_per_gpu: int) -> int:
    """GPUs that SFT or DPO needs with ZeRO-3."""
    return gpus_needed(lambda num_gpus: training_bytes(shape, num_gpus, tokens_per_gpu))


def generation_hours(shape: ModelShape, num_tokens: float, num_gpus: int, speed: Speed) -> float:
    """Hours to write so many tokens with one engine on num_gpus GPUs."""
    rate = speed.generated_tokens * MEASURED_PARAMETERS / shape.num_parameters * num_gpus
    return num_tokens / (rate * (TENSOR_PARALLEL_EFFICIENCY if num_gpus > 1 else 1)) / 3600


def scoring_hours(shape: ModelShape, num_reasons: float, speed: Speed) -> float:
    """Hours to score so many reasons on one GPU (score_reasons uses one)."""
    return num_reasons / (speed.scored_reasons * MEASURED_PARAMETERS / shape.num_parameters) / 3600


def judging_hours(shape: ModelShape, num_judgments: float, speed: Speed) -> float:
    """Hours to judge so many pairs greedily on one GPU."""
    return num_judgments / (speed.judgments * MEASURED_PARAMETERS / shape.num_parameters) / 3600


def training_hours(
    shape: ModelShape, num_tokens: float, flops_per_parameter: int, num_gpus: int, speed: Speed
) -> float:
    """Hours to train on so many tokens.

    Args:
        flops_per_parameter: and token: 6 for SFT; 8 for DPO, whose reference model reads every row once.
    """
    flops = flops_per_parameter * shape.num_parameters * num_tokens
    rate = speed.training_mfu * PEAK_FLOPS * num_gpus * (SHARDING_EFFICIENCY if num_gpus > 1 else 1)
    return flops / rate / 3600


@dataclass(frozen=True)
class StageTime:
    """A heavy stage of a run: how many GPUs it holds, and for how long."""

    stage: str
    num_gpus: int
    hours: float


def run_times(
    judge: ModelShape, teacher: ModelShape, num_train_gpus: int, num_teacher_gpus: int, work: Workload, speed: Speed
) -> list[StageTime]:
    """Every heavy stage of a run in the order of the data flow; the light ones take minutes and no GPU."""
    tokens = work.num_reasons * work.reason_tokens
    kept = work.num_prompts * work.kept_fraction
    scoring = scoring_hours(judge, work.num_reasons, speed)

    def training(tokens_each: int, epochs: float, flops_per_parameter: int) -> float:
        return training_hours(judge, kept * tokens_each * epochs, flops_per_parameter, num_train_gpus, speed)

    distilling = generation_hours(teacher, tokens, num_teacher_gpus, speed)
    verdict_row = work.prompt_tokens + work.verdict_tokens
    return [
        StageTime("distill_reasons (the teacher's)", num_teacher_gpus, distilling),
        StageTime("score_reasons (of the teacher)", 1, scoring),
        StageTime("train_sft (genrm)", num_train_gpus, training(verdict_row, work.sft_epochs, 6)),
        StageTime("train_sft (sft)", num_train_gpus, training(work.row_tokens, work.sft_epochs, 6)),
        StageTime("sample_reasons", 1, generation_hours(judge, tokens, 1, speed)),
        StageTime("score_reasons (of the policy)", 1, scoring),
        StageTime("train_dpo", num_train_gpus, training(2 * work.row_tokens, work.dpo_epochs, 8)),
        StageTime("evaluate_rewardbench (4 variants)", 1, judging_hours(judge, work.num_judgments, speed)),
    ]


# The memory table's load: what is in flight at once, and how long a sequence may be on one training GPU.
SERVED_SEQUENCES = 32
SERVED_TOKENS = 4_096
TRAINED_TOKENS = 4_096


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory_table() -> str:
    """What each model needs, as Markdown; the teacher is never trained."""
    rows = []
    for shape in (JUDGE_7B, JUDGE_8B, JUDGE_14B, TEACHER_70B):
        serve = gpus_to_serve(shape, SERVED_SEQUENCES, SERVED_TOKENS)
        served = serving_bytes(shape, SERVED_SEQUENCES, SERVED_TOKENS) / serve
        row = [shape.name, _gb(shape.num_parameters * INFERENCE_BYTES), f"{kv_bytes_per_token(shape) // 1024} KiB"]
        row += [str(serve), _gb(served)]
        if shape is TEACHER_70B:
            row += ["-", "-", "-"]
        else:
            train = gpus_to_train(shape, TRAINED_TOKENS)
            row += [str(train), _gb(training_bytes(shape, train, TRAINED_TOKENS))]
            row += [_gb(shape.num_parameters * RESUME_BYTES)]
        rows.append(row)
    head = ["model", "bf16 weights", "KV cache a token", "GPUs to serve", "on each", "GPUs to train", "on each"]
    return _table([*head, "checkpoint to resume from"], rows)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.0f} GB"


def hours_table() -> str:
    """Hours of each stage for a 7B and a 14B judge taught by a 70B model, as Markdown; from FAST to SLOW."""
    teachers = gpus_to_serve(TEACHER_70B, SERVED_SEQUENCES, SERVED_TOKENS)
    head, totals, gpu_hours = ["stage"], ["**one after the other**"], ["**GPU-hours**"]
    rows: list[list[str]] = []
    for judge in (JUDGE_7B, JUDGE_14B):
        train = gpus_to_train(judge, TRAINED_TOKENS)
        fast, slow = (run_times(judge, TEACHER_70B, train, teachers, Workload(), speed) for speed in (FAST, SLOW))
        rows = rows or [[time.stage] for time in fast]
        for row, low, high in zip(rows, fast, slow, strict=True):
            row += [str(low.num_gpus), _span(low.hours, high.hours)]
        totals += ["", f"**{_span(*(sum(time.hours for time in times) for times in (fast, slow)))}**"]
        spent = (sum(time.hours * time.num_gpus for time in times) for times in (fast, slow))
        gpu_hours += ["", f"**{_span(*spent)}**"]
        head += ["GPUs", f"hours, {judge.name}"]
    return _table(head, [*rows, totals, gpu_hours])


def _span(fast: float, slow: float) -> str:
    """4.2 and 21 become "4.2 to 21"; one figure where both say the same."""
    low, high = (f"{hours:.1f}" if hours < 10 else f"{hours:.0f}" for hours in (fast, slow))
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    print(f"{memory_table()}\n\n{hours_table()}")  # noqa: T201 - the command's output
