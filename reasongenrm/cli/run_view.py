"""How a run looks: a line when a task starts and when it ends, the running task's own lines below.

On a terminal the last line is alive: the running task, a bar, its rate and time left, and how long it has been at work.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from reasongenrm.store.run_records import TaskRecord

_PROGRESS = re.compile(r"[^:]+: (?P<done>\d+)/(?P<total>\d+) (?P<rest>.+)")  # Tracker.line in progress.py
_SKIPPED_LINES = (" wrote s3://", " reused s3://")  # the task's closing line says as much


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
            said = f"{found['done']}/{found['total']} {found['rest']}"
            self._bar.update(
                self._row, total=int(found["total"]), completed=int(found["done"]), said=said, refresh=True
            )
        elif not any(skipped in line for skipped in _SKIPPED_LINES):
            self._print(f"{' ' * len(self._place)}   {line}", style="dim")

    def task_ended(self, task: TaskRecord) -> None:
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
