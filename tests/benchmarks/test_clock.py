"""What every way is measured with."""

import torch

from benchmarks.clock import Budget, Memory


def test_memory_of_work_that_is_over_at_once_is_seen() -> None:
    with Memory(torch.device("cpu")) as memory:
        pass
    assert memory.peak_gib > 0.01


def test_three_steps_are_measured_however_long_they_take() -> None:
    budget = Budget(seconds=10.0, warmup=2, max_steps=20)
    assert not budget.is_spent(2, 99.0)
    assert budget.is_spent(3, 10.0)
    assert not budget.is_spent(19, 9.9)
    assert budget.is_spent(20, 0.1)
    assert Budget(10.0, 0, max_steps=1).is_spent(1, 0.0)
