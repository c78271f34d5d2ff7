"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere.

Stages run as subprocesses and in pods, where a log is read line by line, so both forms say the same things.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


class Tracker:
    """Counts finished units of one piece of work."""

    def __init__(self, name: str, total: int, unit: str, bar: Progress | None) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._done_before = 0
        self._started = self._last_line = time.monotonic()
        self._bar = bar
        self._task = bar.add_task(name, total=total, rate="") if bar else None
        self._figures = ""

    def start_at(self, done: int) -> None:
        """Units that an earlier run finished: shown as done, left out of the rate."""
        self.done = self._done_before = done
        self._show()

    def advance(self, num: int = 1, **figures: float) -> None:
        """Count `num` finished units; `figures` (a loss, a count) are shown with them."""
        self.done += num
        if figures:
            self._figures = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._show()

    def _rate(self) -> float:
        return (self.done - self._done_before) / max(time.monotonic() - self._started, 1e-9)

    def _show(self) -> None:
        if self._bar is not None and self._task is not None:
            rate = f"{self._rate():.2g} {self.unit}/s  {self._figures}"
            self._bar.update(self._task, completed=self.done, rate=rate)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS or (self.done >= self.total and self.done > self._done_before):
            self._last_line = now
            print(self.line(), flush=True)  # noqa: T201 - this is the log line

    def line(self) -> str:
        """One line of log: done, total, rate, time left."""
        rate = self._rate()
        left = f"{_clock((self.total - self.done) / rate)} left" if rate > 0 else "-"
        parts = [f"{self.name}: {self.done}/{self.total} {self.unit}", f"{rate:.2g} {self.unit}/s", left]
        return "  ".join([*parts, self._figures] if self._figures else parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


T = TypeVar("T")


def tracked(items: Sequence[T], name: str, unit: str) -> Iterator[T]:
    """The items, one after another, each counted when the next one is asked for."""
    with track(name, total=len(items), unit=unit) as tracker:
        for item in items:
            yield item
            tracker.advance()


@contextmanager
def track(name: str, total: int, unit: str) -> Iterator[Tracker]:
    """Show the progress of `total` units of work called `name`; `unit` is a singular noun ("reason", "step")."""
    if not sys.stderr.isatty():
        yield Tracker(name, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Tracker(name, total, unit, bar)
