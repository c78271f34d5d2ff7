"""The plain formulas that ours is held against."""

import math

import pytest
import torch

from benchmarks.equality import Computed, _apart, _computed, _gradients_apart, _values_apart, _worst_apart
from benchmarks.peers import one_at_a_time, padded_batch
from benchmarks.shapes import SHAPES, make_model
from benchmarks.work import scoring_rows, sft_columns
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.reasons.score_batch import probability, score_batch
from tests.tiny import exact

MICRO = SHAPES["micro"]


@pytest.fixture(scope="module")
def model():
    return exact(make_model(MICRO, torch.device("cpu"), torch.float32)).eval()


def test_one_at_a_time_a_padded_batch_and_ours_give_the_same_scores(model) -> None:
    (row,) = scoring_rows(MICRO, 1)
    plain = [tuple(map(probability, pair)) for pair in one_at_a_time(model, row)]
    padded = [tuple(map(probability, pair)) for pair in padded_batch(model, row, row.candidates)]
    packed = exact(make_model(MICRO, torch.device("cpu"), torch.float32)).eval()
    prepare_for_packed_rows(packed)
    ours = [(reason.p_reason, reason.p_verdict) for reason in score_batch(packed, [row])]
    for found in (padded, ours):
        for pair, expected in zip(found, plain, strict=True):
            assert pair == pytest.approx(expected, rel=1e-5)  # the peer's log-softmax is in float32


def test_the_plain_losses_are_means_over_the_trained_tokens_of_each_row(model) -> None:
    columns = sft_columns(MICRO, 3)
    losses = []
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        with torch.no_grad():
            losses.append(float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss))
    one, padded = (_computed(model, columns, size, torch.float64) for size in (1, 3))
    # transformers' own loss is in float32
    assert (-one.logprobs).tolist() == pytest.approx(losses, rel=1e-6)
    assert _values_apart(padded, one) < 1e-12
    assert _gradients_apart(padded, one) < 1e-6


def test_distances_by_hand() -> None:
    left = Computed(torch.tensor([1.0, 3.0]), {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])})
    right = Computed(torch.tensor([4.0, 3.0]), {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
    assert _values_apart(left, right) == pytest.approx(3 / 5)
    # differences (0, 4) and (-3): 5 over 5; worst tensor: 4 / 3 against 3 / 4
    assert _gradients_apart(left, right) == pytest.approx(1.0)
    assert _worst_apart(left, right) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("ours", "plain", "holds"),
    [
        # ours from one at a time, padded, exact; the plain ways from each other, and each from exact
        ([0.010, 0.010, 0.010], [0.010, 0.005, 0.010], True),
        ([0.014, 0.010, 0.010], [0.000, 0.005, 0.010], True),  # the plain ways are equal, but not exact
        ([0.016, 0.010, 0.010], [0.010, 0.005, 0.010], False),  # more than 1.5 times their rounding from one of them
        ([0.010, 0.010, 0.016], [0.020, 0.005, 0.010], False),  # more than 1.5 times as far from the exact numbers
        ([1e-6, 1e-6, 1e-6], [0.0, 0.0, 0.0], True),  # float32
    ],
)
def test_ours_may_be_as_far_off_as_the_plain_ways(ours: list[float], plain: list[float], holds: bool) -> None:
    assert _apart("gradient", "relative", ours, plain).holds is holds


def test_a_number_that_is_none_does_not_hold() -> None:
    assert not _apart("gradient", "relative", [math.nan, 0.0, 0.0], [0.01, 0.01, 0.01]).holds
