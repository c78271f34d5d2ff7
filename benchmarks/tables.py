"""Results in words: a line a way while it runs, Markdown tables at the end, as docs/speed.md has them."""

from collections.abc import Sequence

from benchmarks.figures import Part, Report, Way

UNITS = {"sft": "examples/s", "dpo": "pairs/s", "scoring": "reasons/s"}
_SPEEDS = ("part", "way", "tokens/s", "slowest to fastest step", "steps", "each", "MFU", "peak GiB", "ours is")
_EQUALITY = ("what", "unit", "packed from plain", "plain from plain", "packed from exact", "plain from exact", "holds")


def last_line(part: Part) -> str:
    """What has just been measured."""
    where = f"{part.part:9} {part.shape:13}"
    if part.part == "equality":
        if not part.apart:
            return f"{where} {part.failed or 'skipped: needs a single process'}"
        return f"{where} {sum(apart.holds for apart in part.apart)} of {len(part.apart)} hold"
    way = part.ways[-1]
    if way.measured is None:
        return f"{where} {way.name:14} {way.status}: {way.message}"
    found = way.measured
    line = (
        f"{where} {way.name:14} {found.tokens_per_second:10,.0f} tokens/s ({found.slowest:,.0f} to "
        f"{found.fastest:,.0f} in {found.num_steps} steps)  {found.examples_per_second:8.2f} {UNITS[part.part]}  MFU "
        f"{_percent(found.mfu)}  {found.peak_memory_gib:.1f} GiB"
    )
    if found.before_examples:
        line += (
            f"; before: {found.before_seconds:.1f} s for {found.before_examples}, with it "
            f"{found.tokens_per_second_with_before:,.0f} tokens/s"
        )
    return line


def speed_table(report: Report) -> str:
    """Every way that was measured or left out, as Markdown."""
    return _table(_SPEEDS, [_row(part, way) for part in report.parts for way in part.ways])


def equality_table(report: Report) -> str:
    """How far packed and plain numbers are apart, as Markdown."""
    rows = []
    for apart in (apart for part in report.parts for apart in part.apart):
        numbers = (apart.ours, apart.spread, apart.error_ours, apart.error_plain)
        rows.append(
            [apart.what, apart.unit, *(f"{number:.1e}" for number in numbers), "yes" if apart.holds else "**no**"]
        )
    return _table(_EQUALITY, rows)


def render_markdown(report: Report) -> str:
    """The report: the command, the machine, both tables, what failed."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    processes = f"{machine.num_processes} x " if machine.num_processes > 1 else ""
    pieces = [
        f"`{report.command}`",
        f"{processes}{machine.device}; peak {machine.peak_tflops:,.4g} TFLOP/s ({machine.peak_how}); {versions}; "
        f"commit {machine.commit}; {report.started}; {report.seconds:.0f} s; load at the start "
        f"{machine.load_average:.1f}.",
    ]
    if any(part.ways for part in report.parts):
        pieces.append(speed_table(report))
    if any(part.apart for part in report.parts):
        pieces.append(equality_table(report))
    pieces += [f"Failed: {failure}" for failure in report.failures]
    return "\n\n".join(pieces) + "\n"


def _row(part: Part, way: Way) -> list[str]:
    """In brackets: with the pass of the reference model, which ours does before the first step and TRL in every
    step."""
    name = f"{part.part}, {part.shape}"
    if way.measured is None:
        return [name, way.name, way.status, way.message, *[""] * 5]
    found = way.measured
    ratio = next((ratio for ratio in part.ratios if ratio.peer == way.name), None)
    with_before = any(other.measured and other.measured.before_examples for other in part.ways)
    also = f" ({ratio.ratio_with_before:.2f} x)" if ratio and with_before else ""
    rate = f"{found.tokens_per_second:,.0f}"
    if found.before_examples:
        rate += f" ({found.tokens_per_second_with_before:,.0f})"
    return [
        name,
        way.name,
        rate,
        f"{found.slowest:,.0f} to {found.fastest:,.0f}",
        str(found.num_steps),
        f"{found.examples_per_second:,.3g} {UNITS[part.part]}",
        _percent(found.mfu),
        f"{found.peak_memory_gib:.1f}",
        f"{ratio.ratio:.2f} x{also}" if ratio else "",
    ]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns also line up in a terminal."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
