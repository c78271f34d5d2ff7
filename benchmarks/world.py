"""The processes that measure together, one a GPU under torchrun, and what they tell each other."""

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """This process among all. `device` is its GPU, or the CPU."""

    rank: int
    size: int
    device: torch.device

    @property
    def speaks(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, number: float) -> float:
        """Of every process's number."""
        return self._reduced(number, torch.distributed.ReduceOp.SUM)

    def largest(self, number: float) -> float:
        """Of every process's number."""
        return self._reduced(number, torch.distributed.ReduceOp.MAX)

    def gather(self, value: Value) -> list[Value]:
        """Every process's value."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def _reduced(self, number: float, operation: torch.distributed.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return number
        numbers = torch.tensor([number], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(numbers, operation)
        return float(numbers)


def find_world() -> World:
    """Join the other processes of torchrun, if there are any."""
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    if state.device.type == "cuda":
        return World(state.process_index, state.num_processes, torch.device("cuda", torch.cuda.current_device()))
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert state.num_processes == expected, f"{state.num_processes} processes, torchrun started {expected}"
    return World(state.process_index, state.num_processes, torch.device("cpu"))
