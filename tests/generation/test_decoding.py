"""Picking tokens, worked by hand."""

import math

import pytest
import torch

from reasongenrm.generation.decoding import pick_tokens

# Probabilities 0.5, 0.2, 0.3 in the order of the vocabulary.
LOGITS_13 = torch.tensor([[math.log(0.5), math.log(0.2), math.log(0.3)]])


def pick(uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
    return int(pick_tokens(LOGITS_13, temperature, top_p, [uniform]))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.499, 0), (0.501, 1), (0.699, 1), (0.701, 2), (0.999999, 2)]
)
def test_token_is_where_the_cumulative_distribution_passes_the_number(uniform: float, token: int) -> None:
    assert pick(uniform) == token


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.624, 0), (0.626, 2), (0.999999, 2)])
def test_top_p_draws_from_the_smallest_set_that_reaches_it(uniform: float, token: int) -> None:
    # 0.5 + 0.3 = 0.8 >= 0.7: the token of 0.2 is out; 0.5 / 0.8 = 0.625 divides the two that are left.
    assert pick(uniform, top_p=0.7) == token


def test_temperature_sharpens_the_distribution() -> None:
    # At temperature 1/2 the weights are 0.25, 0.04, 0.09 of 0.38: the first token's share is 0.6579.
    assert pick(0.657, temperature=0.5) == 0
    assert pick(0.659, temperature=0.5) == 1


def test_temperature_zero_takes_the_most_probable_whatever_the_number() -> None:
    assert {pick(uniform, temperature=0.0) for uniform in (0.0, 0.6, 0.99)} == {0}


def test_top_p_zero_takes_the_most_probable() -> None:
    assert {pick(uniform, top_p=0.0) for uniform in (0.0, 0.6, 0.99)} == {0}


def test_impossible_token_is_never_drawn() -> None:
    logits_12 = torch.tensor([[0.0, -math.inf]])
    assert int(pick_tokens(logits_12, 1.0, 1.0, [math.nextafter(1.0, 0.0)])) == 0


def test_each_row_follows_its_own_number() -> None:
    assert pick_tokens(LOGITS_13.repeat(3, 1), 1.0, 1.0, [0.1, 0.6, 0.9]).tolist() == [0, 1, 2]
