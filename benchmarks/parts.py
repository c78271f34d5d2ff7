"""The parts of a run, each in its ways: one after the other, each with the memory to itself.

A way that fails is recorded with its message, and the rest goes on; among several processes it ends the run, because
the others would wait for it forever.
"""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks import ours, peers
from benchmarks.clock import Memory
from benchmarks.equality import equality
from benchmarks.figures import (
    INFERENCE_FLOPS,
    OURS,
    TRAINING_FLOPS,
    Machine,
    Part,
    PartName,
    Way,
    ratios,
    summarise,
)
from benchmarks.libraries import unpatched
from benchmarks.setting import Done, Setting, dtype_name
from benchmarks.work import TrainingWork, dpo_columns, scoring_rows, sft_columns, training_work

STEPS = 8  # of training work, after which it repeats
PROMPTS = 16  # of scoring work, of each process
MESSAGE_CHARS = 500


@dataclass(frozen=True)
class Comparison:
    """A part whose ways do the same work.

    Attributes:
        ways: by name; each is given the setting and the work.
        flops_per_parameter: and token.
    """

    work: Callable[[Setting], Any]
    ways: dict[str, Callable[[Setting, Any], Done]]
    flops_per_parameter: int


def sft_work(setting: Setting) -> TrainingWork:
    """Examples for STEPS steps; further steps train on them again."""
    columns = sft_columns(setting.shape, STEPS * setting.examples, seed=setting.seed)
    return training_work(columns, setting.examples, setting.num_steps, seed=setting.seed)


def dpo_work(setting: Setting) -> TrainingWork:
    """Pairs for STEPS steps."""
    columns = dpo_columns(setting.shape, STEPS * setting.pairs, seed=setting.seed)
    return training_work(columns, setting.pairs, setting.num_steps, seed=setting.seed)


def _trl_liger_sft(setting: Setting, work: TrainingWork) -> Done:
    return peers.trl_sft(setting, work, liger=True)


COMPARISONS: dict[PartName, Comparison] = {
    "sft": Comparison(
        work=sft_work,
        ways={OURS: ours.sft, "trl": peers.trl_sft, "trl+liger": _trl_liger_sft},
        flops_per_parameter=TRAINING_FLOPS,
    ),
    "dpo": Comparison(
        work=dpo_work,
        ways={OURS: ours.dpo, "trl": peers.trl_dpo},
        flops_per_parameter=TRAINING_FLOPS,
    ),
    "scoring": Comparison(
        # Each process has prompts of its own.
        work=lambda setting: scoring_rows(setting.shape, PROMPTS, seed=setting.seed + setting.world.rank),
        ways={OURS: ours.scoring, "one at a time": peers.plain_scoring},
        flops_per_parameter=INFERENCE_FLOPS,
    ),
}


def run_part(name: PartName, setting: Setting, machine: Machine) -> Iterator[Part]:
    """Measure a part; yields it after every way, more complete each time."""
    part = Part(
        part=name,
        shape=setting.shape.name,
        num_parameters=setting.shape.model.num_parameters,
        dtype=dtype_name(setting.dtype),
    )
    if name == "equality":
        yield _run_equality(part, setting)
        return
    comparison = COMPARISONS[name]
    work = comparison.work(setting)
    for way in comparison.ways:
        part = replace_ways(part, (*part.ways, _run_way(way, comparison, work, setting, machine)))
        yield part


def replace_ways(part: Part, ways: tuple[Way, ...]) -> Part:
    """The part with these ways, and their ratios."""
    return part.model_copy(update={"ways": ways, "ratios": ratios(ways)})


def _run_way(name: str, comparison: Comparison, work: Any, setting: Setting, machine: Machine) -> Way:
    missing = _missing(name, setting)
    if missing:
        return Way(name=name, status="skipped", message=missing)
    try:
        with unpatched(), Memory(setting.world.device) as memory:
            done = comparison.ways[name](setting, work)
    except Exception as error:  # noqa: BLE001 - reported, and the command's exit code says so
        return Way(name=name, status="failed", message=_message(error, setting))
    measured = summarise(
        done.steps,
        num_parameters=setting.shape.model.num_parameters,
        flops_per_parameter=comparison.flops_per_parameter,
        machine=machine,
        peak_memory_gib=setting.world.largest(memory.peak_gib),
        before_seconds=done.before_seconds,
        before_examples=done.before_examples,
    )
    return Way(name=name, status="measured", settings=done.settings, measured=measured)


def _run_equality(part: Part, setting: Setting) -> Part:
    if setting.world.size > 1:
        return part
    try:
        with unpatched(), Memory(setting.world.device):
            return part.model_copy(update={"apart": equality(setting)})
    except Exception as error:  # noqa: BLE001 - reported, and the command's exit code says so
        return part.model_copy(update={"failed": _message(error, setting)})


def _message(error: Exception, setting: Setting) -> str:
    """What the results say of a failure; with several processes, the failure itself."""
    if setting.world.size > 1:
        raise error
    traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_CHARS]


def _missing(way: str, setting: Setting) -> str:
    """Why a way cannot be tried here; "" if it can."""
    if way != "trl+liger":
        return ""
    if setting.world.device.type != "cuda":
        return "liger's kernels need a GPU"
    return "" if find_spec("liger_kernel") else "liger-kernel is not installed"
