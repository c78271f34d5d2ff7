"""A plan for people: rows of text, which the command line shows and docs/install.md holds as Markdown (pages.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from reasongenrm.config import load_config
from reasongenrm.planning.fit import Law, amounts, main_term
from reasongenrm.planning.plan import (
    SERVED_SEQUENCES,
    SERVED_TOKENS,
    TRAINED_TOKENS,
    Plan,
    StageCost,
    gpus_to_serve,
    gpus_to_train,
    make_plan,
)
from reasongenrm.planning.points import Machine, MeasuredPoint, shipped_points
from reasongenrm.planning.stages import Assumptions
from reasongenrm.training.shapes import INFERENCE_BYTES, RESUME_BYTES, SHAPES

_UNITS = {"rows": "rows", "bytes": "bytes"}


@dataclass(frozen=True)
class Grid:
    """A table: the first column is text, the others stand to the right."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table without its title."""
        lines = [self.head, ("---", *("---:" for _ in self.head[1:])), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plan_grid(plan: Plan) -> Grid:
    """Every stage and the totals; what lies beyond the largest point says how far, in parameters N and in work."""
    device = "GPU" if plan.machine.memory_bytes else "CPU"
    priced = plan.totals.cost is not None
    head = ["stage", "work", f"{device}s", "hours", "low to high", f"{device}-hours", "store"]
    head += ["cost", "beyond the points"] if priced else ["beyond the points"]
    rows = []
    for stage in plan.stages:
        row = [stage.stage, _work(stage), str(stage.num_devices or "-"), _hours(stage.hours)]
        row += ["-" if stage.hours is None else _span(stage.hours_low, stage.hours_high)]
        row += [_hours(stage.device_hours or None), _gb(stage.kept_bytes)]
        row += [_money(stage.cost or None), _beyond(stage)] if priced else [_beyond(stage)]
        rows.append(tuple(row))
    totals = plan.totals
    total = ["one after another", "", "", _hours(totals.hours), _span(totals.hours_low, totals.hours_high)]
    total += [_hours(totals.device_hours), _gb(totals.kept_bytes)]
    rows.append((*total, *([_money(totals.cost), ""] if priced else [""])))
    return Grid(f"A run on {plan.machine.title}", tuple(head), tuple(rows))


def notes(plan: Plan) -> list[str]:
    """What the table leaves out."""
    lines = [
        f"The store holds at most {_gb(plan.totals.peak_bytes)} at a time, with parts and checkpoints to resume from."
    ]
    unknown = [stage.stage for stage in plan.stages if stage.hours is not None and stage.hours_low is None]
    if unknown:
        lines.append(f"One size measured, so nobody knows how far it is off: {', '.join(unknown)}.")
    borrowed = [
        f"{stage.stage} ({stage.law})" for stage in plan.stages if stage.law != stage.kind and stage.hours is not None
    ]
    if borrowed:
        lines.append(f"No points of its own kind, so by the law of another: {', '.join(borrowed)}.")
    elsewhere = [
        f"{stage.stage} ({stage.law_machine})"
        for stage in plan.stages
        if stage.law_machine == plan.machine.like and stage.law_machine is not None
    ]
    if elsewhere:
        lines.append(
            f"Not measured on {plan.machine.title}, so by the law of a machine with the same chip: {', '.join(elsewhere)}."
        )
    missing = [stage.stage for stage in plan.stages if stage.hours is None]
    lines.append(f"Not computed: {', '.join(missing)}.")
    return lines


def points_grid(laws: Sequence[Law]) -> Grid:
    """The measured points, with what the laws say about each."""
    rows = []
    for law in laws:
        for point, fitted, ratio in zip(law.points, law.fitted_seconds, law.ratios, strict=True):
            rows.append(
                (
                    f"{point.kind} on {point.machine}",
                    point.model.name if point.model else "-",
                    _amount(point),
                    number(point.seconds),
                    number(fitted),
                    f"{ratio:.2f}",
                    f"{point.version or 'prototype'}, {point.date}",
                )
            )
    head = ("point", "model", "work", "measured s", "fitted s", "ratio", "version, date")
    return Grid("Measured, and what the laws say about it", head, tuple(rows))


def laws_grid(laws: Sequence[Law]) -> Grid:
    """The laws: coefficients, errors, and how the points grow by themselves."""
    rows = []
    for law in laws:
        growth = law.growth
        exponents = "-"
        if growth:
            of_parameters = f", N^{growth.of_parameters:.2f}" if growth.of_parameters is not None else ""
            exponents = f"work^{growth.of_work:.2f}{of_parameters}"
        off = max(abs(ratio - 1) for ratio in law.ratios)
        left_out = max((abs(ratio - 1) for ratio in law.left_out_ratios), default=None)
        rows.append(
            (
                f"{law.kind} on {law.machine}",
                str(len(law.points)),
                " + ".join(_coefficient(law, term) for term in law.seconds_per),
                f"{off:.0%}",
                "-" if left_out is None else f"{left_out:.0%}",
                exponents,
            )
        )
    head = ("law", "points", "seconds", "off by at most", "a size left out", "growth")
    return Grid("Laws", head, tuple(rows))


def _coefficient(law: Law, term: str) -> str:
    each = law.seconds_per[term]
    match term:
        case "start":
            return f"{number(each)} s"
        case "flops":
            return f"FLOPs / {number(1e-12 / each)} TFLOP/s"
        case "weights":
            return f"weights / {number(1e-9 / each)} GB/s"
        case "activations":
            return f"activations / {number(1e-9 / each)} G/s"
        case "bytes":
            return f"bytes / {number(1e-6 / each)} MB/s"
        case _:
            return f"{term} / {number(1 / each)} a second"


def memory_grid(machine: Machine) -> Grid:
    """What each model needs; the teacher is never trained."""
    assert machine.memory_bytes
    rows = []
    for size in ("7B", "8B", "14B", "70B"):
        shape = SHAPES[size]
        serve = gpus_to_serve(shape, machine.memory_bytes)
        served = shape.serving_bytes(SERVED_SEQUENCES, SERVED_TOKENS) / serve
        row = [f"{size} ({shape.name})", _gb(shape.num_parameters * INFERENCE_BYTES)]
        row += [f"{shape.kv_bytes_per_token // 1024} KiB", str(serve), _gb(served)]
        if size == "70B":
            row += ["-", "-", "-"]
        else:
            train = gpus_to_train(shape, machine.memory_bytes)
            row += [str(train), _gb(shape.training_bytes(train, TRAINED_TOKENS))]
            row += [_gb(shape.num_parameters * RESUME_BYTES)]
        rows.append(tuple(row))
    head = ("model", "bf16 weights", "KV cache a token", "GPUs to serve", "on each", "GPUs to train", "on each")
    return Grid(f"Memory on {machine.title}", (*head, "checkpoint to resume from"), tuple(rows))


def reference_plan(name: str, judge: str) -> Plan:
    """80,000 pairs with the reference's configuration of a judge, taught by a 70B model, on eight H100."""
    folder = resources.files("reasongenrm.pipelines") / "configs" / "reference"
    config = load_config(Path(str(folder)) / f"{name}.yaml")
    points = shipped_points()
    assumed = Assumptions(num_pairs=80_000)
    return make_plan(config, assumed, SHAPES[judge], SHAPES["70B"], points, points.machine("h100"), 8)


def hours_grid(plans: Sequence[tuple[str, Plan]]) -> Grid:
    """GPUs and hours of the stages that hold GPUs, plan beside plan, with low and high end where they are known."""
    head, columns = ["stage"], []
    for name, plan in plans:
        head += [f"GPUs, {name}", f"hours, {name}"]
        heavy = [stage for stage in plan.stages if stage.num_devices]
        columns.append([stage.stage for stage in heavy])
        columns.append([str(stage.num_devices) for stage in heavy])
        columns.append([_hours_and_span(stage.hours, stage.hours_low, stage.hours_high) for stage in heavy])
    rows = list(zip(columns[0], *(column for number, column in enumerate(columns) if number % 3), strict=True))
    totals = [plan.totals for _, plan in plans]
    spans = [("", _hours_and_span(total.hours, total.hours_low, total.hours_high)) for total in totals]
    rows.append(("**one after another**", *(text for span in spans for text in span)))
    rows.append(("**GPU-hours**", *(text for total in totals for text in ("", _hours(total.device_hours)))))
    return Grid("Hours", tuple(head), tuple(rows))


def install_tables() -> str:
    """The tables of docs/install.md: memory, and hours of the reference's 7B and 14B judge."""
    plans = [("7B", reference_plan("qwen2.5-7b", "7B")), ("14B", reference_plan("qwen2.5-14b", "14B"))]
    memory = memory_grid(shipped_points().machine("h100")).markdown()
    return f"{memory}\n\nHours for 80,000 pairs on 8 GPUs, taught by the 70B model:\n\n{hours_grid(plans).markdown()}\n"


def number(value: float) -> str:
    """Two or three digits that count: 0.012, 1.23, 45.6, 789, 12,000."""
    if value == 0:
        return "0"
    if value >= 999.5:
        digits = len(str(int(value))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def _hours(hours: float | None) -> str:
    """Hours with what counts of them: "-", "< 0.01", 0.25, 3.1, 120."""
    if hours is None:
        return "-"
    return (
        "< 0.01"
        if hours < 0.005
        else f"{hours:.2f}"
        if hours < 1
        else f"{hours:.1f}"
        if hours < 100
        else f"{hours:,.0f}"
    )


def _span(low: float | None, high: float | None) -> str:
    """4.2 and 21 become "4.2 to 21.0"; one figure where both say the same; "?" where nobody knows."""
    if low is None or high is None:
        return "?"
    return _hours(low) if _hours(low) == _hours(high) else f"{_hours(low)} to {_hours(high)}"


def _hours_and_span(hours: float | None, low: float | None, high: float | None) -> str:
    return f"{_hours(hours)} ({_span(low, high)})" if low is not None else _hours(hours)


def _beyond(stage: StageCost) -> str:
    if stage.beyond is None:
        return ""
    factors = (("N", stage.beyond.parameters), ("work", stage.beyond.work))
    return ", ".join(f"{name} x {number(factor)}" for name, factor in factors if factor > 1)


def _money(cost: float | None) -> str:
    return "-" if cost is None else f"{cost:,.2f}" if cost < 10 else f"{cost:,.0f}"


def _gb(num_bytes: float) -> str:
    gigabytes = num_bytes / 1e9
    return (
        ""
        if not num_bytes
        else "< 0.1 GB"
        if gigabytes < 0.1
        else f"{gigabytes:.1f} GB"
        if gigabytes < 10
        else f"{gigabytes:,.0f} GB"
    )


def _count(amount: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:.0f}"


def _work(stage: StageCost) -> str:
    work = stage.work
    if work.num_rows:
        return f"{_count(work.num_rows)} rows"
    if work.num_bytes:
        return _gb(work.num_bytes)
    return (
        f"{_count(work.num_reasons)} x {_count(work.reason_tokens / work.num_reasons)} tokens"
        if work.num_reasons
        else ""
    )


def _amount(point: MeasuredPoint) -> str:
    term = main_term(point.kind)
    amount = amounts(point.kind, point.model, point.work)[term]
    return f"{number(amount / 1e12)} TFLOP" if term == "flops" else f"{_count(amount)} {_UNITS[term]}"
