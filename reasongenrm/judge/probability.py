"""P([[A]]) from a completion's log-probabilities, over the two verdicts alone.

In goes `choices[0].logprobs.content` of a chat completion, out comes a number in [0, 1] in terms of the prompt that was
asked. How a tokenizer cuts "[[A]]" does not matter: "[[", "A", "]]" or "[[A", "]]" or one token.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

LOWEST_LOGPROB = -9999.0  # vLLM's own stand-in for minus infinity
_VERDICT = re.compile(r"\[\[([AB])\]\]")


def probability_of_a(tokens: Sequence[Mapping[str, Any]]) -> float | None:
    """P([[A]]) / (P([[A]]) + P([[B]])) at the last verdict of an answer.

    Args:
        tokens: `logprobs.content`: each {"token", "logprob", "top_logprobs": [{"token", "logprob"}, ...]}, natural logs.
            Tokens before the verdict's (a server may give the reason's as well) are passed over.

    Returns:
        In [0, 1]; None if no verdict is among the tokens, or the one that decides has no `top_logprobs`. A verdict that
        is missing from them counts as the least probable one of the list, for its probability is no higher; but if the
        one that was written is not above that either (a grammar forced it), nothing can be told: None.
    """
    text = "".join(str(token["token"]) for token in tokens)
    verdicts = list(_VERDICT.finditer(text))
    if not verdicts:
        return None
    place, start = verdicts[-1].start(1), 0
    for token in tokens:
        piece = str(token["token"])
        if start <= place < start + len(piece):
            return _two_way(token, piece, place - start)
        start += len(piece)
    raise AssertionError("a verdict lies within its tokens")


def _two_way(token: Mapping[str, Any], piece: str, offset: int) -> float | None:
    """The share of "A" among "A" and "B" at the token that decides; `offset` is the letter's place in it."""
    logprobs = {str(other["token"]): _logprob(other) for other in token.get("top_logprobs") or ()}
    written = _logprob(token)
    others = [logprob for text, logprob in logprobs.items() if text != piece]
    if not others:
        return None
    least = min(others)
    logprobs[piece] = written

    def log_share(of: str) -> float | None:
        values = [logprob for text, logprob in logprobs.items() if _begins_verdict(text, piece[:offset], of)]
        return _logsumexp(values) if values else None

    log_a, log_b = log_share("A"), log_share("B")
    if log_a is None or log_b is None:
        if written < least:
            return None
        log_a, log_b = (least if log_a is None else log_a), (least if log_b is None else log_b)
    difference = log_b - log_a
    return 1.0 / (1.0 + math.exp(difference)) if difference < 700 else 0.0


def _logprob(token: Mapping[str, Any]) -> float:
    return max(float(token["logprob"]), LOWEST_LOGPROB)


def _begins_verdict(text: str, before: str, letter: str) -> bool:
    """Whether a token goes at least to the letter of a verdict, and says nothing else: "B", "B]]", "B]]\\n", but not "Both"."""
    verdict = f"{before}{letter}]]"
    return text.startswith(before + letter) and (verdict.startswith(text) or text.startswith(verdict))


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
