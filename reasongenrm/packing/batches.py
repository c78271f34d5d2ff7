"""Which rows each optimizer step sees, and in which forward passes, fixed before the first step.

In: the rows' lengths. Out: a plan of steps, each `train_batch_size` rows that are spread over micro-batches of nearly
equal numbers of tokens. Rows of a micro-batch are packed (`packing.py`), so how they are grouped changes speed and
memory, never the loss: it is a mean over the whole step. Nothing here needs torch.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasongenrm.config import TrainConfig
from reasongenrm.packing.trees import IGNORED, Branch, IntArray, Tree, balance


@dataclass(frozen=True)
class BatchPlan:
    """See above."""

    order: list[int]  # row numbers, `batch_size` after `batch_size`, shape (num_steps * batch_size,)
    batch_size: int
    lengths: list[int]  # tokens of every row, shape (num_rows,)
    num_micro_batches: int  # of every step, over all processes

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return len(self.order) // self.batch_size

    def epoch(self, step: int) -> float:
        """Passes over the rows after `step` steps."""
        return step * self.batch_size / len(self.lengths)

    def num_tokens(self, step: int) -> int:
        """Tokens seen after `step` steps."""
        return sum(self.lengths[row] for row in self.order[: step * self.batch_size])

    def rows_of_step(self, step: int) -> list[int]:
        """Row numbers of a step, counted from 0."""
        return self.order[step * self.batch_size : (step + 1) * self.batch_size]

    def micro_batches(self) -> Iterator[tuple[int, list[int]]]:
        """(step, row numbers) of every forward pass, `num_micro_batches` a step; N processes take every N-th."""
        for step in range(self.num_steps):
            rows = self.rows_of_step(step)
            for items in balance([self.lengths[row] for row in rows], self.num_micro_batches):
                yield step, [rows[item] for item in items]

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return max(sum(self.lengths[row] for row in rows) for _, rows in self.micro_batches())


def draw_order(num_rows: int, config: TrainConfig) -> list[int]:
    """Row numbers, `train_batch_size` per step: shuffled again for each epoch, the last batch filled up from the next
    epoch's order.

    The order depends on the number of rows, the config's seed and its batch size alone, so that a resumed run sees the
    rows an undisturbed one sees, and N processes the batches of one. Every batch is whole: no gradient is averaged over
    fewer rows than another.
    """
    size = config.train_batch_size
    epochs_steps = max(1, math.ceil(round(config.num_train_epochs * num_rows / size, 6)))
    num_steps = config.max_steps if config.max_steps > 0 else epochs_steps
    rng = random.Random(config.seed)
    order: list[int] = []
    while len(order) < num_steps * size:
        order += rng.sample(range(num_rows), num_rows)
    return order[: num_steps * size]


def plan_batches(lengths: Sequence[int], config: TrainConfig, num_processes: int, max_batch_tokens: int) -> BatchPlan:
    """Spread the rows of every step over micro-batches.

    A step has as few micro-batches as let all of them keep to `max_batch_tokens`, in every step; a single row that is
    longer is a micro-batch by itself. Every process gets as many micro-batches as another.

    Args:
        lengths: tokens of each row.
        num_processes: at most `train_batch_size`.
    """
    size = config.train_batch_size
    assert size >= num_processes, f"{size} rows for {num_processes} processes"
    order = draw_order(len(lengths), config)
    steps = [[lengths[row] for row in order[at : at + size]] for at in range(0, len(order), size)]
    most = size // num_processes * num_processes
    heaviest = max(sum(step) for step in steps)
    count = min(most, math.ceil(math.ceil(heaviest / max_batch_tokens) / num_processes) * num_processes)
    while count < most and not all(_fits(step, count, max_batch_tokens) for step in steps):
        count += num_processes
    return BatchPlan(order, size, list(lengths), count)


def _fits(lengths: Sequence[int], num_bins: int, max_tokens: int) -> bool:
    """Whether a step's micro-batches keep to the limit; single rows that are longer by themselves do not count."""
    return all(
        len(items) == 1 or sum(lengths[item] for item in items) <= max_tokens for items in balance(lengths, num_bins)
    )


def example_tree(row: Mapping[str, Any]) -> Tree:
    """A training example (columns input_ids and labels): one sequence, nothing shared."""
    ids, labels = row["input_ids"], row["labels"]
    return Tree(ids[:1], (Branch(ids[1:], labels[1:]),))


def pair_tree(row: Mapping[str, Any]) -> Tree:
    """A preference pair (columns prompt_ids, chosen_ids, rejected_ids): chosen, then rejected, behind one prompt."""
    return Tree(row["prompt_ids"], tuple(Branch(row[side], row[side]) for side in ("chosen_ids", "rejected_ids")))


def num_trained(labels: Sequence[int] | IntArray) -> int:
    """Tokens of an example that bear a loss; the first token is never predicted."""
    return int(np.count_nonzero(np.asarray(labels[1:]) != IGNORED))
