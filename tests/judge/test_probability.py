"""P([[A]]) from the log-probabilities of differently tokenised verdicts; numbers worked by hand."""

import math
from typing import Any

import pytest

from reasongenrm.judge.probability import probability_of_a


def token(text: str, p: float, **others: float) -> dict[str, Any]:
    """A token with its probability and its competitors'; "_" in a name stands for "["."""
    top = [{"token": text, "logprob": math.log(p)}]
    top += [{"token": name.replace("_", "["), "logprob": math.log(q)} for name, q in others.items()]
    return {"token": text, "logprob": math.log(p), "top_logprobs": top}


END = {"token": "]]", "logprob": 0.0, "top_logprobs": [{"token": "]]", "logprob": 0.0}]}
OPEN = {"token": "[[", "logprob": -0.5, "top_logprobs": [{"token": "[[", "logprob": -0.5}]}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([OPEN, token("A", 0.6, B=0.2), END], 0.75),
        ([OPEN, token("B", 0.6, A=0.2), END], 0.25),
        ([token("[[A", 0.3, __B=0.1), END], 0.75),
        ([token("[[B]]", 0.4, **{"__A]]": 0.1})], 0.2),
        ([OPEN, token("A", 0.3, **{"B": 0.1, "A]]": 0.3, "B]]": 0.1}), END], 0.75),  # every spelling counts
        ([OPEN, token("A", 0.8, The=0.1, x=0.05), END], 0.8 / 0.85),  # no "B" in the list: at most the last one's 0.05
        ([OPEN, token("A", 0.6, B=0.1, Both=0.2, By=0.05, **{"B]]\n": 0.05}), END], 0.8),  # "Both" is no verdict
        ([OPEN, token("B", 0.1, A=0.4, Answer=0.3), END], 0.8),  # a vote against the odds
        ([token("[[A]]<|im_end|>", 0.45, **{"__B]]": 0.15}), END], 0.75),
    ],
)
def test_share_of_a_is_read_where_the_verdicts_part(tokens: list[dict[str, Any]], expected: float) -> None:
    assert probability_of_a(tokens) == pytest.approx(expected, abs=1e-12)


def test_tokens_of_the_reason_and_earlier_verdicts_are_passed_over() -> None:
    reason = [token("So [[B]] loses.", 0.9), token("<|im_end|>", 0.9), token("assistant\n", 0.9)]
    assert probability_of_a([*reason, OPEN, token("A", 0.6, B=0.2), END]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [token("Neither.", 0.9)],
        [token("[[", 0.9, x=0.1), token("A", 0.9, B=0.1)],  # cut off before it is a verdict
        [{"token": "[[A]]", "logprob": -0.1, "top_logprobs": []}],
        [token("[[A]]", 0.9)],  # its own token only: nothing is known of others
        [OPEN, token("A", 0.001, The=0.9, x=0.09), END],  # forced by a grammar: nothing is known of "B"
    ],
)
def test_nothing_to_read_is_none(tokens: list[dict[str, Any]]) -> None:
    assert probability_of_a(tokens) is None


def test_impossible_alternative_is_zero_or_one() -> None:
    sure = {"token": "A", "logprob": 0.0, "top_logprobs": [{"token": "B", "logprob": -9999.0}]}
    assert probability_of_a([OPEN, sure, END]) == 1.0
    sure = {"token": "B", "logprob": 0.0, "top_logprobs": [{"token": "A", "logprob": -9999.0}]}
    assert probability_of_a([OPEN, sure, END]) == 0.0
