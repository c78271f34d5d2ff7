"""Where in a reply's tokens the verdict stands, and how probable its two letters were there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reasongenrm.data.prompts import parse_verdict
from reasongenrm.records import Verdict

TOP_LOGPROBS = 20  # asked for at every token: OpenAI's limit, and vLLM's default one


@dataclass(frozen=True)
class ReplyToken:
    """A token as OpenAI's `logprobs` has it; `top` are natural-log probabilities of the most probable ones there, by text."""

    text: str
    top: Mapping[str, float]


def reply_verdict_logprobs(tokens: Sequence[ReplyToken], answer: str) -> dict[Verdict, float] | None:
    """Log-probabilities of "A" and "B" where a reply's verdict was written, given the "[[" before it.

    Args:
        tokens: of the content alone, or (vLLM) of all that was generated.
        answer: the content.

    Returns:
        None if the answer has no verdict, spells it with tokens other than a letter of its own, or if one of the letters
        is not among the most probable tokens there.
    """
    verdict = parse_verdict(answer)
    if verdict is None:
        return None
    texts = [token.text for token in tokens]
    # The answer is the last turn, so its verdict is the last that was written.
    for place in range(len(texts) - 1, -1, -1):
        if texts[place] != verdict[2]:
            continue
        # "[[" and "]]" have at most two tokens each.
        if "".join(texts[max(0, place - 2) : place]).endswith("[[") and "".join(
            texts[place + 1 : place + 3]
        ).startswith("]]"):
            top = tokens[place].top
            return {"[[A]]": top["A"], "[[B]]": top["B"]} if {"A", "B"} <= top.keys() else None
    return None


def p_a(logprobs: Mapping[Verdict, float]) -> float:
    """P([[A]]) of the two verdicts alone, in [0, 1]: P(A) / (P(A) + P(B)), in the terms of the prompt that was asked."""
    return 1 / (1 + math.exp(min(logprobs["[[B]]"] - logprobs["[[A]]"], 700.0)))  # exp overflows beyond 709
