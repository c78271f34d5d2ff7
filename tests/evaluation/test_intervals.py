import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.evaluation.intervals import mean_interval

UNIT = (0.0, 1.0)


def ends(groups: list[list[float]], weights: list[float], confidence: float = 0.95) -> tuple[float, float]:
    found = mean_interval(groups, weights, confidence, UNIT)
    return found.low, found.high


def test_rows_that_are_all_right_have_wilsons_interval() -> None:
    # 60 of 60: 60 / (60 + 1.96^2) = 0.9398 to 1; the percentile bootstrap gave 1 to 1.
    assert ends([[1.0] * 60], [1.0]) == pytest.approx((0.939828, 1), abs=1e-6)
    assert ends([[0.0] * 60], [1.0]) == pytest.approx((0, 0.060172), abs=1e-6)


def test_a_single_group_of_right_and_wrong_has_wilsons_interval() -> None:
    # Wilson for 30 of 40: k = 3.8415 / 40 = 0.0960, middle (0.75 + 0.0480) / 1.0960 = 0.7281; spread 1.96 / 1.0960 *
    # sqrt(0.75 * 0.25 / 40 + 0.0960 / 160) = 0.1300. With 39 for 40 in the variance it is 0.1314.
    assert ends([[1.0] * 30 + [0.0] * 10], [1.0]) == pytest.approx((0.5967, 0.8595), abs=2e-4)


def test_many_rows_have_the_normal_interval_of_their_variance() -> None:
    # Halves: 2,000 rows of 0.5 and 1,000 each of 0 and 1: variance 1/8, so 0.5 -+ 1.96 * sqrt(1 / 8 / 4000) = 0.0110.
    low, high = ends([[0.5] * 2000 + [0.0] * 1000 + [1.0] * 1000], [1.0])
    assert (low, high) == pytest.approx((0.489, 0.511), abs=2e-4)


def test_rows_that_are_all_alike_still_leave_a_doubt() -> None:
    # A judge without a verdict: 60 rows of 0.5. k = 3.8415 / 60: half of k / (1 + k) to either side, 0.0301.
    assert ends([[0.5] * 60], [1.0]) == pytest.approx((0.4699, 0.5301), abs=1e-4)


def test_groups_of_equal_rows_per_weight_are_as_one_group() -> None:
    assert ends([[1.0] * 10] * 6, [1 / 6] * 6) == pytest.approx(ends([[1.0] * 60], [1.0]))


def test_the_group_whose_rows_weigh_most_counts() -> None:
    # 10 rows of weight 1/2 are worth 20 of a plain sample, whatever the other group has.
    assert ends([[1.0] * 10, [1.0] * 500], [0.5, 0.5]) == pytest.approx(ends([[1.0] * 20], [1.0]))


def test_a_group_without_weight_is_left_out_and_one_without_rows_refused() -> None:
    assert ends([[1.0, 0.0], []], [1.0, 0.0]) == ends([[1.0, 0.0]], [1.0])
    with pytest.raises(ValueError, match="a group without rows has a weight"):
        ends([[1.0], []], [0.5, 0.5])


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6), min_size=1, max_size=4))
def test_interval_holds_the_mean_lies_within_the_bounds_and_turns_with_the_labels(groups: list[list[float]]) -> None:
    weights = [1 / len(groups)] * len(groups)
    mean = math.fsum(weight * math.fsum(group) / len(group) for group, weight in zip(groups, weights, strict=True))
    low, high = ends(groups, weights)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1
    assert low < high
    turned = ends([[1 - value for value in group] for group in groups], weights)
    assert turned == pytest.approx((1 - high, 1 - low), abs=1e-9)
