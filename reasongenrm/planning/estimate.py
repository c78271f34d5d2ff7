"""Hours, GPU-hours, storage and money of every stage: its work, divided by a measured throughput.

    hours = work / (measured throughput x ratio of the GPUs' peaks x GPUs, less what parallelism loses) / 3600

Work is FLOPs, rows or bytes. Each figure has a range, from how far its measurement is from what is asked (`Basis`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError
from reasongenrm.planning.measurements import LIGHT, Machine, Measurement, Measurements
from reasongenrm.planning.workloads import Assumptions, StageWorkload, run_workloads
from reasongenrm.records import Record
from reasongenrm.training.memory import USABLE, USUAL_TOKENS, training_bytes
from reasongenrm.training.shapes import RESUME_BYTES, ModelShape

SERVING_FRACTION = 0.9  # of a GPU's memory: vLLM's gpu_memory_utilization
SERVED_SEQUENCES, SERVED_TOKENS = 32, 4_096  # that a replica must have room for: sequences in flight, tokens of each
TENSOR_PARALLEL_EFFICIENCY = 0.8  # assumed: GPUs that share a model, against as many that write apart
SHARDING_EFFICIENCY = 0.9  # assumed: ZeRO-3 within one node
# To start the process of a stage that runs a model and load the weights, in seconds: vLLM takes one to two minutes on a
# GPU; importing torch takes 8 to 10 s of CPU time (docs/laptop.md).
GPU_START, CPU_START = 90, 10
# A range is the expected value divided and multiplied by all factors that apply (docs/planning.md, "The range").
REPEATED = 1.25  # the same work again, with other texts
LIGHT_REPEATED = 4.0  # of a light stage: rows and stores differ more, and it takes seconds
ELSEWHERE = 1.25  # each: measured on another GPU; an assumed efficiency
PER_SIZE = 0.25  # (ratio of the parameters) ** this


@dataclass(frozen=True)
class Range:
    """A figure, and what it may turn out to be."""

    low: float = 0
    expected: float = 0
    high: float = 0

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """In another unit."""
        return Range(self.low * factor, self.expected * factor, self.high * factor)


NOTHING = Range()


@dataclass(frozen=True)
class Basis:
    """What a stage's figure rests on."""

    measurement: int  # its number in `RunEstimate.measurements`, from 1
    model_scale: float  # the stage's parameters / those that were measured; 1 without a model
    peak_scale: float  # peak of the machine asked for / of the one that was measured
    work_scale: float  # the stage's work per GPU / the work that was measured: the same step, repeated
    factor: float  # the range is expected / factor to expected x factor


@dataclass(frozen=True)
class StageEstimate(StageWorkload):
    """What one stage takes."""

    num_devices: int = 0  # GPUs that it holds; 1 on a CPU; 0 for a stage that holds none
    hours: Range | None = None  # of wall time; None for what is not estimated: an endpoint's work, and the cluster's
    device_hours: Range = NOTHING
    cost: Range | None = None  # money; None without a price
    basis: Basis | None = None


class ModelMemory(Record):
    """GPUs that a model needs, and the bytes on each."""

    name: str
    weights_bytes: float
    kv_bytes_per_token: int
    checkpoint_bytes: float
    serving_gpus: int  # of one replica, with tensor parallelism
    serving_bytes: float
    training_gpus: int = 0  # with the states sharded; 0 for a teacher, which is never trained
    training_bytes: float = 0.0


class RunEstimate(Record):
    """All stages, one after another, and what they rest on."""

    machine: Machine
    num_devices: int
    price: float | None
    hours: Range
    device_hours: Range
    cost: Range | None
    kept_bytes: float
    peak_bytes: float  # the most that the store holds at a time
    memory: tuple[ModelMemory, ...]  # of judge and teacher; empty on a CPU
    stages: tuple[StageEstimate, ...]
    measurements: tuple[Measurement, ...]


def estimate_run(
    config: RunConfig,
    assumed: Assumptions,
    judge: ModelShape,
    teacher: ModelShape | None,
    measurements: Measurements,
    machine: Machine,
    num_gpus: int,
    price: float | None = None,
) -> RunEstimate:
    """Estimate a run.

    Args:
        teacher: None: an endpoint, which costs no hours here.
        num_gpus: that are available; 1 on a CPU.
        price: money per GPU-hour (or CPU-hour).

    Raises:
        InputError: nothing was measured that a stage could rest on.
        ConfigError: a model does not fit on these GPUs.
    """
    memory = {
        model.name: model_memory(model, trained, machine.memory_bytes)
        for model, trained in ((teacher, None), (judge, config))
        if model and machine.memory_bytes is not None
    }
    rests_on: list[Measurement] = []
    stages = []
    kept = peak = 0.0
    for workload in run_workloads(config, assumed, judge, teacher):
        kept += workload.kept_bytes
        peak = max(peak, kept + workload.passing_bytes)
        if workload.kind is None:
            stages.append(StageEstimate(**vars(workload)))
            continue
        held, speed = _devices(workload, machine, num_gpus, memory)
        used, model_scale, peak_scale = measurements.nearest(workload.kind, workload.model, machine)
        if used not in rests_on:
            rests_on.append(used)
        per_gpu = workload.work.amount(workload.kind, workload.model) / speed
        work_scale = per_gpu / used.work.amount(used.kind, used.model)
        start = 0 if workload.model is None else CPU_START if machine.memory_bytes is None else GPU_START
        expected = (start + work_scale * used.seconds / peak_scale) / 3600
        factor = LIGHT_REPEATED if workload.kind in LIGHT else REPEATED
        another_gpu = workload.model is not None and used.machine != machine.name
        factor *= ELSEWHERE ** (another_gpu + (held not in (0, speed)))
        factor *= max(model_scale, 1 / model_scale) ** PER_SIZE
        hours = Range(expected / factor, expected, expected * factor)
        basis = Basis(rests_on.index(used) + 1, model_scale, peak_scale, work_scale, factor)
        cost = None if price is None else hours.times(held * price)
        stages.append(
            StageEstimate(
                **vars(workload), num_devices=held, hours=hours, device_hours=hours.times(held), cost=cost, basis=basis
            )
        )
    device_hours = sum((stage.device_hours for stage in stages), NOTHING)
    return RunEstimate(
        machine=machine,
        num_devices=num_gpus,
        price=price,
        hours=sum((stage.hours for stage in stages if stage.hours), NOTHING),
        device_hours=device_hours,
        cost=None if price is None else device_hours.times(price),
        kept_bytes=kept,
        peak_bytes=peak,
        memory=tuple(memory.values()),
        stages=tuple(stages),
        measurements=tuple(rests_on),
    )


def _devices(
    stage: StageWorkload, machine: Machine, num_gpus: int, memory: dict[str, ModelMemory]
) -> tuple[int, float]:
    """GPUs that the stage holds, and how many of one's speed they have together."""
    if machine.memory_bytes is None:
        return 1, 1.0
    if stage.model is None:
        return 0, 1.0
    model = memory[stage.model.name]
    if stage.kind == "score_reasons":
        room = machine.memory_bytes * SERVING_FRACTION
        if model.weights_bytes > room:
            raise ConfigError(
                f"plan: {stage.stage} with {model.name} needs {model.weights_bytes / 1e9:.0f} GB for the weights on "
                f"each GPU, found {room / 1e9:.0f} GB usable on {machine.title}; scoring does not split a model. Take "
                "GPUs with more memory, or a smaller judge."
            )
        return num_gpus, num_gpus
    training = stage.kind in ("train_sft", "train_dpo")
    fewest = model.training_gpus if training else model.serving_gpus
    if fewest > num_gpus:
        raise ConfigError(
            f"plan: {stage.stage} with {model.name} needs {fewest} x {machine.title}, found --gpus {num_gpus}. Take "
            "more GPUs, GPUs with more memory, or a smaller model (a teacher may be an endpoint: --teacher endpoint)."
        )
    if training:
        return num_gpus, num_gpus * (SHARDING_EFFICIENCY if num_gpus > 1 else 1)
    held = num_gpus // fewest * fewest
    return held, held * (TENSOR_PARALLEL_EFFICIENCY if fewest > 1 else 1)


def model_memory(shape: ModelShape, trained: RunConfig | None, memory_bytes: float) -> ModelMemory:
    """GPUs that a model needs, and what is on each.

    Args:
        trained: how it is trained; with ZeRO-3 where the configuration names no sharding. None: it is not trained.
        memory_bytes: of one GPU.

    Raises:
        ConfigError: it does not fit on 64 either.
    """

    def serving(num_gpus: int) -> float:
        return shape.serving_bytes(SERVED_SEQUENCES, SERVED_TOKENS) / num_gpus

    def training(num_gpus: int) -> float:
        return max(
            training_bytes(
                shape,
                section.model_copy(update={"sharding": "zero3"}) if section.sharding == "none" else section,
                USUAL_TOKENS if section.max_batch_tokens == "auto" else section.max_batch_tokens,
                num_gpus,
                checkpointing=section.gradient_checkpointing is not False,
            )
            for section in ([trained.genrm, trained.sft, trained.dpo] if trained else [])
        )

    serving_gpus = _fewest_gpus(serving, memory_bytes * SERVING_FRACTION)
    training_gpus = _fewest_gpus(training, memory_bytes * USABLE) if trained else 0
    return ModelMemory(
        name=shape.name,
        weights_bytes=shape.serving_bytes(0, 0),
        kv_bytes_per_token=shape.kv_bytes_per_token,
        checkpoint_bytes=shape.num_parameters * RESUME_BYTES,
        serving_gpus=serving_gpus,
        serving_bytes=serving(serving_gpus),
        training_gpus=training_gpus,
        training_bytes=training(training_gpus) if trained else 0.0,
    )


def _fewest_gpus(bytes_per_gpu: Callable[[int], float], room: float) -> int:
    """The smallest power of two of GPUs on which it fits (tensor parallelism divides attention heads)."""
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        if bytes_per_gpu(num_gpus) <= room:
            return num_gpus
    raise ConfigError(
        f"plan: {bytes_per_gpu(64) / 1e9:.0f} GB on each of 64 GPUs; expected at most {room / 1e9:.0f} GB. Take a "
        "smaller model or GPUs with more memory."
    )
