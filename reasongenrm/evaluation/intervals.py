"""Intervals of weighted means over rows, valid for few rows and for rows that are all right."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from reasongenrm.records import Record

INTERVALS_VERSION = 2  # part of an evaluation's key: raise it with a change that can alter an interval


class Interval(Record):
    """Ends of an interval."""

    low: float
    high: float


def mean_interval(
    groups: Sequence[Sequence[float]], weights: Sequence[float], confidence: float, bounds: tuple[float, float]
) -> Interval:
    """A score interval of the weighted mean of the groups' means.

    With m the mean, V its variance (the sum of w^2 * s^2 / n, s^2 with n - 1), N = min n / w the rows of an unweighted
    sample in which a row counts as much as the weightiest does here, c and h the middle and half the width of the
    bounds, and k = z^2 f / N:

        (m + k c -+ z sqrt(V + h^2 k f / N)) / (1 + k)

    A value of 0 or 1 for each row of a single group makes this Wilson's interval (s^2 aside). f is at first 1: as if
    values were spread over the bounds as widely as their mean allows. Values that are not, because a row is the mean of
    two orders or a difference, have a smaller variance than that, V N, and f is then its share. The interval is from
    the lower of the two lower ends to the higher of the two higher ones. It never has width 0: rows that are all alike
    say how rare other rows are, not that there are none.

    `python -m benchmarks intervals` measures how often it holds the true mean.

    Args:
        groups: values within the bounds. Those of a group of one row spread as widely as the mean allows.
        weights: one per group, sum 1; a group of weight 0 is left out.
        confidence: in (0, 1).
        bounds: the least and the largest value that a row can have: (0, 1), or (-1, 1) for differences.

    Raises:
        ValueError: a group with weight has no rows.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927); effective
    numbers of rows as in Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number of Positive
    Counts Estimated from Survey Data, Survey Methodology 24 (1998), but by the weightiest row. Without a row on which
    two judges differ it is Tango's interval of paired proportions, Statistics in Medicine 17 (1998).
    """
    strata = [(np.asarray(group), weight) for group, weight in zip(groups, weights, strict=True) if weight]
    if not all(group.size for group, _ in strata):
        raise ValueError("a group without rows has a weight; expected rows, or weight 0")
    low, high = bounds
    middle, half_width = (low + high) / 2, (high - low) / 2
    mean = float(sum(weight * group.mean() for group, weight in strata))
    widest = max(0.0, (high - mean) * (mean - low))  # variance of values at the bounds alone
    of_mean = float(
        sum(weight**2 * (group.var(ddof=1) if group.size > 1 else widest) / group.size for group, weight in strata)
    )
    num_rows = min(group.size / weight for group, weight in strata)
    share = min(1.0, of_mean * num_rows / widest) if widest > 0 else 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ends = []
    for f in (share, 1.0):
        k = z**2 * f / num_rows
        spread = z * math.sqrt(of_mean + half_width**2 * k * f / num_rows)
        ends += [(mean + k * middle + sign * spread) / (1 + k) for sign in (-1, 1)]
    return Interval(low=tidy(max(low, min(ends))), high=tidy(min(high, max(ends))))


def tidy(value: float) -> float:
    """Twelve digits: weighted sums of 1 must not become 1.0000000000000002."""
    return round(value, 12)
