"""An estimate as people read it: the answer first, then a table of the stages, then what the figures rest on."""

from reasongenrm.planning.estimate import Range, RunEstimate, StageEstimate
from reasongenrm.planning.measurements import Machine, Measurement, Measurements


def answer(estimate: RunEstimate) -> list[str]:
    """Hours, GPU-hours, money and storage of the whole run, and the GPUs that the models need."""
    device = "GPU" if estimate.machine.memory_bytes else "CPU"
    where = f"{estimate.num_devices} x {estimate.machine.title}" if device == "GPU" else estimate.machine.title
    price = f", which cost {span(estimate.cost)} at {estimate.price:g} per {device}-hour" if estimate.cost else ""
    unmeasured = all(one.machine != estimate.machine.name for one in estimate.measurements)
    how = "not measured there, scaled by the published peak" if unmeasured else "one stage after another"
    lines = [
        f"{span(estimate.hours)} hours on {where}, {how}",
        f"{span(estimate.device_hours)} {device}-hours{price}",
        f"{size(estimate.kept_bytes)} stay in the store, which holds at most {size(estimate.peak_bytes)} at a time",
    ]
    for model in estimate.memory:
        kv = f"KV {model.kv_bytes_per_token / 1024:g} KiB per token"
        line = f"{model.name}: weights {size(model.weights_bytes)}, {kv}; serving "
        line += _gpus(model.serving_gpus, model.serving_bytes)
        if model.training_gpus:
            line += f"; training {_gpus(model.training_gpus, model.training_bytes)}"
            line += f", checkpoints {size(model.checkpoint_bytes)}"
        lines.append(line)
    return lines


def stage_table(estimate: RunEstimate) -> tuple[list[str], list[list[str]]]:
    """Head and rows: every stage, in the order of the run."""
    device = "GPU" if estimate.machine.memory_bytes else "CPU"
    head = ["stage", "work", f"{device}s", "hours", f"{device}-hours", "store", "cost", "rests on"]
    rows = [
        [
            stage.stage,
            _work(stage),
            str(stage.num_devices or "-"),
            span(stage.hours) if stage.hours else "-",
            number(stage.device_hours.expected) if stage.num_devices else "-",
            size(stage.kept_bytes) if stage.kept_bytes else "-",
            number(stage.cost.expected) if stage.cost and stage.num_devices else "-",
            _basis(stage),
        ]
        for stage in estimate.stages
    ]
    if estimate.price is None:
        head, rows = head[:6] + head[7:], [row[:6] + row[7:] for row in rows]
    return head, rows


def basis_lines(estimate: RunEstimate, machines: Measurements) -> list[str]:
    """What the numbers in brackets are, and what is not estimated."""
    used = [_measurement(one, machines.machine(one.machine)) for one in estimate.measurements]
    missing = ", ".join(stage.stage for stage in estimate.stages if stage.hours is None)
    return [
        *(f"[{number}] {line}" for number, line in enumerate(used, start=1)),
        "N x 2: a model of twice the parameters of the measured one. In parentheses: from low to high.",
        f"Not estimated: {missing} (seconds, a wait for the cluster, or an endpoint's work).",
    ]


def number(value: float) -> str:
    """Two digits that count: < 0.01, 0.25, 3.1, 12, 1,200."""
    if 0 < value < 1:
        return "< 0.01" if value < 0.01 else f"{value:.2f}"
    return f"{float(f'{value:.2g}'):,.10g}"


def span(found: Range) -> str:
    """12 (4.5 to 33); one figure where all three read the same."""
    expected, low, high = map(number, (found.expected, found.low, found.high))
    return expected if low == high else f"{expected} ({low} to {high})"


def size(num_bytes: float) -> str:
    """In GB."""
    return "< 0.1 GB" if num_bytes < 1e8 else f"{number(num_bytes / 1e9)} GB"


def _gpus(num_gpus: int, bytes_each: float) -> str:
    return f"{num_gpus} GPU{'s' * (num_gpus > 1)} x {size(bytes_each)}"


def _count(amount: float) -> str:
    """60, 2.56M; from a thousand on three digits."""
    scale, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if amount >= s), (1.0, ""))
    return f"{amount / scale:.3g}{unit}" if unit else f"{amount:.0f}"


def _work(stage: StageEstimate) -> str:
    work = stage.work
    if work.num_reasons:
        return f"{_count(work.num_reasons)} x {_count(work.reason_tokens / work.num_reasons)} tokens"
    return f"{_count(work.num_rows)} rows" if work.num_rows else size(work.num_bytes) if work.num_bytes else "-"


def _basis(stage: StageEstimate) -> str:
    """[2] N x 9.3."""
    if stage.basis is None:
        return "-"
    scales = (("N", stage.basis.model_scale), ("peak", stage.basis.peak_scale))
    scaled = [f"{name} x {scale:.2g}" for name, scale in scales if f"{scale:.2g}" != "1"]
    return " ".join([f"[{stage.basis.measurement}]", ", ".join(scaled)]).strip()


def _measurement(one: Measurement, machine: Machine) -> str:
    if one.model is None:
        rate = f"{one.throughput / 1e6:,.0f} MB/s" if one.work.num_bytes else f"{number(one.throughput)} rows/s"
        what = machine.title
    else:
        rate = f"{number(one.throughput / 1e12)} TFLOP/s, {number(one.work.num_tokens / one.seconds)} tokens/s"
        if machine.peak_tflops:
            rate += f", {one.throughput / machine.peak_tflops / 1e10:.0f} % of peak"
        what = f"{one.model.name} on {machine.title}"
    return f"{one.kind}: {what}, {rate} ({one.version or 'prototype'}, {one.date})"
