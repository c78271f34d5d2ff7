"""What is asked: the judge's prompt, the plain prompt of an untrained judge, the teacher's prompt.

Text of questions and answers is data. It goes in neutralised (`as_data`: no control token, no heading of ours and no
verdict mark survives) and between fixed headings. generation/verdicts.py reads the verdict back.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from reasongenrm.data.chat_families import neutralise
from reasongenrm.records import JudgePrompt

_MARK = re.compile(r"\[(?=\[[AB]\]\])")
# A line that is one of the headings below, or looks like one: in any case, depth and spacing, invisible characters too.
_SPACE = r"[ \t\xa0\u2000-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*"
_BREAKS = r"\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_HEADING = re.compile(
    rf"(?:^|(?<=[{_BREAKS}]))(?={_SPACE}#{{1,6}}{_SPACE}"
    rf"(?:Question|Answer{_SPACE}[AB]|Judge{_SPACE}by|Verdict|Your{_SPACE}part)"
    rf"{_SPACE}(?:#|:|[{_BREAKS}]|$))",
    re.IGNORECASE | re.MULTILINE,
)

_TASK = """\
Two answers to the same question are given below. Decide which one is better: the one that does what the question \
asks, is correct, and is helpful and safe.

### Question
{question}

### Answer A
{answer_a}

### Answer B
{answer_b}
{rubric}
### Verdict
Write [[A]] if answer A is better, or [[B]] if answer B is better."""

_RUBRIC = """
### Judge by
{rubric}
"""

_EXPLAIN = (
    " First explain your decision in two or three sentences. "
    "Then end with the verdict, [[A]] or [[B]], on a line of its own."
)

_TEACHER = """\
{task}

### Your part
The better answer is known: it is answer {letter}. Write the reasoning that leads an impartial judge there, in a few \
sentences: what the question asks for, how answer A meets it, how answer B meets it, and which difference decides. \
Argue from the two answers alone, as if nobody had told you the result, and do not mention that it was given. Close by \
saying in words which answer is better. Write the reasoning only, without the marks [[A]] and [[B]]."""


class TurnText(Protocol):
    """One turn of a question: a `records.Message`, or a turn as the judge's API takes it."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


def question_text(question: Sequence[TurnText]) -> str:
    """The question as text: a single turn as it is, several turns each with its role."""
    if len(question) == 1:
        return question[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in question)


def as_data(text: str) -> str:
    """Text as it goes into a prompt, so that it stays text: no part of the prompt and no verdict can be faked in it.

    Control tokens get a space ("< |im_end|>", see `chat.neutralise`), verdict marks too ("[ [A]]": a model that quotes
    an answer gives no verdict by it), and lines that equal a heading of the prompt are quoted ("> ### Answer B"). Other
    text is left as it is; applying it twice changes nothing more.
    """
    return _HEADING.sub("> ", _MARK.sub("[ ", neutralise(text)))


def judge_prompt(question: Sequence[TurnText], answer_a: str, answer_b: str, rubric: str | None = None) -> str:
    """The user turn that GenRM and ReasonGenRM are trained on and asked with.

    Args:
        rubric: what to judge by, in a separate section; None, as in training, leaves that section out.
    """
    return _TASK.format(
        question=as_data(question_text(question)),
        answer_a=as_data(answer_a),
        answer_b=as_data(answer_b),
        rubric="" if rubric is None else _RUBRIC.format(rubric=as_data(rubric)),
    )


def plain_judge_prompt(question: Sequence[TurnText], answer_a: str, answer_b: str, rubric: str | None = None) -> str:
    """The user turn for an untrained model: plain chat, the verdict at the end (docs/method.md, section 7)."""
    return judge_prompt(question, answer_a, answer_b, rubric) + _EXPLAIN


def teacher_prompt(prompt: JudgePrompt) -> str:
    """The user turn for the teacher: the judge prompt with the right verdict (docs/method.md, section 1)."""
    task = judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)
    return _TEACHER.format(task=task, letter=prompt.label[2])
