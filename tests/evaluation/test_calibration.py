"""Calibration: maps that are known by hand, and what the figures count."""

import math
import random
from pathlib import Path

import pytest

from reasongenrm.errors import InputError
from reasongenrm.evaluation.calibration import (
    MAX_TEMPERATURE,
    Calibration,
    expected_calibration_error,
    fit,
    load_calibration,
    negative_log_likelihood,
    save_calibration,
)
from reasongenrm.records import CALIBRATION_FILE


def a_calibration(**changes: float) -> Calibration:
    fields = {"temperature": 1.0, "num_judgments": 1, "nll_before": 0, "nll_after": 0, "ece_before": 0, "ece_after": 0}
    return Calibration.model_validate(fields | changes)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_temperature_divides_the_log_odds_and_bias_adds_to_them() -> None:
    assert a_calibration().apply(0.3) == pytest.approx(0.3)
    # odds 9 to 1, temperature 2: odds sqrt(9) = 3 to 1.
    assert a_calibration(temperature=2).apply(0.9) == pytest.approx(0.75)
    # odds 1 to 1, bias log 3: odds 3 to 1.
    assert a_calibration(bias=math.log(3)).apply(0.5) == pytest.approx(0.75)


def test_certainty_stays_inside_and_keeps_its_side() -> None:
    sure = a_calibration(temperature=2)
    assert 0 < sure.apply(0.0) < 0.01
    assert 0.99 < sure.apply(1.0) < 1


def test_two_groups_are_fitted_to_their_smoothed_frequencies() -> None:
    # 8 judgments at 0.9 of which 6 are right, 8 at 0.1 of which 2 are A: 8 A and 8 B in all. Smoothed labels are
    # 9/10 for A and 1/10 for B, so the groups' means are (6 * 0.9 + 2 * 0.1) / 8 = 0.7 and 0.3. With two values of
    # p the map meets both: slope log(0.7/0.3) / log(9), bias 0.
    p = [0.9] * 8 + [0.1] * 8
    labels = [True] * 6 + [False] * 2 + [True] * 2 + [False] * 6
    found = fit(p, labels)
    assert found.temperature == pytest.approx(math.log(9) / math.log(7 / 3))
    assert found.bias == pytest.approx(0, abs=1e-9)
    assert found.apply(0.9) == pytest.approx(0.7)
    # Before: 12 of 16 judgments have 0.9 on their label, 4 have 0.1.
    assert found.nll_before == pytest.approx(-(12 * math.log(0.9) + 4 * math.log(0.1)) / 16)
    assert found.nll_after == pytest.approx(-(12 * math.log(0.7) + 4 * math.log(0.3)) / 16)
    assert found.ece_before == pytest.approx(0.15)
    assert found.ece_after == pytest.approx(0.05)
    assert (found.num_judgments, found.cross_validated) == (16, False)


def test_liking_of_the_first_place_becomes_a_bias() -> None:
    # Always 0.8, right half the time: 10 A and 10 B smooth to a mean of exactly 1/2.
    found = fit([0.8] * 20, [True, False] * 10)
    assert found.apply(0.8) == pytest.approx(0.5)


def test_known_map_is_found_again() -> None:
    generator = random.Random(0)
    x = [generator.gauss(0, 3) for _ in range(20_000)]
    labels = [generator.random() < sigmoid(value / 2.5 + 0.4) for value in x]
    found = fit([sigmoid(value) for value in x], labels)
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.bias == pytest.approx(0.4, abs=0.05)
    assert found.nll_after < found.nll_before
    assert found.ece_after < 0.02 < 0.1 < found.ece_before


def test_judge_without_an_error_keeps_a_finite_map() -> None:
    found = fit([1.0] * 10 + [0.0] * 10, [True] * 10 + [False] * 10)
    # All smoothed labels are 11/12 and 1/12.
    assert found.apply(1.0) == pytest.approx(11 / 12)
    assert found.apply(0.0) == pytest.approx(1 / 12)


def test_judge_that_is_always_wrong_is_ignored_and_never_inverted() -> None:
    found = fit([0.9] * 10 + [0.1] * 10, [False] * 10 + [True] * 10)
    assert found.temperature == MAX_TEMPERATURE
    assert 0.5 < found.apply(0.9) < 0.52


def test_figures_after_come_from_judgments_that_were_held_out() -> None:
    # Two pairs that contradict each other: each is predicted from the other one alone, hence badly.
    p = [0.9, 0.1, 0.9, 0.1]
    labels = [True, False, False, True]
    found = fit(p, labels, ["x", "x", "y", "y"])
    assert found.cross_validated
    assert found.nll_after > fit(p, labels).nll_after
    # Fitted on x alone: 1 A and 1 B, smoothed to 2/3 and 1/3, met exactly; so y's labels get 1/3 each. Fitted on y
    # alone: slope 1/MAX_TEMPERATURE, so x's labels get sigmoid(log(9) / 100) each.
    from_y = sigmoid(math.log(9) / MAX_TEMPERATURE)
    assert found.nll_after == pytest.approx(-(math.log(1 / 3) + math.log(from_y)) / 2)
    assert found.temperature == fit(p, labels).temperature


def test_orders_of_one_pair_are_never_divided() -> None:
    with pytest.raises(ValueError, match="judgments of 1 pair; expected at least 2"):
        fit([0.9, 0.1], [True, False], ["x", "x"])


def test_calibration_error_is_the_bins_weighted_distance() -> None:
    # Bin [0.5, 0.6): two at 0.55, both A: |0.55 - 1| * 2/4. Bin [0.9, 1]: 0.9 and 1.0, one A: |0.95 - 0.5| * 2/4.
    assert expected_calibration_error([0.55, 0.55, 0.9, 1.0], [True, True, True, False]) == pytest.approx(0.45)
    # A coin's probabilities over a coin's labels; and certainty that is right.
    assert expected_calibration_error([0.5, 0.5], [True, False]) == 0
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0


def test_coin_has_a_likelihood_of_log_2() -> None:
    assert negative_log_likelihood([0.5, 0.5], [True, False]) == pytest.approx(math.log(2))
    assert negative_log_likelihood([0.0], [True]) == pytest.approx(math.log(1e6))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="2 probabilities and 1 labels"):
        fit([0.5, 0.5], [True])
    with pytest.raises(ValueError, match="at least one"):
        fit([], [])
    for p in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
            fit([p], [True])
    with pytest.raises(ValueError, match="1 groups for 2 judgments"):
        fit([0.5, 0.5], [True, False], ["x"])


def test_file_beside_the_checkpoint_is_read_back(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None
    found = fit([0.9, 0.2, 0.6], [True, False, False])
    assert save_calibration(found, tmp_path) == tmp_path / CALIBRATION_FILE
    assert load_calibration(tmp_path) == found


def test_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_FILE).write_text('{"temperature": 0}')
    with pytest.raises(InputError, match=r"judge_calibration.json: holds no calibration"):
        load_calibration(tmp_path)
