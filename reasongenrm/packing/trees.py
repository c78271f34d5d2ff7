"""Token sequences packed into one row, without padding; a shared prefix is computed once.

In: trees, each a prefix and the branches that continue it (a training example has one branch, a preference pair two, a
judge prompt with its sampled reasons sixteen). Out: one row for `attention.py`, in which a branch sees its prefix and
itself alone, at the positions that it would have by itself. So the numbers are those of separate sequences.

The last token of a shared prefix stands at the head of every branch, because it predicts each branch's first token; the
last token of a branch is left away, because nothing is predicted from it. So every token of the row predicts at most
one token. Nothing here needs torch. Shape suffixes: T tokens of the row, S segments, K keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IGNORED = -100  # a target that bears no loss, in torch's cross-entropy and in TRL
NO_BRANCH = -1

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Branch:
    """What follows a prefix: n >= 1 tokens, and their targets: the same where trained or scored, else `IGNORED`."""

    ids: Sequence[int] | IntArray
    targets: Sequence[int] | IntArray


@dataclass(frozen=True)
class Tree:
    """A prefix, of one token at least, and what follows it."""

    prefix: Sequence[int] | IntArray
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class PackedRow:
    """Trees in one row, segment after segment: a shared prefix without its last token, then each branch with that
    token.

    A segment's queries are its tokens; its keys are its prefix's tokens, if it shares one, and its own. Of its keys a
    query sees those up to itself, both counted from the end ("bottom right").

    Attributes:
        input_ids, position_ids: shape (T,).
        targets: the token that each position is to predict, or `IGNORED`, shape (T,).
        branches: the number of the branch that a token belongs to, counted over all trees, or `NO_BRANCH`, shape (T,).
        num_branches: of all trees.
        query_starts, key_starts: where segments begin, and the end of the last, shape (S + 1,).
        keys: the place of each key in the row, shape (K,); None where every segment's keys are its own tokens (K = T).
    """

    input_ids: IntArray
    position_ids: IntArray
    targets: IntArray
    branches: IntArray
    num_branches: int
    query_starts: IntArray
    key_starts: IntArray
    keys: IntArray | None

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)


def pack(trees: Sequence[Tree]) -> PackedRow:
    """Lay out trees one after another, in the order given; there must be one at least."""
    ids: list[IntArray] = []
    positions: list[IntArray] = []
    targets: list[IntArray] = []
    branches: list[IntArray] = []
    keys: list[IntArray] = []
    query_starts, key_starts = [0], [0]
    num_branches = 0

    def add_segment(tokens: IntArray, wanted: IntArray, owner: int, first_position: int, shared: IntArray) -> None:
        start, size = query_starts[-1], len(tokens)
        ids.append(tokens)
        targets.append(wanted)
        positions.append(np.arange(first_position, first_position + size))
        branches.append(np.full(size, owner))
        keys.extend((shared, np.arange(start, start + size)))
        query_starts.append(start + size)
        key_starts.append(key_starts[-1] + len(shared) + size)

    nothing = np.empty(0, np.int64)
    for tree in trees:
        prefix = np.asarray(tree.prefix, np.int64)
        shared, last = nothing, len(prefix) - 1
        if len(tree.branches) > 1 and last > 0:
            shared = np.arange(query_starts[-1], query_starts[-1] + last)
            add_segment(prefix[:-1], np.full(last, IGNORED), NO_BRANCH, 0, nothing)
            prefix = prefix[-1:]
        for branch in tree.branches:
            tokens = np.concatenate((prefix, np.asarray(branch.ids, np.int64)[:-1]))
            wanted = np.concatenate((np.full(len(prefix) - 1, IGNORED), np.asarray(branch.targets, np.int64)))
            add_segment(tokens, wanted, num_branches, last + 1 - len(prefix), shared)
            num_branches += 1
    shares = key_starts != query_starts
    return PackedRow(
        input_ids=np.concatenate(ids),
        position_ids=np.concatenate(positions),
        targets=np.concatenate(targets),
        branches=np.concatenate(branches),
        num_branches=num_branches,
        query_starts=np.array(query_starts),
        key_starts=np.array(key_starts),
        keys=np.concatenate(keys) if shares else None,
    )


def balance(sizes: Sequence[int], num_bins: int) -> list[list[int]]:
    """Spread items over bins of nearly equal size: the largest first, each into the bin that has least (Graham's LPT
    rule).

    Args:
        sizes: of the items; at least as many as bins.

    Returns:
        Item numbers of each bin, ascending; no bin is empty.

    Source: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969: the largest bin is at most 4/3 of the best
        one.
    """
    assert len(sizes) >= num_bins, f"{len(sizes)} items for {num_bins} bins"
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    totals = [0] * num_bins
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        # An empty bin goes first, so that items of size 0 leave none empty.
        emptiest = min(range(num_bins), key=lambda number: (bool(bins[number]), totals[number]))
        bins[emptiest].append(item)
        totals[emptiest] += sizes[item]
    return [sorted(items) for items in bins]
