"""The one reader of verdicts: what an assistant turn decides, and P([[A]]) where it was written.

All engines and the judge service read with these two functions, so an evaluation calibrates the probability that is
served.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reasongenrm.data.prompts import plain_judge_prompt
from reasongenrm.records import Message, Verdict

READER_VERSION = 2  # part of an evaluation's key: raise it with a change that can alter a verdict or a probability
TOP_LOGPROBS = 20  # asked for at every token: OpenAI's limit, and vLLM's default one
LOWEST_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks; vLLM's own value

_MARK = re.compile(r"\[\[([A-Za-z][A-Za-z =<>/|&,-]{0,30})\]\]")
_THINK_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
_THINK_OPENING, _THINK_CLOSING = re.compile("<think>", re.IGNORECASE), re.compile("</think>", re.IGNORECASE)
_NEAR_CHARS = 300  # around a mark: further away nothing makes it a quotation, and matching stays cheap on any text
_QUOTES = r"[\"'`*_()\u2018\u2019\u201c\u201d\s]*"
_NAMES = {"A": "A|(?i:first|former)", "B": "B|(?i:second|latter)"}
# "if answer A is better", "when you think the first is": a condition whose subject is the answer that the mark stands
# for.
_CONDITIONS = {
    letter: r"(?i:if|when|whenever|in case)\s+(?i:you\s+(?:think|believe|find|judge)\s+(?:that\s+)?)?(?i:the\s+)?"
    rf"(?i:(?:answer|assistant|response|model|candidate|option|output)\s+)?{_QUOTES}(?:{names})\b"
    for letter, names in _NAMES.items()
}
_CONDITION_AFTER = {
    letter: re.compile(rf"{_QUOTES}[,:;-]?{_QUOTES}(?:{condition}|(?i:otherwise|else)\b|(?i:if|or)\W*\Z)")
    for letter, condition in _CONDITIONS.items()
}
_CONDITION_BEFORE = {letter: re.compile(rf"\b{condition}[^.!?\n\[]*\Z") for letter, condition in _CONDITIONS.items()}
_LED_IN = re.compile(
    rf"\b(?:or(?:\s+(?:maybe|perhaps|possibly|else|even|write|output|say|is\s+it))?|either|between|whether){_QUOTES}\Z",
    re.IGNORECASE,
)
_JOINED = re.compile(
    rf"{_QUOTES}(?:(?:if|when|for|means?|meaning|in case)\b[^.!?\n\[]*?)?"
    rf"(?:,?\s*\b(?:or(?:\s+\w+){{0,2}}|and|nor|versus|vs\.?|otherwise|else)|[,;/|&]){_QUOTES}",
    re.IGNORECASE,
)
_COMPARED = re.compile(rf"\b(?:than|over|beats?|against|instead of|not){_QUOTES}\Z", re.IGNORECASE)
_TIE = re.compile(
    r"(?:\A|[.:;,!?\n(-]|\b(?:it|is|s|be|declare|say|or))[\s\"'*_]*(?:an?\s+[*_]*)?(?:tie|tied|draw)"
    r"(?=[\s\"'*_)]*(?:\Z|[.;,!?\n])|\s+(?:between|because|overall))",
    re.IGNORECASE,
)


def _instruction_ends() -> tuple[tuple[str, ...], ...]:
    """The words that follow each verdict mark in our own instruction, up to its next mark or its end."""
    text = plain_judge_prompt((Message(role="user", content=""),), "", "")
    return tuple(tuple(re.findall(r"\w+", part)) for part in _MARK.split(text)[2::2])


_ENDS = _instruction_ends()


def parse_verdict(answer: str) -> Verdict | None:
    """What an assistant turn decides: its last mark, if that one states a verdict.

    A verdict is written exactly [[A]] or [[B]], whatever stands around it (bold type, a box, a sentence). Of a text:

    1. What stands in a think block is reason and never counts: up to the last `</think>`, also where the block was
       opened in the prompt, and from a `<think>` that is never closed to the end.
    2. A mark that another one is compared with, or that is denied, states nothing and is passed over: "[[A]] is better
       than [[B]]" is [[A]].
    3. The last mark that is left decides. It is none if
       - it is of another kind ([[C]], [[tie]]), or the text calls a tie after it: what was said before is withdrawn;
       - it is a choice that is quoted: joined to another mark ("[[A]] or [[B]]", "[[A]], [[B]]"), led in as an
         alternative ("or [[B]]", "between [[A]]"), or bound to a condition about the very answer it stands for ("[[B]]
         if answer B is better"): so is an echo of an instruction, whole or in part, in quotes or not;
       - nothing follows it but the words that follow a mark in our own instruction.

    Returns:
        None if there is no verdict (unparsed).
    """
    found = _deciding_mark(answer)
    return None if found is None else _verdict_of(found[1])


def _verdict_of(letter: str) -> Verdict:
    return "[[A]]" if letter == "A" else "[[B]]"


def _deciding_mark(answer: str) -> re.Match[str] | None:
    """The mark that states the verdict, at its place in `answer`."""
    said = _without_thoughts(answer)
    marks = list(_MARK.finditer(said))
    for place in range(len(marks) - 1, -1, -1):
        mark = marks[place]
        start = marks[place - 1].end() if place else 0
        before = said[max(start, mark.start() - _NEAR_CHARS) : mark.start()]
        after = said[mark.end() : mark.end() + _NEAR_CHARS]
        if mark[1] not in _NAMES:
            return None
        if _COMPARED.search(before):
            continue
        is_joined = place > 0 and marks[place - 1][1] != mark[1] and _JOINED.fullmatch(before) is not None
        is_quoted = (
            is_joined
            or _LED_IN.search(before)
            or _CONDITION_BEFORE[mark[1]].search(before)
            or _CONDITION_AFTER[mark[1]].match(after)
        )
        return None if is_quoted or _is_withdrawn(said[mark.end() :]) or _is_instruction_end(after) else mark
    return None


def _without_thoughts(text: str) -> str:
    """The text with line breaks in place of every character of its think blocks."""
    closings = list(_THINK_CLOSING.finditer(text))
    end = closings[-1].end() if closings else 0
    head = _THINK_BLOCK.sub(_blank, text[:end])
    unopened = list(_THINK_CLOSING.finditer(head))
    if unopened:
        head = "\n" * unopened[-1].end() + head[unopened[-1].end() :]
    unclosed = _THINK_OPENING.search(text, end)
    stop = unclosed.start() if unclosed else len(text)
    return head + text[end:stop] + "\n" * (len(text) - stop)


def _blank(match: re.Match[str]) -> str:
    return "\n" * len(match[0])


def _is_withdrawn(after: str) -> bool:
    """Whether the text after a verdict calls a tie."""
    return _TIE.search(re.sub(r"\s*\n\s*", "\n", after)) is not None


def _is_instruction_end(text: str) -> bool:
    words = tuple(re.findall(r"\w+", text))
    return bool(words) and any(end[: len(words)] == words for end in _ENDS)


@dataclass(frozen=True)
class ReplyToken:
    """A token of a reply; `top` holds natural-log probabilities by text: its own, and those of others at its place."""

    text: str
    top: Mapping[str, float]

    @classmethod
    def of_openai(cls, token: Mapping[str, Any]) -> "ReplyToken":
        """One of `choices[0].logprobs.content`: {"token", "logprob", "top_logprobs": [{"token", "logprob"}, ...]}.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it has another shape.
        """
        listed = [*(token.get("top_logprobs") or ()), token]
        return cls(
            str(token["token"]), {str(one["token"]): max(float(one["logprob"]), LOWEST_LOGPROB) for one in listed}
        )


def probability_of_a(answer: str, tokens_backwards: Iterable[ReplyToken]) -> float | None:
    """P([[A]]) of the two verdicts alone, where the verdict of an answer was written, given the text before its letter.

    p = P(A) / (P(A) + P(B)) at the token that holds the letter. How a tokenizer cuts "[[A]]" does not matter: "[[",
    "A", "]]", "[[A", "]]" or one token; a letter that several listed tokens spell ("A", "A]]") has the sum of their
    probabilities. A grammar that leaves nothing but the two verdicts changes neither their ratio nor, so, the number.

    A letter that is not listed is less probable than all that are, so the least listed probability is a bound on its
    own, and is taken for it: the error is on the side of doubt. Where both letters are listed, as by the engines in
    this process and by our own server, nothing is assumed. Where the letter that was written is less probable than all
    others that are listed, a grammar forced it (or chance did), the list says nothing of either letter: None.

    Args:
        answer: the assistant turn.
        tokens_backwards: the tokens of the reply from its last one backwards, as far back as the answer's verdict at
            least. Tokens of a reason before it change nothing.

    Returns:
        In [0, 1], in the terms of the prompt that was asked. None if the answer has no verdict (`parse_verdict`), the
        tokens do not have it, or nothing can be told.
    """
    mark = _deciding_mark(answer)
    if mark is None:
        return None
    num_later = len(_MARK.findall(answer, mark.end()))
    text, tokens = "", []
    for token in tokens_backwards:
        text = token.text + text
        tokens.append(token)
        if "[" not in token.text:
            continue  # no mark can have begun
        marks = list(_MARK.finditer(text))
        if len(marks) > num_later:
            found = marks[-1 - num_later]
            return _share_of_a(reversed(tokens), found.start(1)) if found[1] == mark[1] else None
    return None


def _share_of_a(tokens: Iterable[ReplyToken], place: int) -> float | None:
    """The share of "A" among "A" and "B" at the token that holds the letter, which is at `place` of the joined text."""
    for token in tokens:
        if place < len(token.text):
            break
        place -= len(token.text)
    written = token.top.get(token.text, LOWEST_LOGPROB)
    log_a, log_b = (_log_share(token.top, token.text[:place], letter) for letter in "AB")
    if log_a is None or log_b is None:
        others = [logprob for text, logprob in token.top.items() if text != token.text]
        if not others or written < min(others):
            return None
        log_a, log_b = (min(others) if share is None else share for share in (log_a, log_b))
    return 1 / (1 + math.exp(min(log_b - log_a, 700.0)))  # exp overflows beyond 709


def _log_share(top: Mapping[str, float], before: str, letter: str) -> float | None:
    """Log-probability of all listed tokens that go at least to the letter of a verdict and say nothing else.

    "B", "B]]" and "B]]\\n" are such, "Both" is not.
    """
    whole = f"{before}{letter}]]"
    spelled = [
        logprob
        for text, logprob in top.items()
        if text.startswith(before + letter) and (whole.startswith(text) or text.startswith(whole))
    ]
    if not spelled:
        return None
    highest = max(spelled)
    return highest + math.log(sum(math.exp(logprob - highest) for logprob in spelled))
