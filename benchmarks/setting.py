"""What all ways of a part share: the shape, the processes, the budget; and the loop that times a Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PrinterCallback

from benchmarks.clock import Budget, StepClock, measured_step, timed
from benchmarks.figures import Step
from benchmarks.shapes import Shape
from benchmarks.work import Amount, scoring_amount
from benchmarks.world import World
from reasongenrm.config import ScoreConfig
from reasongenrm.reasons.candidates import Row

Settings = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Setting:
    """One part of one run.

    Attributes:
        scratch: a folder for what the trainers want to write.
        seed: of the weights and of the work.
        asked_dtype: in which products are computed; None: see `dtype`.
    """

    shape: Shape
    world: World
    budget: Budget
    scratch: Path
    seed: int = 0
    asked_dtype: Literal["bfloat16", "float32"] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which products are computed: by default bfloat16 on a GPU; a CPU is slow in it."""
        if self.asked_dtype is not None:
            return torch.bfloat16 if self.asked_dtype == "bfloat16" else torch.float32
        return torch.bfloat16 if self.world.device.type == "cuda" else torch.float32

    @property
    def examples(self) -> int:
        """SFT examples of one optimizer step, over all processes."""
        return self.shape.examples * self.world.size

    @property
    def pairs(self) -> int:
        """DPO pairs of one optimizer step, over all processes."""
        return self.examples // 2

    @property
    def scored_tokens(self) -> int:
        """Of one forward pass of our scoring, at most."""
        return self.shape.max_batch_tokens or ScoreConfig().max_batch_tokens

    @property
    def num_steps(self) -> int:
        """Optimizer steps at most, warm-up included."""
        return self.budget.warmup + self.budget.max_steps


@dataclass(frozen=True)
class Done:
    """What a way gives back; `before_seconds` and `before_examples` as in `figures.Measured`."""

    steps: list[Step]
    settings: Settings
    before_seconds: float = 0.0
    before_examples: int = 0


def time_steps(trainer: Any, setting: Setting, amounts: list[Amount]) -> list[Step]:
    """Train until the budget is spent.

    Args:
        trainer: a Trainer.
        amounts: of every step.
    """
    clock = StepClock(setting.budget, amounts, setting.world, setting.world.device)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.steps


def time_batches(
    setting: Setting, batches: Sequence[Sequence[Row]], score: Callable[[Sequence[Row]], Any]
) -> list[Step]:
    """Score batch after batch, over again after the last, until the budget is spent; each process its own."""
    steps: list[Step] = []
    world, budget = setting.world, setting.budget
    number = 0
    while not budget.is_spent(len(steps), sum(step.seconds for step in steps)):
        batch = batches[number % len(batches)]
        with timed(world.device) as seconds:
            score(batch)
        number += 1
        slowest, amounts = world.largest(seconds[0]), world.gather(scoring_amount(batch))
        if number > budget.warmup:
            steps.append(measured_step(slowest, sum(amounts[1:], amounts[0])))
    return steps


def dtype_name(dtype: torch.dtype) -> str:
    """As config files spell it."""
    return str(dtype).removeprefix("torch.")
