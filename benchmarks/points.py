"""Ours, as measured points of `reasongenrm plan --points FILE`."""

import re

from benchmarks.figures import OURS, Part, Report
from benchmarks.shapes import SHAPES
from benchmarks.work import add_work
from reasongenrm import __version__
from reasongenrm.planning.points import Kind, Machine, MeasuredPoint, Points, Work

KINDS: dict[str, Kind] = {"sft": "sft", "dpo": "dpo", "scoring": "score"}
_GPUS = {"H100": "h100", "H200": "h200"}  # as reasongenrm/planning/points.json names them


def as_points(report: Report, memory_bytes: int | None) -> Points:
    """A point for each part that was measured on one process; the plan asks for one GPU.

    Args:
        memory_bytes: of the GPU; None for a CPU.
    """
    if report.machine.num_processes > 1:
        return Points()
    machine = machine_name(report.machine.device, memory_bytes)
    points = [point for part in report.parts for point in _points(part, machine, report)]
    described = Machine(name=machine, title=report.machine.device, memory_bytes=memory_bytes)
    return Points(machines=(described,), points=tuple(points))


def machine_name(device: str, memory_bytes: int | None) -> str:
    """ "cpu", or the GPU's name in one word."""
    if memory_bytes is None:
        return "cpu"
    known = next((name for model, name in _GPUS.items() if model in device), None)
    return known or re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _points(part: Part, machine: str, report: Report) -> list[MeasuredPoint]:
    ours = next((way.measured for way in part.ways if way.name == OURS), None)
    if part.part not in KINDS or ours is None:
        return []
    work = Work()
    for step in ours.steps:
        work = add_work(work, step.work)
    share = ours.before_seconds * ours.num_examples / ours.before_examples if ours.before_examples else 0.0
    return [
        MeasuredPoint(
            kind=KINDS[part.part],
            machine=machine,
            model=SHAPES[part.shape].model,
            work=work,
            seconds=ours.seconds + share,
            version=__version__,
            command=report.command,
            date=report.started[:10],
        )
    ]
