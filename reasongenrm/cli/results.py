"""How results look in a terminal: the table of variants, one judged pair."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from reasongenrm.evaluation.judge_pair import PairJudgment
    from reasongenrm.evaluation.metrics import Evaluation
    from reasongenrm.judge.api import PairwiseResponse

_MAX_REASON_CHARS = 1200
_BAR_CHARS = 40


def evaluations_table(evaluations: "Sequence[Evaluation]") -> Table:
    """Judges side by side: accuracy with its interval, sections, and what a served judge lives or dies by."""
    from reasongenrm.evaluation.metrics import variant_name

    first = evaluations[0]
    coverage = first.benchmark.coverage
    partial = "partial benchmark, " if coverage and coverage.is_partial else ""
    title = f"{first.benchmark.name}: {partial}{first.benchmark.num_rows:,} rows, both orders"
    sections = [section.section for section in first.sections]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("judge", no_wrap=True)
    interval = f"{first.confidence:.0%} interval"
    for column in ("accuracy", interval, *sections, "consistent", "unparsed", "tokens", "seconds"):
        table.add_column(Text("\n".join(column.split())), justify="right", no_wrap=True)
    best = max(evaluation.accuracy for evaluation in evaluations)
    for evaluation in evaluations:
        by_section = {section.section: section.accuracy for section in evaluation.sections}
        cells = [
            percent(evaluation.accuracy),
            f"{percent(evaluation.interval.low)}-{percent(evaluation.interval.high)}",
            *(percent(by_section[section]) for section in sections),
            percent(evaluation.consistent_fraction),
            percent(evaluation.unparsed_fraction),
            f"{evaluation.mean_output_tokens:.0f}",
            f"{evaluation.mean_seconds:.2f}",
        ]
        table.add_row(variant_name(evaluation.variant), *cells, style="bold" if evaluation.accuracy == best else "")
    return table


def percent(fraction: float) -> str:
    """A fraction in percent, one digit."""
    return f"{100 * fraction:.1f}"


def pair_panel(question: str, answer_a: str, answer_b: str, judgment: "PairJudgment", judge: str) -> RenderableType:
    """One judged pair: the question, the answers, each order's reason and verdict, and what both orders agree on."""
    parts: list[RenderableType] = [
        _part("Question", question),
        _part("Answer A", answer_a),
        _part("Answer B", answer_b),
    ]
    orders = (("as given", judgment.given), ("answers swapped", judgment.swapped))
    for (order, found), verdict in zip(orders, judgment.verdicts, strict=True):
        parts.append(Text())
        if found.reason is not None:
            parts.append(_part(f"Reason ({order})", found.reason))
        said = (
            f"{found.verdict}, answer {verdict[2]} as given" if found.verdict and verdict else f"none: {found.answer!r}"
        )
        parts.append(_part(f"Verdict ({order})", said))
    agreed = f"Answer {judgment.preferred}, in both orders." if judgment.preferred else "The two orders do not agree."
    parts += [Text(), Text(agreed, style="bold green" if judgment.preferred else "bold yellow")]
    return Panel(Group(*parts), title=Text(judge), title_align="left")


def judgment_panel(
    question: str, answer_a: str, answer_b: str, judgment: "PairwiseResponse", judge: str
) -> RenderableType:
    """What a judge service says about a pair: each generation's reason, what is said in all, and p_a as a bar."""
    parts: list[RenderableType] = [
        _part("Question", question),
        _part("Answer A", answer_a),
        _part("Answer B", answer_b),
    ]
    several = any(one.vote for one in judgment.judgments)
    for one in judgment.judgments:
        order = "as given" if one.order == "given" else "answers swapped: its A is your B"
        where = f"{order}, vote {one.vote + 1}" if several else order
        said = f"answer {one.preferred} as given" if one.preferred else "none could be read"
        sure = "" if one.p_a is None else f", P(A better) {one.p_a:.3f}"
        cut_off = ", cut off by the token limit" if one.truncated else ""
        parts += [Text(), _part(f"Reason ({where})", one.reason or "none")]
        parts.append(_part("Verdict", f"{said}{sure}{cut_off}"))
    parts.append(Text())
    for cut in judgment.cuts:
        parts.append(Text(f"{cut.num_chars:,} characters of {cut.field} were left out in the middle.", style="yellow"))
    if judgment.p_a is not None:
        bar = Table.grid(padding=(0, 1))
        calibrated = "calibrated" if judgment.calibrated else "not calibrated"
        label = f"P(A better) {judgment.p_a:.3f}, {calibrated}"
        bar.add_row(
            "B", Bar(1.0, 0.0, judgment.p_a, width=_BAR_CHARS, color="green", bgcolor="bright_black"), "A", label
        )
        parts.append(bar)
    words = {
        "A": "Answer A" + (", in both orders." if judgment.consistent else "."),
        "B": "Answer B" + (", in both orders." if judgment.consistent else "."),
        "tie": "A tie: the answers are equal." if judgment.consistent else "A tie: the two orders do not agree.",
        None: "No verdict could be read.",
    }
    decided = judgment.preferred in ("A", "B")
    parts.append(Text(words[judgment.preferred], style="bold green" if decided else "bold yellow"))
    return Panel(Group(*parts), title=Text(judge), title_align="left")


def _part(heading: str, text: str) -> Text:
    shown = textwrap.shorten(text, _MAX_REASON_CHARS, placeholder=" [...]") if len(text) > _MAX_REASON_CHARS else text
    return Text(f"{heading}: ", style="bold").append(shown.strip(), style="not bold")
