"""The plain formulas that ours is held against."""

import math

import pytest
import torch

from benchmarks.equality import _apart, _computed, _distance, _worst_distance
from benchmarks.peers import one_at_a_time, padded_batch
from benchmarks.shapes import SHAPES, make_model
from benchmarks.work import scoring_rows, sft_columns
from reasongenrm.kernels import prepare_for_packed_rows
from reasongenrm.scoring import probability, score_batch

MICRO = SHAPES["micro"]


@pytest.fixture(scope="module")
def model():
    return make_model(MICRO, torch.device("cpu"), torch.float32).double().eval()


def test_one_at_a_time_a_padded_batch_and_ours_give_the_same_scores(model) -> None:
    (row,) = scoring_rows(MICRO, 1)
    plain = [tuple(map(probability, pair)) for pair in one_at_a_time(model, row)]
    padded = [tuple(map(probability, pair)) for pair in padded_batch(model, row, row.candidates)]
    packed = make_model(MICRO, torch.device("cpu"), torch.float32).double().eval()
    prepare_for_packed_rows(packed)
    ours = [(reason.p_reason, reason.p_verdict) for reason in score_batch(packed, [row])]
    for found in (padded, ours):
        for pair, expected in zip(found, plain, strict=True):
            assert pair == pytest.approx(expected, rel=1e-5)  # the peer's log-softmax is in float32


def test_the_plain_loss_is_the_mean_over_the_trained_tokens_of_all_rows(model) -> None:
    columns = sft_columns(MICRO, 3)
    total, num = 0.0, 0
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        trained = sum(label >= 0 for label in labels[1:])
        with torch.no_grad():
            mean = float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        total, num = total + trained * mean, num + trained
    one, padded = (_computed(model, columns, size, torch.float64) for size in (1, 3))
    # transformers' own loss is in float32
    assert one.loss == pytest.approx(total / num, rel=1e-6)
    assert padded.loss == pytest.approx(one.loss, rel=1e-12)
    assert _distance(padded.gradients, one.gradients) < 1e-6


def test_distances_of_gradients_by_hand() -> None:
    left = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    right = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    # differences (0, 4) and (-3): 5 over 5; worst tensor: 4 / 3 against 3 / 4
    assert _distance(left, right) == pytest.approx(1.0)
    assert _worst_distance(left, right) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("ours", "holds"),
    [
        ([0.010, 0.010, 0.010], True),
        ([0.020, 0.010, 0.010], False),  # farther from a plain way than 1.5 times what the plain ways are apart
        ([0.010, 0.010, 0.020], False),  # farther from the exact numbers than 1.5 times the worse of them
    ],
)
def test_ours_may_be_as_far_off_as_the_plain_ways(ours: list[float], holds: bool) -> None:
    assert _apart("gradient", "relative", ours, [0.010, 0.005, 0.010]).holds is holds


def test_a_number_that_is_none_does_not_hold() -> None:
    assert not _apart("gradient", "relative", [math.nan, 0.0, 0.0], [0.01, 0.01, 0.01]).holds
