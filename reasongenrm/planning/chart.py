"""The points and their laws as one picture (SVG): a panel a law, seconds over work, both on logarithmic scales.

Measured points are dots, what the law says about them is a line through crosses, a line a model. On a straight line of
slope 1 cost is linear in work.
"""

import math
from collections.abc import Sequence
from html import escape

from reasongenrm.planning.fit import Law, amounts, main_term

WIDTH, HEIGHT, MARGIN, COLUMNS = 360, 280, 52, 2
COLOURS = ("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#5c5f66")
_WORK = {"flops": "FLOPs", "rows": "rows", "bytes": "bytes"}


def chart(laws: Sequence[Law]) -> str:
    """The picture as SVG text."""
    rows = math.ceil(len(laws) / COLUMNS)
    panels = "".join(
        f'<g transform="translate({number % COLUMNS * WIDTH},{number // COLUMNS * HEIGHT})">{_panel(law)}</g>\n'
        for number, law in enumerate(laws)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{HEIGHT * rows}" '
        f'viewBox="0 0 {WIDTH * COLUMNS} {HEIGHT * rows}" font-family="sans-serif" font-size="11" fill="#333">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{panels}</svg>\n'
    )


def _panel(law: Law) -> str:
    """One law: its grid, its points by model, its line."""
    work = [amounts(law.kind, point.model, point.work)[main_term(law.kind)] for point in law.points]
    measured = [point.seconds for point in law.points]
    x_axis, y_axis = _Axis(work, MARGIN, WIDTH - 16), _Axis([*measured, *law.fitted_seconds], HEIGHT - 40, 44)
    parts = [f'<text x="{MARGIN}" y="18" font-weight="bold">{escape(law.kind)} on {escape(law.machine)}</text>']
    growth = law.growth
    if growth:
        parts.append(f'<text x="{MARGIN}" y="33">seconds ~ work^{growth.of_work:.2f}</text>')
    for power in x_axis.powers:
        x = x_axis.place(10.0**power)
        parts.append(f'<path d="M{x},44V{HEIGHT - 40}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - 26}" text-anchor="middle">1e{power}</text>')
    for power in y_axis.powers:
        y = y_axis.place(10.0**power)
        parts.append(f'<path d="M{MARGIN},{y}H{WIDTH - 16}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{10.0**power:g} s</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{_WORK[main_term(law.kind)]}</text>')
    models = list(dict.fromkeys(point.model for point in law.points))
    for number, model in enumerate(models):
        colour = COLOURS[number % len(COLOURS)]
        its = sorted(n for n, point in enumerate(law.points) if point.model == model)
        its.sort(key=lambda n: work[n])
        line = " ".join(f"{x_axis.place(work[n])},{y_axis.place(law.fitted_seconds[n])}" for n in its)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for n in its:
            x, fitted = x_axis.place(work[n]), y_axis.place(law.fitted_seconds[n])
            parts.append(f'<path d="M{x - 3},{fitted - 3}l6,6m0,-6l-6,6" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x}" cy="{y_axis.place(measured[n])}" r="3.5" fill="{colour}"/>')
        if model:
            y = (
                HEIGHT - 48 - 14 * (len(models) - 1 - number)
            )  # to the lower right no point can be: seconds grow with work
            parts.append(
                f'<text x="{WIDTH - 20}" y="{y}" text-anchor="end" fill="{colour}">{escape(model.name)}</text>'
            )
    return "".join(parts)


class _Axis:
    """A logarithmic axis from `start` to `end` pixels that takes all values in, between powers of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self._low, self._high = low, max(high, low + 1)
        self._start, self._end = start, end
        self.powers = range(self._low, self._high + 1, max(1, (self._high - self._low) // 4))

    def place(self, value: float) -> float:
        """Pixels."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)
