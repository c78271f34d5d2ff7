"""How well do a list's scores order its answers?

    python -m benchmarks list-scores [--seeds 5] [--lists 40]

Synthetic judges of answers whose strengths are known (normal, standard deviation 2): a judge sees the difference of two
strengths plus normal noise, drawn for each comparison, and says its logistic, or only which is larger. Kendall's tau-b
with the strengths, for three orders from the same comparisons: our scores (Bradley-Terry), merge sort's own order, and
the mean over the opponents that merge sort happened to choose. No model, no network.
"""

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from reasongenrm.judge.listwise import Ranking, rank
from reasongenrm.judge.pairwise import PairResult

STRENGTH_SD = 2.0
SIZES = (8, 16, 32)
NOISES = (0.0, 1.0, 2.0)
BOUNDS = (None, 2, 1)  # comparisons at most, per answer


@dataclass(frozen=True)
class Taus:
    """Kendall's tau-b with the true strengths, in [-1, 1]."""

    scores: float
    sort: float
    opponents: float


def taus(num_answers: int, noise: float, *, tells_p: bool, per_answer: int | None, rng: np.random.Generator) -> Taus:
    """Of one list."""
    strengths = rng.normal(scale=STRENGTH_SD, size=num_answers)

    async def compare(first: int, second: int) -> PairResult:
        seen = float(strengths[first] - strengths[second] + rng.normal(scale=noise))
        return PairResult("A" if seen > 0 else "B", 1 / (1 + math.exp(-seen)) if tells_p else float(seen > 0), True)

    found = asyncio.run(rank(num_answers, compare, per_answer and per_answer * num_answers))
    means = opponent_means(found, num_answers)
    places = {index: place for place, index in enumerate(sort_order(found, means))}
    return Taus(
        scores=kendall_tau(strengths, found.scores),
        sort=kendall_tau(strengths, [-places[index] for index in range(num_answers)]),
        opponents=kendall_tau(strengths, means),
    )


def opponent_means(found: Ranking, num_answers: int) -> list[float]:
    """Mean probability of being the better one over the comparisons of each answer; 0.5 without one."""
    shares: list[list[float]] = [[] for _ in range(num_answers)]
    for one in found.comparisons:
        assert one.p_first is not None
        shares[one.first].append(one.p_first)
        shares[one.second].append(1 - one.p_first)
    return [statistics.fmean(own) if own else 0.5 for own in shares]


def sort_order(found: Ranking, means: Sequence[float]) -> list[int]:
    """The order that merge sort itself ends with; what a bound left open is decided by `means`."""
    p_first = {(one.first, one.second): one.p_first for one in found.comparisons}

    def sort(first_leaf: int, last_leaf: int) -> list[int]:
        if last_leaf - first_leaf == 1:
            return list(range(len(means) * first_leaf // num_leaves, len(means) * last_leaf // num_leaves))
        middle = (first_leaf + last_leaf) // 2
        left, right = sort(first_leaf, middle), sort(middle, last_leaf)
        merged = []
        while left and right:
            p = p_first.get((left[0], right[0]))
            ahead = means[left[0]] >= means[right[0]] if p is None else p >= 0.5
            merged.append((left if ahead else right).pop(0))
        return [*merged, *left, *right]

    num_leaves = 2 ** (len(means) - 1).bit_length()
    return sort(0, num_leaves)


def kendall_tau(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> float:
    """Tau-b: ties count for neither side; 0 if either side is all ties."""
    one, other = (np.sign(np.subtract.outer(np.asarray(side), np.asarray(side))) for side in (ours, theirs))
    norm = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm else 0.0


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How often all lists are drawn.")] = 5,
    lists: Annotated[int, typer.Option(min=1, help="Lists of each kind and seed.")] = 40,
) -> None:
    """Kendall's tau of a list's scores on synthetic judges: mean over the seeds, and the least and most of a seed."""
    columns = ("judge says", "noise", "answers", "comparisons", "scores", "merge sort", "mean over opponents")
    table = Table(*columns, title=f"Kendall's tau-b, {seeds} seeds of {lists} lists each")
    for tells_p, noise, per_answer, size in product((True, False), NOISES, BOUNDS, SIZES):
        found = [
            [taus(size, noise, tells_p=tells_p, per_answer=per_answer, rng=rng) for _ in range(lists)]
            for rng in map(np.random.default_rng, range(seeds))
        ]
        cells = []
        for name in ("scores", "sort", "opponents"):
            means = [statistics.fmean(getattr(one, name) for one in of_seed) for of_seed in found]
            cells.append(f"{statistics.fmean(means):.3f} ({min(means):.3f}-{max(means):.3f})")
        bound = "all of the sort" if per_answer is None else f"{per_answer * size} at most"
        table.add_row("P(first better)" if tells_p else "0 or 1", f"{noise:g}", str(size), bound, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
