"""How a run looks: one line a task when it starts and when it ends, the running task's own lines below it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

from reasongenrm.runs import TaskRecord

_SKIPPED_LINES = (" wrote s3://", " reused s3://")  # the task's closing line says as much


class ConsoleRunView:
    """Prints a run to a console; on a terminal its last line tells the running task and its time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._number, self._total, self._started = 0, 0, time.monotonic()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the last line of a terminal up to date while the context is open."""
        if not self._console.is_terminal:
            yield
            return
        with Status("starting the pipeline", console=self._console) as self._status:
            yield

    def task_started(self, name: str, number: int, total: int) -> None:
        """A task has started."""
        self._number, self._total, self._started = number, total, time.monotonic()
        if self._status:
            self._status.update(Text(f"{self._place()} {name}"))
        else:
            self._print(f"{self._place()} {name}")

    def task_line(self, line: str) -> None:
        """The running task wrote a line."""
        if not any(skipped in line for skipped in _SKIPPED_LINES):
            self._print(f"{' ' * len(self._place())}   {line}", style="dim")

    def task_ended(self, task: TaskRecord) -> None:
        """The running task ended well."""
        counts = ", ".join(f"{n:,} {name.removeprefix('num_')}" for name, n in _in_and_out(task.ref.counts))
        how = "reused" if task.reused else f"done in {clock(task.seconds)}"
        mark = Text("= " if task.reused else "+ ", style="cyan" if task.reused else "green")
        line = Text(f"{self._place()} ").append_text(mark).append(task.name, style="bold").append(f": {how}")
        self._console.print(line.append(f"; {counts}" if counts else ""), soft_wrap=True)

    def _place(self) -> str:
        return f"[{self._number:2}/{self._total}]"

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style=style), soft_wrap=True)


def _in_and_out(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in counts.items() if name in ("num_in", "num_out")]


def clock(seconds: float) -> str:
    """Seconds for people: 4.2 s, 3:07 min, 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
