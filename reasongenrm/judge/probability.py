"""P([[A]]) out of a completion's log-probabilities: found where the two verdicts part, over the two verdicts alone.

In goes `choices[0].logprobs.content` of a chat completion, out comes a number in [0, 1] in terms of the prompt that was
asked. How a tokenizer cuts "[[A]]" does not matter: "[[", "A", "]]" or "[[A", "]]" or one token.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_VERDICT = re.compile(r"\[\[([AB])\]\]")


def probability_of_a(tokens: Sequence[Mapping[str, Any]]) -> float | None:
    """P([[A]]) / (P([[A]]) + P([[B]])) at the last verdict of an answer.

    Args:
        tokens: `logprobs.content`: each {"token", "logprob", "top_logprobs": [{"token", "logprob"}, ...]}, natural logs.
            Tokens before the verdict's (a server may give the reason's as well) are passed over.

    Returns:
        In [0, 1]; None if no verdict is among the tokens, or the one that decides has no `top_logprobs`. An alternative
        that is missing from them counts as the least probable one of the list: its probability is no higher.
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
    logprobs = {str(other["token"]): float(other["logprob"]) for other in token.get("top_logprobs") or ()}
    if not logprobs:
        return None
    least = min(*logprobs.values(), float(token["logprob"]))
    logprobs[piece] = float(token["logprob"])

    def log_share(of: str) -> float:
        values = [logprob for text, logprob in logprobs.items() if text.startswith(piece[:offset] + of)]
        return _logsumexp(values) if values else least

    difference = log_share("B") - log_share("A")
    return 1.0 / (1.0 + math.exp(difference)) if difference < 700 else 0.0


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
