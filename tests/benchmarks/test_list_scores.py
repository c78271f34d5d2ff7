"""Scores order answers at least as well as the merge sort that chose the comparisons."""

import statistics
from itertools import product

import numpy as np
import pytest

from benchmarks.list_scores import BOUNDS, NOISES, kendall_tau, opponent_means, sort_order, taus
from reasongenrm.judge.api import Comparison, Usage
from reasongenrm.judge.listwise import Ranking


def test_tau_counts_pairs() -> None:
    # Of the six pairs of four, one is turned around: (5 - 1) / 6.
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    # A tie on one side: five pairs agree, sqrt(6 * 5) is what they are held against.
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 3]) == pytest.approx(5 / 30**0.5)
    assert kendall_tau([1, 2], [5, 5]) == 0


def test_order_and_means_of_the_sort_are_read_from_its_comparisons() -> None:
    # Four answers; 0 beats 1, 3 beats 2, 3 beats 0; 0 and 2 were not compared, nor 1 and 2.
    met = [(0, 1, 0.9), (2, 3, 0.2), (0, 3, 0.4)]
    comparisons = [Comparison(first=i, second=j, preferred=i, p_first=p, consistent=True) for i, j, p in met]
    usage = Usage(num_requests=0, prompt_tokens=0, completion_tokens=0)
    found = Ranking([], [], comparisons, False, usage)
    means = opponent_means(found, 4)
    assert means == pytest.approx([0.65, 0.1, 0.2, 0.7])
    assert sort_order(found, means) == [3, 0, 2, 1]


def test_scores_have_at_least_the_tau_of_the_sort() -> None:
    rng = np.random.default_rng(0)
    found = {
        kind: [taus(16, kind[1], tells_p=kind[0], per_answer=kind[2], rng=rng) for _ in range(15)]
        for kind in product((True, False), NOISES, BOUNDS)
    }
    sort, scores = (
        {kind: statistics.fmean(getattr(one, name) for one in of_kind) for kind, of_kind in found.items()}
        for name in ("sort", "scores")
    )
    assert statistics.fmean(scores.values()) > statistics.fmean(sort.values())
    for tells_p in (True, False):
        assert scores[tells_p, 0.0, None] == pytest.approx(1, abs=1e-9)
        assert statistics.fmean(one.opponents for one in found[tells_p, 0.0, None]) < 0.8
