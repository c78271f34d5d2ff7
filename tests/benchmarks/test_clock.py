"""What every way is measured with."""

import torch

from benchmarks.clock import Memory


def test_memory_of_work_that_is_over_at_once_is_seen() -> None:
    with Memory(torch.device("cpu")) as memory:
        pass
    assert memory.peak_gib > 0.01
