"""How runs and results look in a terminal: a run while it goes on, the table of variants, one judged pair.

On a terminal a run's last line is alive: the running task, a bar, its rate and time left, and how long it has been at
work.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from reasongenrm.evaluation.metrics import Evaluation
    from reasongenrm.judge.api import PairwiseResponse
    from reasongenrm.store.run_records import TaskRecord

_PROGRESS = re.compile(r"[^:]+: (?P<done>\d+)/(?P<total>\d+) (?P<rest>.+)")  # Tracker.line in progress.py
_SKIPPED_LINES = (" wrote s3://", " reused s3://")  # the task's closing line says as much
_MAX_REASON_CHARS = 1200
_BAR_CHARS = 40


def evaluations_table(evaluations: "Sequence[Evaluation]") -> Table:
    """Judges side by side, under the benchmark's name; the best one is bold."""
    first = evaluations[0]
    coverage = first.benchmark.coverage
    partial = "partial benchmark, " if coverage and coverage.is_partial else ""
    title = f"{first.benchmark.name}: {partial}{first.benchmark.num_rows:,} rows, both orders"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    (judge, *others), rows = evaluation_cells(evaluations)
    table.add_column(judge, no_wrap=True)
    for column in others:
        table.add_column(Text("\n".join(column.split())), justify="right", no_wrap=True)
    best = max(evaluation.accuracy for evaluation in evaluations)
    for evaluation, cells in zip(evaluations, rows, strict=True):
        table.add_row(*cells, style="bold" if evaluation.accuracy == best else "")
    return table


def evaluation_cells(evaluations: "Sequence[Evaluation]") -> tuple[list[str], list[list[str]]]:
    """Headings and a row per judge: accuracy with its interval, sections, and what a served judge lives or dies by."""
    from reasongenrm.variants import variant_label

    first = evaluations[0]
    sections = [section.section for section in first.sections]
    interval = f"{first.confidence:.0%} interval"
    columns = ["judge", "accuracy", interval, *sections, "consistent", "unparsed", "tokens", "seconds"]
    rows = []
    for evaluation in evaluations:
        by_section = {section.section: section.accuracy for section in evaluation.sections}
        rows.append(
            [
                variant_label(evaluation.variant),
                percent(evaluation.accuracy),
                f"{percent(evaluation.interval.low)}-{percent(evaluation.interval.high)}",
                *(percent(by_section[section]) for section in sections),
                percent(evaluation.consistent_fraction),
                percent(evaluation.unparsed_fraction),
                f"{evaluation.mean_output_tokens:.0f}",
                f"{evaluation.mean_seconds:.2f}",
            ]
        )
    return columns, rows


def percent(fraction: float) -> str:
    """A fraction in percent, one digit."""
    return f"{100 * fraction:.1f}"


def judgment_panel(asked: Mapping[str, str], judgment: "PairwiseResponse", judge: str) -> RenderableType:
    """What a judge says about a pair: each generation's reason, the verdict of all, and p_a as a bar."""
    headings = {"question": "Question", "answer_a": "Answer A", "answer_b": "Answer B"}
    parts: list[RenderableType] = [_part(heading, asked[name]) for name, heading in headings.items()]
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
        line = Table.grid(padding=(0, 1))
        label = f"P(A better) {judgment.p_a:.3f}, {'' if judgment.calibrated else 'not '}calibrated"
        bar = Bar(1.0, 0.0, judgment.p_a, width=_BAR_CHARS, color="green", bgcolor="bright_black")
        line.add_row("B", bar, "A", label)
        parts.append(line)
    decided = judgment.preferred in ("A", "B")
    if decided:
        words = f"Answer {judgment.preferred}" + (", in both orders." if judgment.consistent else ".")
    elif judgment.preferred == "tie":
        words = "A tie: the answers are equal." if judgment.consistent else "A tie: the two orders do not agree."
    else:
        words = "No verdict could be read."
    parts.append(Text(words, style="bold green" if decided else "bold yellow"))
    return Panel(Group(*parts), title=Text(judge), title_align="left")


def _part(heading: str, text: str) -> Text:
    shown = textwrap.shorten(text, _MAX_REASON_CHARS, placeholder=" [...]") if len(text) > _MAX_REASON_CHARS else text
    return Text(f"{heading}: ", style="bold").append(shown.strip(), style="not bold")


class ConsoleRunView:
    """Prints a run to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._row = self._bar.add_task("starting the pipeline", total=None, said="")
        self._place = ""

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the last line of a terminal up to date while the context is open."""
        if not self._console.is_terminal:
            yield
            return
        with self._bar:
            yield

    def task_started(self, name: str, number: int, total: int) -> None:
        """A task has started."""
        self._place = f"[{number:2}/{total}]"
        if self._console.is_terminal:
            self._bar.reset(self._row, description=f"{self._place} {name}", total=None, said="")
        else:
            self._print(f"{self._place} {name}")

    def task_line(self, line: str) -> None:
        """The running task wrote a line."""
        found = _PROGRESS.fullmatch(line)
        if found and self._console.is_terminal:
            done, total = int(found["done"]), int(found["total"])
            said = f"{done}/{total} {found['rest']}"
            self._bar.update(self._row, total=total, completed=done, said=said, refresh=True)
        elif not any(skipped in line for skipped in _SKIPPED_LINES):
            self._print(f"{' ' * len(self._place)}   {line}", style="dim")

    def task_ended(self, task: "TaskRecord") -> None:
        """The running task ended well."""
        how = "reused" if task.reused else f"done in {clock(task.seconds)}"
        mark = Text("= " if task.reused else "+ ", style="cyan" if task.reused else "green")
        line = Text(f"{self._place} ").append_text(mark).append(task.name, style="bold").append(f": {how}")
        counts = [f"{task.ref.counts[name]:,} {name[4:]}" for name in ("num_in", "num_out") if name in task.ref.counts]
        self._console.print(line.append(f"; {', '.join(counts)}" if counts else ""), soft_wrap=True)

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds for people: 4.2 s, 3:07 min, 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
