"""Ours, as a file of `reasongenrm plan --measurements`."""

import re

from benchmarks.figures import OURS, Part, Report
from benchmarks.shapes import SHAPES
from reasongenrm import __version__
from reasongenrm.planning.measurements import (
    Machine,
    Measurement,
    Measurements,
    WorkKind,
    Workload,
    read_measurements,
)

KINDS: dict[str, WorkKind] = {"sft": "train_sft", "dpo": "train_dpo", "scoring": "score_reasons"}


def as_measurements(report: Report, memory_bytes: int | None) -> Measurements:
    """A measurement for each part that ran on one process: the plan asks for one GPU.

    Args:
        memory_bytes: of the GPU; None for a CPU.
    """
    if report.machine.num_processes > 1:
        return Measurements()
    machine = machine_of_plan(report.machine.device, memory_bytes)
    found = [_measurement(part, machine.name, report) for part in report.parts]
    return Measurements(machines=(machine,), measurements=tuple(one for one in found if one))


def machine_of_plan(device: str, memory_bytes: int | None) -> Machine:
    """A machine that the plan knows, or one with the GPU's name in one word; "cpu" without a GPU."""
    if memory_bytes is None:
        return Machine(name="cpu", title=device)
    known = next((one for one in read_measurements().machines if one.name.upper() in device.upper()), None)
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return known or Machine(name=name, title=device, memory_bytes=memory_bytes)


def _measurement(part: Part, machine: str, report: Report) -> Measurement | None:
    ours = next((way.measured for way in part.ways if way.name == OURS), None)
    if part.part not in KINDS or ours is None:
        return None
    share = ours.before_seconds * ours.num_examples / ours.before_examples if ours.before_examples else 0.0
    return Measurement(
        kind=KINDS[part.part],
        machine=machine,
        model=SHAPES[part.shape].model,
        work=sum((step.work for step in ours.steps), Workload()),
        seconds=ours.seconds + share,
        version=__version__,
        command=report.command,
        date=report.started[:10],
    )
