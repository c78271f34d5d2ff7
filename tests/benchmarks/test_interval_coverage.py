"""Intervals hold the truth as often as they promise; `python -m benchmarks intervals` has the whole grid."""

from itertools import product
from statistics import fmean

import numpy as np
import pytest

from benchmarks.interval_coverage import paired_coverage, subset_coverage, weighted_coverage

# 400 simulations of a true coverage of 0.95 have a standard error of 0.011.
SIMULATIONS = 400


def test_accuracies_are_covered_for_few_rows_and_for_judges_that_are_nearly_always_right() -> None:
    rng = np.random.default_rng(0)
    found = {
        (agreement, n, p): subset_coverage(n, p, agreement, SIMULATIONS, rng)
        for agreement, n, p in product((0.5, 1.0), (10, 60), (0.5, 0.95, 0.983, 1.0))
    }
    assert min(found.values()) > 0.92
    assert 0.94 < fmean(covered for (_, _, p), covered in found.items() if p <= 0.95) < 0.98
    assert found[1.0, 60, 1.0] == 1


def test_means_of_unlike_subsets_are_covered() -> None:
    rng = np.random.default_rng(1)
    assert weighted_coverage([10, 500], [0.95, 0.8], 0.9, SIMULATIONS, rng) > 0.92
    assert weighted_coverage([3] * 23, [0.9] * 23, 0.9, SIMULATIONS, rng) > 0.92


@pytest.mark.parametrize("p", [(0.95, 0.8), (0.99, 0.99)])
def test_paired_differences_are_covered(p: tuple[float, float]) -> None:
    assert paired_coverage(60, p, 0.9, 0.9, SIMULATIONS, np.random.default_rng(2)) > 0.92
