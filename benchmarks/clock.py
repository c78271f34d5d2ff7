"""Time, memory and the peak of the device: what every way is measured with."""

import gc
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.figures import Step
from benchmarks.work import Amount
from benchmarks.world import World

MATMUL_SIZE = {"cuda": 8_192, "cpu": 2_048}
MATMUL_SECONDS = 1.0
RSS_EVERY_SECONDS = 0.02
MIN_STEPS = 3


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured_peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(10^12 FLOP/s, how) of the fastest half of many products of two square random matrices: their median."""
    size = MATMUL_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    seconds: list[float] = []
    end = time.perf_counter() + MATMUL_SECONDS
    while time.perf_counter() < end or len(seconds) < 4:
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    fastest = sorted(seconds)[: len(seconds) // 2]
    name = str(dtype).removeprefix("torch.")
    return 2 * size**3 / statistics.median(fastest) / 1e12, f"{name} matrix product, {size:,} cubed"


class Memory:
    """The most memory that this process held while the context lasted, in GiB: of the GPU, else resident."""

    def __init__(self, device: torch.device) -> None:
        self.peak_gib = 0.0
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        free(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._device.type == "cuda":
            self.peak_gib = torch.cuda.max_memory_allocated(self._device) / 2**30
        else:
            self._stop.set()
            self._thread.join()
            self._look()  # what is over sooner than the first look counts too

    def _watch(self) -> None:
        while not self._stop.wait(RSS_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        self.peak_gib = max(self.peak_gib, psutil.Process().memory_info().rss / 2**30)


@dataclass(frozen=True)
class Budget:
    """How long a way is measured: after `warmup` steps, until `seconds` have passed or `max_steps` are measured.

    At least `MIN_STEPS` are, or `max_steps` if these are fewer: rows differ from step to step.
    """

    seconds: float
    warmup: int
    max_steps: int

    def is_spent(self, steps: int, seconds: float) -> bool:
        """Whether to stop after this number of measured steps and this time."""
        return steps >= self.max_steps or (steps >= MIN_STEPS and seconds >= self.seconds)


def measured_step(seconds: float, amount: Amount) -> Step:
    """A step that took so long."""
    return Step(seconds=seconds, tokens=amount.tokens, examples=amount.examples, work=amount.work)


class StepClock(TrainerCallback):
    """Times the optimizer steps of a Trainer, and ends its training when the budget is spent.

    Args:
        amounts: of every step over all processes.
    """

    def __init__(self, budget: Budget, amounts: list[Amount], world: World, device: torch.device) -> None:
        self.steps: list[Step] = []
        self._budget, self._amounts, self._world, self._device = budget, amounts, world, device
        self._last = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        synchronise(self._device)
        self._last = time.perf_counter()

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        control.should_save = False  # a Trainer saves at its last step
        synchronise(self._device)
        now = time.perf_counter()
        # Processes wait for each other in every step; the slowest one's clock holds for all of them.
        seconds = self._world.largest(now - self._last)
        self._last = now
        number = state.global_step - 1
        if number >= self._budget.warmup:
            self.steps.append(measured_step(seconds, self._amounts[number]))
        if self._budget.is_spent(len(self.steps), sum(step.seconds for step in self.steps)):
            control.should_training_stop = True


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """A list that holds the seconds of the context once that has ended."""
    synchronise(device)
    seconds: list[float] = []
    started = time.perf_counter()
    yield seconds
    synchronise(device)
    seconds.append(time.perf_counter() - started)
