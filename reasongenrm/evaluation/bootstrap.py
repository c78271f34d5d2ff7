"""Bootstrap intervals over rows."""

from collections.abc import Sequence

import numpy as np

from reasongenrm.records import Record


class Interval(Record):
    """Ends of a bootstrap interval."""

    low: float
    high: float


def bootstrap_means(groups: Sequence[Sequence[float]], num_bootstrap: int, seed: int) -> np.ndarray:
    """Means of resampled groups; legend: R resamples, S groups.

    A row's value is one of few (0, 1/4, ... 1), so a resample is a draw of how often each value comes: the same
    distribution as drawing rows, without drawing rows.

    Args:
        groups: S lists of values, none empty.
        num_bootstrap: R.

    Returns:
        Array of shape (R, S).
    """
    generator = np.random.default_rng(seed)
    means_RS = np.empty((num_bootstrap, len(groups)))
    for place, group in enumerate(groups):
        values, counts = np.unique(np.asarray(group, dtype=np.float64), return_counts=True)
        draws = generator.multinomial(len(group), counts / counts.sum(), size=num_bootstrap)
        means_RS[:, place] = draws @ values / len(group)
    return means_RS


def percentile_interval(means_R: np.ndarray, confidence: float) -> Interval:
    """Percentile interval: the middle `confidence` of the resampled means."""
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=tidy(float(low)), high=tidy(float(high)))


def tidy(value: float) -> float:
    """Twelve digits: weighted sums of 1 must not become 1.0000000000000002."""
    return round(value, 12)
