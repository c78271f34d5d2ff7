"""The results as one picture: tokens/s and MFU of every way, in SVG without any library, legible on light and on dark pages."""

from collections.abc import Iterator
from html import escape

from benchmarks.figures import OURS, Part, Report, Way

WIDTH, ROW, GAP, HEAD = 880, 26, 34, 62
NAME_X, RATE_X, MFU_X, RATIO_X = 24, 150, 560, 800
RATE_WIDTH, MFU_WIDTH = 250, 130
TITLES = {
    "sft": "SFT, tokens/s",
    "dpo": "DPO, tokens/s of the plain method",
    "scoring": "Scoring, tokens/s with each prompt counted once",
}
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 14px } .note { fill: #656d76; font-size: 12px } .ratio { font-weight: 600 }
  .ours { fill: #1a7f37 } .peer { fill: #8c959f } .axis { fill: #d8dee4 } .page { fill: #ffffff }
"""


def render_svg(report: Report) -> str:
    """The picture of a report's measured parts."""
    parts = [part for part in report.parts if part.ways]
    height = HEAD + sum(GAP + ROW * len(part.ways) for part in parts) + 16
    machine = report.machine
    processes = f"{machine.num_processes} x " if machine.num_processes > 1 else ""
    peak = f"{processes}{machine.device}, measured peak {machine.peak_tflops:,.4g} TFLOP/s ({machine.peak_how})"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>Speed of ReasonGenRM against its peers on {escape(machine.device)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text(NAME_X, 28, "Speed in one run", "title"),
        _text(NAME_X, 48, peak, "note"),
        _text(MFU_X, 28, "MFU", "title"),
        _text(RATIO_X, 28, "ours is", "title"),
    ]
    y = HEAD
    for part in parts:
        lines += _part(part, y)
        y += GAP + ROW * len(part.ways)
    return "\n".join([*lines, "</svg>", ""])


def _part(part: Part, y: int) -> Iterator[str]:
    title = f"{TITLES[part.part]}: {part.shape}, {part.num_parameters / 1e6:,.4g}M parameters, {part.dtype}"
    yield _text(NAME_X, y + 20, title, "title")
    rates = [way.measured.tokens_per_second for way in part.ways if way.measured]
    for number, way in enumerate(part.ways):
        yield from _way(part, way, y + GAP + ROW * number, max(rates, default=1.0))


def _way(part: Part, way: Way, y: int, fastest: float) -> Iterator[str]:
    kind = "ours" if way.name == OURS else "peer"
    yield _text(NAME_X, y + 14, way.name)
    if way.measured is None:
        yield _text(RATE_X, y + 14, f"{way.status}: {way.message}"[:100], "note")
        return
    rate = way.measured.tokens_per_second
    yield from _bar(RATE_X, y, RATE_WIDTH, rate / fastest, kind, f"{rate:,.0f}")
    yield from _bar(MFU_X, y, MFU_WIDTH, way.measured.mfu, kind, f"{100 * way.measured.mfu:.1f} %")
    ratio = next((ratio.ratio for ratio in part.ratios if ratio.peer == way.name), None)
    if ratio is not None:
        yield _text(RATIO_X, y + 14, f"{ratio:.2f} x", "ratio")


def _bar(x: int, y: int, width: int, fraction: float, kind: str, label: str) -> Iterator[str]:
    length = max(1.0, width * min(fraction, 1.0))
    yield f'<rect class="axis" x="{x}" y="{y}" width="{width}" height="{ROW - 8}" rx="2"/>'
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="{ROW - 8}" rx="2"/>'
    yield _text(x + width + 8, y + 14, label)


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>'
