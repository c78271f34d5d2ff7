"""The report as one self-contained HTML page: no script, no request, light and dark.

In goes a `Report`, out comes HTML. Texts of questions, answers and judges are hostile input: the template escapes
everything, and the page's own policy forbids scripts and requests besides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from reasongenrm.data.sections import SECTIONS
from reasongenrm.evaluation.gallery import KINDS, OrderCase
from reasongenrm.evaluation.reference import FOOTNOTE
from reasongenrm.evaluation.report import Curve, Report
from reasongenrm.variants import BASE, VARIANTS, learns_preferences, variant_label

SHOWN_CHARS = 600  # of a long text before the fold
KEPT_CHARS = 8000  # of a long text in the page; the rest is in the evaluation's own files
MAX_POINTS = 300  # of one curve

_CURVE_TITLES = {
    "loss": "loss",
    "margin": "reward margin, chosen minus rejected",
    "accuracy": "share of pairs ordered rightly",
}
# Where a policy stands that prefers neither reason: sigmoid DPO loss log 2, no margin, half of the pairs by chance.
_DPO_BASELINES = {"loss": math.log(2), "margin": 0.0, "accuracy": 0.5}
_KIND_TITLES = {
    "flipped": "order flips the verdict",
    "wrong": "wrong in both orders",
    "unparsed": "no verdict",
    "truncated": "cut off before a verdict",
}


class Tick(NamedTuple):
    """A line of a plot's grid: its place in percent of the height from the top, and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class Plot:
    """One curve in a box of 100 by 100, which the page stretches."""

    curve: Curve  # what is plotted
    title: str
    points: str  # "x,y x,y ..." of the logged values
    smooth: str  # the same of their trailing mean, "" if there are too few
    window: int  # how many steps that mean takes in
    ticks: tuple[Tick, ...]  # of the y axis
    baseline: float | None  # place of the value before training, if that is known and within the box


def render_html(report: Report) -> str:
    """The page."""
    subject = report.subject
    base = next((evaluation for evaluation in report.evaluations if evaluation.variant == BASE), None)
    return _template().render(
        report=report,
        subject=subject,
        benchmark=subject.benchmark,
        known=[VARIANTS[evaluation.variant] for evaluation in report.evaluations if evaluation.variant in VARIANTS],
        base_unread=base.unparsed_fraction if base else 0.0,
        base_held=base.held if base else None,
        sections=[section.section for section in subject.sections],
        section_weights=SECTIONS,
        # A benchmark without sections has its subsets under one heading.
        groups={section.section: section.subsets for section in subject.sections}
        or {"": [score.subset for score in subject.subsets]},
        plots=[plot(curve) for curve in report.curves],
        cases={variant: [c for c in report.cases if c.variant == variant] for variant in report.case_counts},
        kinds=KINDS,
        kind_titles=_KIND_TITLES,
        published={name: list(rows) for name, rows in groupby(report.published, lambda row: row.backbone)},
        footnote=FOOTNOTE,
        shown_chars=SHOWN_CHARS,
        kept_chars=KEPT_CHARS,
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "variant_label": variant_label,
        "published_label": lambda variant: "Instruct (base)" if variant == BASE else variant_label(variant),
        "short_name": lambda variant: variant_label(variant).removeprefix("ReasonGenRM-"),
        "excerpt": _excerpt,
        "unbroken": lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
    }
    environment.globals |= {"verdict_in_words": _verdict_in_words, "is_known": lambda variant: variant in VARIANTS}
    source = resources.files("reasongenrm.evaluation") / "report_templates" / "report.html.j2"
    return environment.from_string(source.read_text(encoding="utf-8"))


def plot(curve: Curve) -> Plot:
    """Geometry of one curve."""
    stride = max(1, math.ceil(len(curve.steps) / MAX_POINTS))
    steps, values = curve.steps[::stride], curve.values[::stride]
    baseline = _DPO_BASELINES[curve.name] if learns_preferences(curve.variant) else None
    shown = values if baseline is None else (*values, baseline)
    ticks = nice_ticks(min(shown), max(shown))
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float:
        return round(100 * (high - value) / (high - low), 2)

    def path(heights: Sequence[float]) -> str:
        width = max(steps[-1] - steps[0], 1)
        return " ".join(
            f"{round(100 * (step - steps[0]) / width, 2):g},{place(value):g}"
            for step, value in zip(steps, heights, strict=True)
        )

    window = len(values) // 12
    return Plot(
        curve=curve,
        title=_CURVE_TITLES[curve.name],
        points=path(values),
        smooth=path(trailing_mean(values, window)) if window > 1 else "",
        window=window * stride,
        ticks=tuple(Tick(place(tick), f"{tick:.6g}") for tick in ticks),
        baseline=None if baseline is None else place(baseline),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Up to six round numbers, evenly spaced, that take `low` and `high` in; a label of six digits tells them apart."""
    size = max(abs(low), abs(high))
    span = (high - low if high - low > size / 1000 else size) or 1.0  # nearly constant counts as constant
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor * 4 >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def trailing_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and those before it, `window` values in all."""
    return [sum(values[max(0, end - window) : end]) / (end - max(0, end - window)) for end in range(1, len(values) + 1)]


def _percent(value: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float) -> str:
    """A difference of accuracies in percentage points, with its sign (a real minus sign)."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _excerpt(text: str) -> tuple[str, str, int]:
    """A text's beginning, its continuation behind the fold, and how many characters were left out of the page."""
    if len(text) <= SHOWN_CHARS * 1.25:
        return text, "", 0
    cut = text.rfind(" ", SHOWN_CHARS // 2, SHOWN_CHARS)
    cut = SHOWN_CHARS if cut < 0 else cut
    return text[:cut], text[cut:KEPT_CHARS], max(0, len(text) - KEPT_CHARS)


def _verdict_in_words(order: OrderCase) -> str:
    """What the judge said about one order, in terms of the answers."""
    if order.verdict is None:
        return "cut off before a verdict" if order.truncated else "no verdict"
    return "chose the better answer" if order.verdict == order.label else "chose the other answer"
