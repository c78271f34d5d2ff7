import numpy as np
import pytest

from reasongenrm.evaluation.bootstrap import Interval, bootstrap_means, percentile_interval


def test_bootstrap_interval_agrees_with_the_normal_one_for_many_rows() -> None:
    # 400 rows, 300 right: standard error sqrt(0.75 * 0.25 / 400) = 0.02165, so 0.75 -+ 1.96 * 0.02165 = 0.7076 to
    # 0.7924.
    means = bootstrap_means([[1.0] * 300 + [0.0] * 100], 20000, seed=0)[:, 0]
    assert means.mean() == pytest.approx(0.75, abs=0.001)
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([0.7076, 0.7924], abs=0.003)


def test_bootstrap_by_counts_has_the_spread_of_drawing_rows() -> None:
    rows = [0.0, 0.25, 0.5, 0.5, 0.75, 1.0, 1.0]
    drawn = np.random.default_rng(1).choice(rows, size=(40000, len(rows))).mean(axis=1)
    means = bootstrap_means([rows], 40000, seed=2)[:, 0]
    assert np.std(means) == pytest.approx(np.std(drawn), rel=0.02)
    assert np.quantile(means, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(drawn, [0.025, 0.5, 0.975]), abs=0.02)


def test_bootstrap_draws_with_its_seed_and_each_group_alone() -> None:
    groups = [[0.0, 1.0] * 20, [1.0] * 5]
    means = bootstrap_means(groups, 200, seed=3)
    assert means.shape == (200, 2)
    assert (means[:, 1] == 1).all()
    assert (means == bootstrap_means(groups, 200, seed=3)).all()
    assert (means != bootstrap_means(groups, 200, seed=4)).any()


def test_interval_is_the_middle_of_the_resampled_means() -> None:
    # 0, 1, ... 100: the middle 90 % runs from the 5th to the 95th percentile.
    assert percentile_interval(np.arange(101.0), 0.9) == Interval(low=5, high=95)
