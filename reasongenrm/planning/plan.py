"""The plan of a run: every stage's hours, GPU-hours, storage and money, from one machine's laws and the stages' work.

Stages run one after another, each on the GPUs that it can use. A figure that lies beyond what was measured says by how
much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.planning.fit import Law, amounts, fit_law, main_term
from reasongenrm.planning.points import KINDS, LIGHT, Kind, Machine, Points, Work
from reasongenrm.planning.stages import Assumptions, Needs, StageWork, run_stages
from reasongenrm.training.shapes import ModelShape

USABLE_FRACTION = 0.9  # of a GPU's memory: vLLM's gpu_memory_utilization; the rest is CUDA's, NCCL's and fragments
TENSOR_PARALLEL_EFFICIENCY = 0.8  # assumed: several GPUs that write one token against as many that write apart
SHARDING_EFFICIENCY = 0.9  # assumed: ZeRO-3 within one node
SERVED_SEQUENCES = 32  # that a replica must have room for, of
SERVED_TOKENS = 4_096  # each
TRAINED_TOKENS = 4_096  # on one GPU at a time
MAX_IN_FLIGHT = 1_024  # vLLM's max_num_seqs on GPUs of this size
CPU = "cpu"  # machine on which the light stages run, beside any GPU
# Where a machine has no points of a kind: whose law is taken, because the hardware does the same with the same FLOPs.
BORROWED: dict[Kind, Kind] = {"dpo": "sft", "evaluate": "generate", "generate": "evaluate"}


class Beyond(BaseModel):
    """How many times more than the largest measured point; 1 is within."""

    model_config = ConfigDict(frozen=True)

    work: float
    parameters: float


class StageCost(BaseModel):
    """What one stage takes.

    Attributes:
        law: kind of the points that it was computed from; None: no figure.
        num_devices: GPUs that it holds; 1 on a CPU; 0 for a stage that holds none.
        hours: of wall time; None: not computed.
        hours_low, hours_high: with what the points' spread makes of it; None: one size was measured, nobody knows how
        far it is off.
        device_hours: hours x num_devices.
        kept_bytes: of its artifact. passing_bytes: in the store besides, while it runs.
        cost: money; None without a price.
        beyond: None without a law.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    kind: Kind | None
    law: Kind | None = None
    law_machine: str | None = None
    num_devices: int = 0
    hours: float | None = None
    hours_low: float | None = None
    hours_high: float | None = None
    device_hours: float = 0.0
    work: Work
    kept_bytes: float
    passing_bytes: float
    cost: float | None = None
    beyond: Beyond | None = None


class Totals(BaseModel):
    """Of all stages, one after another.

    Attributes:
        hours_low, hours_high: None where those of a stage are not known.
        peak_bytes: the most that the store holds at a time.
    """

    model_config = ConfigDict(frozen=True)

    hours: float
    hours_low: float | None
    hours_high: float | None
    device_hours: float
    kept_bytes: float
    peak_bytes: float
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """All stages, their totals, and the laws that were used, by machine and kind."""

    machine: Machine
    stages: tuple[StageCost, ...]
    totals: Totals
    laws: tuple[Law, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs: everything that the tables show, in bytes and hours."""
        return {
            "machine": self.machine.model_dump(mode="json"),
            "stages": [stage.model_dump(mode="json") for stage in self.stages],
            "totals": self.totals.model_dump(mode="json"),
            "laws": [law.to_json() for law in self.laws],
        }


def gpus_needed(bytes_per_gpu: Callable[[int], float], memory_bytes: float) -> int:
    """The smallest power of two of GPUs on which what lies on each fits (tensor parallelism divides attention heads).

    Args:
        bytes_per_gpu: what lies on each of so many GPUs; falls as they become more.
        memory_bytes: of one GPU.

    Raises:
        ConfigError: it does not fit on 64 either.
    """
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        if bytes_per_gpu(num_gpus) <= memory_bytes * USABLE_FRACTION:
            return num_gpus
    raise ConfigError(
        f"plan: {bytes_per_gpu(64) / 2**30:.0f} GiB on each of 64 GPUs; expected at most "
        f"{memory_bytes * USABLE_FRACTION / 2**30:.0f} GiB. Take a smaller model or GPUs with more memory."
    )


def gpus_to_serve(shape: ModelShape, memory_bytes: float) -> int:
    """GPUs that one replica needs with tensor parallelism."""
    return gpus_needed(lambda n: shape.serving_bytes(SERVED_SEQUENCES, SERVED_TOKENS) / n, memory_bytes)


def gpus_to_train(shape: ModelShape, memory_bytes: float) -> int:
    """GPUs that SFT or DPO needs with ZeRO-3."""
    return gpus_needed(lambda n: shape.training_bytes(n, TRAINED_TOKENS), memory_bytes)


def make_plan(
    config: RunConfig,
    assumed: Assumptions,
    judge: ModelShape,
    teacher: ModelShape | None,
    points: Points,
    machine: Machine,
    num_gpus: int,
    price: float | None = None,
) -> Plan:
    """Plan a run.

    Args:
        teacher: None: an endpoint, which costs no hours here.
        points: measured; of `machine`, and of CPU for the light stages.
        num_gpus: that there are; 1 on a CPU.
        price: money for one GPU (or the CPU) for an hour.

    Raises:
        InputError: nothing that a stage needs was measured on the machine.
        ConfigError: a model does not fit on so many GPUs.
    """
    laws: dict[tuple[str, Kind], Law] = {}
    stages = []
    for stage in run_stages(config, assumed, judge, teacher):
        law = None if stage.kind is None else _law(points, machine, stage.kind, laws)
        batch_size = (config.evaluate if stage.kind == "evaluate" else config.sample).engine.batch_size
        stages.append(_cost(stage, law, machine, num_gpus, price, batch_size))
    in_order = sorted(laws.values(), key=lambda law: KINDS.index(law.kind))
    return Plan(machine, tuple(stages), _totals(stages, price), tuple(in_order))


def _law(points: Points, machine: Machine, kind: Kind, laws: dict[tuple[str, Kind], Law]) -> Law:
    """The law of a kind on the machine or one like it, else of a kind that is much like it; of light stages, on a CPU."""
    name = CPU if kind in LIGHT else machine.name
    for taken in (kind, BORROWED.get(kind)):
        for place in (name, machine.like):
            found = points.of(place, taken) if taken and place else []
            if found and taken and place:
                return laws.setdefault((place, taken), fit_law(found))
    raise InputError(
        f"plan: no points of kind '{kind}' on '{name}'; expected at least one measured. Measure it there "
        "(python -m benchmarks, python -m benchmarks.growth) and give its file as --points, or take another --gpu."
    )


@dataclass(frozen=True)
class _Place:
    """Where a stage runs: `num_devices` as `replicas` that share the prompts, each with so much of its GPUs' speed."""

    num_devices: int
    replicas: int = 1
    speed: float = 1.0  # of a replica, against one GPU


def _place(needs: Needs, model: ModelShape | None, machine: Machine, num_gpus: int, stage: str) -> _Place:
    if machine.memory_bytes is None:
        return _Place(1)
    if needs == "no GPU" or model is None:
        return _Place(0)
    if needs == "score":
        _check_scorer(model, machine.memory_bytes, stage)
        return _Place(num_gpus, num_gpus)
    fits = gpus_to_serve if needs == "serve" else gpus_to_train
    fewest = fits(model, machine.memory_bytes)
    if fewest > num_gpus:
        raise ConfigError(
            f"plan: {stage} with {model.name} needs {fewest} GPUs of {machine.memory_bytes / 1e9:.0f} GB, "
            f"found --gpus {num_gpus}. Take more GPUs, GPUs with more memory, or a smaller model (a teacher may be an "
            "endpoint: --teacher endpoint)."
        )
    if needs == "train":
        return _Place(num_gpus, 1, num_gpus * (SHARDING_EFFICIENCY if num_gpus > 1 else 1))
    replicas = num_gpus // fewest
    return _Place(replicas * fewest, replicas, fewest * (TENSOR_PARALLEL_EFFICIENCY if fewest > 1 else 1))


def _check_scorer(model: ModelShape, memory_bytes: float, stage: str) -> None:
    """Ask for room for the weights on one GPU: every replica that scores has them all."""
    weights, room = model.serving_bytes(0, 0), memory_bytes * USABLE_FRACTION
    if weights > room:
        raise ConfigError(
            f"plan: {stage} with {model.name} needs {weights / 1e9:.0f} GB for the weights on each GPU, found "
            f"{room / 1e9:.0f} GB usable of {memory_bytes / 1e9:.0f}; scoring does not split a model. Take GPUs with more "
            "memory, or a smaller judge."
        )


def _cost(
    stage: StageWork, law: Law | None, machine: Machine, num_gpus: int, price: float | None, batch_size: int
) -> StageCost:
    """Law times work."""
    cost = StageCost(
        stage=stage.stage,
        kind=stage.kind,
        work=stage.work,
        kept_bytes=stage.kept_bytes,
        passing_bytes=stage.passing_bytes,
    )
    if law is None or stage.kind is None:
        return cost
    place = _place(stage.needs, stage.model, machine, num_gpus, stage.stage)
    work = _of_replica(stage, place, machine, batch_size)
    quantities = amounts(stage.kind, stage.model, work)  # of its own kind, also under a borrowed law
    start = law.seconds_per.get("start", 0.0)
    hours = (start + (law.seconds(quantities) - start) / place.speed) / 3600
    low, high = law.spread or (None, None)
    beyond = Beyond(
        work=max(1.0, quantities[main_term(law.kind)] / law.most_work),
        parameters=max(1.0, stage.model.num_parameters / (law.most_parameters or 1)) if stage.model else 1.0,
    )
    return cost.model_copy(
        update={
            "law": law.kind,
            "law_machine": law.points[0].machine,
            "num_devices": place.num_devices,
            "hours": hours,
            "hours_low": low and hours * low,
            "hours_high": high and hours * high,
            "device_hours": hours * place.num_devices,
            "cost": None if price is None else hours * place.num_devices * price,
            "beyond": beyond,
        }
    )


def _of_replica(stage: StageWork, place: _Place, machine: Machine, batch_size: int) -> Work:
    """A replica's share of the work; of what is written, with its decoding steps."""
    if stage.needs not in ("serve", "score") or stage.model is None:
        return stage.work
    share = Work(**{name: math.ceil(amount / place.replicas) for name, amount in stage.work})
    if stage.needs == "score":
        return share
    tokens_each = share.reason_tokens / share.num_reasons
    in_flight = float(batch_size)
    if machine.memory_bytes is not None:
        context = share.prompt_tokens / share.num_prompts + tokens_each
        gpus = place.num_devices / place.replicas
        room = machine.memory_bytes * USABLE_FRACTION * gpus - stage.model.serving_bytes(0, 0)
        in_flight = min(MAX_IN_FLIGHT, max(1.0, room // (context * stage.model.kv_bytes_per_token)))
    steps = math.ceil(share.num_reasons / in_flight) * math.ceil(tokens_each)
    return share.model_copy(update={"num_steps": steps})


def _totals(stages: Sequence[StageCost], price: float | None) -> Totals:
    kept, peak = 0.0, 0.0
    for stage in stages:
        kept += stage.kept_bytes
        peak = max(peak, kept + stage.passing_bytes)
    computed = [stage for stage in stages if stage.hours is not None]
    lows = [stage.hours_low for stage in computed if stage.hours_low is not None]
    highs = [stage.hours_high for stage in computed if stage.hours_high is not None]
    known = len(lows) == len(computed)
    device_hours = sum(stage.device_hours for stage in stages)
    return Totals(
        hours=sum(stage.hours or 0.0 for stage in stages),
        hours_low=sum(lows) if known else None,
        hours_high=sum(highs) if known else None,
        device_hours=device_hours,
        kept_bytes=kept,
        peak_bytes=peak,
        cost=None if price is None else device_hours * price,
    )
