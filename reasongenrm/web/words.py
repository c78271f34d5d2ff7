"""Verdicts and errors in words that a visitor understands, as plain text that callers escape."""

import re
from dataclasses import dataclass

from reasongenrm.judge.api import PairwiseResponse
from reasongenrm.judge.client.client_errors import (
    JudgeBusyError,
    JudgeClientError,
    JudgeKeyError,
    JudgeRequestError,
    JudgeTooLongError,
    JudgeUnavailableError,
    NotAJudgeError,
)

_WHERE = re.compile(r"^\S+: (HTTP \d+: )?")  # the client's messages begin with the judge's address
MORE_LABEL = "Rubric, votes, long texts"
CUT_LABEL = "Cut the middle out of what is too long, instead of refusing it"
ORDER_NAMES = {"given": "A read first", "swapped": "B read first"}


@dataclass(frozen=True)
class Notice:
    """Something other than a verdict: a title and what to do. `is_error` colours it."""

    title: str
    text: str
    is_error: bool = True


READING = Notice("Reading the store", "A folder's server takes a few seconds to start.", is_error=False)
CHAT_TOO_LONG = Notice(
    "The conversation is too long", "It does not fit into the model's context. Clear it, or send a shorter message."
)
STOPPED = Notice("Stopped", "The judge was told to stop. What it had written so far stays below.", is_error=False)
NO_QUESTION = Notice("The question is missing", "Write what the two answers reply to, or choose an example.")
NO_ANSWERS = Notice("The answers are missing", "Write answer A and answer B, or choose an example.")
NO_EARLIER_QUESTION = Notice(
    "An earlier question is missing", "Under 'Earlier turns' there is an answer without its question. Write both."
)
NOT_READY = Notice(
    "The judge is not ready", "It is starting, restarting or down; judging and chatting will fail until it answers."
)
TOO_MANY = Notice(
    "One at a time, please",
    "Your address already has as many judgments in progress as one visitor may have. Wait until one ends, or stop it.",
)


# What a visitor is told, by the error's class.
_TOLD: dict[type[JudgeClientError], tuple[str, str]] = {
    JudgeBusyError: ("The judge is busy", "Too many requests are in progress. Try again in a few seconds."),
    JudgeKeyError: (
        "The judge refused this page's key",
        "The operator of this page must set JUDGE_API_KEY to the judge's key.",
    ),
    JudgeUnavailableError: (
        "The judge does not answer",
        "It is starting, restarting or down. Try again in a minute; nothing you wrote is lost.",
    ),
    NotAJudgeError: (
        "This is not a judge",
        "What answers at the judge's address is another service. The operator of this page must fix --judge.",
    ),
}


def notice_of(error: JudgeClientError) -> Notice:
    """What a visitor is told about a request that failed. Addresses, keys and server internals stay in the log."""
    if type(error) is JudgeRequestError:
        return Notice("The judge refused this request", _WHERE.sub("", str(error), count=1))
    if isinstance(error, JudgeTooLongError):
        over = f"about {error.num_chars_over:,} characters" if error.num_chars_over else "somewhat"
        title, text = "Too long for this judge", f"Question and answers are {over} too long for it. Shorten them, or "
        text += f"open '{MORE_LABEL}' and tick '{CUT_LABEL}'."
    else:
        title, text = _TOLD[type(error)]
    if error.code == "predictor_timeout":
        title, text = "The model took too long", "Shorten the texts or ask for fewer votes, and try again."
    return Notice(title, f"{text} Request {error.request_id}." if error.request_id else text)


def headline(response: PairwiseResponse) -> str:
    """The verdict in two words."""
    return {"A": "A is better", "B": "B is better", "tie": "A tie", None: "No verdict"}[response.preferred]


def explanation(response: PairwiseResponse) -> str:
    """What stands behind the verdict, in a sentence."""
    orders = {judgment.order for judgment in response.judgments}
    votes = len(response.judgments) // max(1, len(orders))
    if response.preferred is None:
        cut = any(judgment.truncated for judgment in response.judgments)
        why = "it ran out of tokens before it" if cut else "its text names no answer"
        return f"The judge wrote no verdict that can be read: {why}."
    if len(orders) == 1:
        return "Judged in one order only: the place of the answers may have swayed the judge."
    if response.preferred != "tie" and response.consistent:
        return f"Consistent: whichever answer it read first, the judge chose {response.preferred}."
    if response.preferred != "tie":
        return "Only one order ended with a verdict; the place of the answers may have swayed the judge."
    named = {judgment.preferred for judgment in response.judgments if judgment.order == "given"}
    if votes == 1 and named <= {"A", "B"}:
        read = "first" if named == {"A"} else "last"
        why = f"in both orders the judge chose the answer that it read {read}, so neither counts as better"
        return f"Not consistent: {why}."
    return "The orders or their votes disagree, so neither answer counts as better."
