"""The verdict's place among a reply's tokens, and what its letters' log-probabilities mean."""

import math

import pytest

from reasongenrm.generation.verdicts import ReplyToken, p_a, reply_verdict_logprobs


def tokens(*texts: str, a: float = -0.1, b: float = -2.0) -> list[ReplyToken]:
    return [ReplyToken(text, {"A": a, "B": b, "x": -5.0} if text in ("A", "B") else {text: 0.0}) for text in texts]


@pytest.mark.parametrize("spelled", [("[[", "A", "]]"), ("[", "[", "A", "]", "]"), ("so [[", "A", "]].")])
def test_letter_is_found_however_its_brackets_are_cut(spelled: tuple[str, ...]) -> None:
    assert reply_verdict_logprobs(tokens(*spelled), "[[A]]") == {"[[A]]": -0.1, "[[B]]": -2.0}


def test_last_verdict_counts_and_the_reasons_do_not() -> None:
    # vLLM lists the reason's tokens too: "[[A]]" there, then the assistant turn with "[[B]]".
    reason = tokens("[[", "A", "]]", "<|im_end|>", a=-9.0, b=-9.0)
    verdict = tokens("[[", "B", "]]", a=-3.0, b=-0.05)
    assert reply_verdict_logprobs([*reason, *verdict], "[[B]]") == {"[[A]]": -3.0, "[[B]]": -0.05}


def test_letter_outside_brackets_is_no_verdict() -> None:
    assert reply_verdict_logprobs(tokens("A", " is", "[[", "A", "]"), "[[A]]") is None
    assert reply_verdict_logprobs(tokens("[[", "A", "]]"), "A") is None
    assert reply_verdict_logprobs(tokens("[[A", "]]"), "[[A]]") is None
    assert reply_verdict_logprobs([], "[[A]]") is None


def test_letter_that_is_not_listed_leaves_the_probability_unknown() -> None:
    listed = [ReplyToken("[[", {}), ReplyToken("A", {"A": -0.1, "C": -3.0}), ReplyToken("]]", {})]
    assert reply_verdict_logprobs(listed, "[[A]]") is None


def test_p_a_is_of_the_two_verdicts_alone() -> None:
    # 0.3 and 0.1 of all probability: 3 to 1.
    assert p_a({"[[A]]": math.log(0.3), "[[B]]": math.log(0.1)}) == pytest.approx(0.75)
    assert p_a({"[[A]]": 0.0, "[[B]]": -9999.0}) == 1.0
    assert p_a({"[[A]]": -9999.0, "[[B]]": 0.0}) == pytest.approx(0.0)
