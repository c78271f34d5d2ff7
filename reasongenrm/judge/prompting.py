"""A caller's pair to the chat messages of each order; what is too long loses its middle, if allowed.

The prompt is that of the training (`prompts.judge_prompt`); every text goes through `neutralise` there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reasongenrm.data.prompts import question_text
from reasongenrm.evaluation.judging import judge_request
from reasongenrm.generation.seam import GenerationRequest
from reasongenrm.judge.api import CallerOrder, Cut, QuestionTurn
from reasongenrm.variants import JudgeStyle

MIN_CHARS = 200  # of all texts together: less than that is no judgment


@dataclass(frozen=True)
class Pair:
    """What is judged: a question and two answers, with what was left out of them."""

    question: tuple[QuestionTurn, ...]
    answer_a: str
    answer_b: str
    rubric: str | None = None
    cuts: tuple[Cut, ...] = ()

    @property
    def num_chars(self) -> int:
        """Of question and answers."""
        return len(question_text(self.question)) + len(self.answer_a) + len(self.answer_b)

    def request(self, request_id: str, order: CallerOrder, style: JudgeStyle) -> GenerationRequest:
        """What asks about the pair in one order."""
        first, second = (self.answer_a, self.answer_b) if order == "given" else (self.answer_b, self.answer_a)
        request = judge_request(request_id, self.question, first, second, style, self.rubric)
        (message,) = request.messages
        return replace(request, messages=({**message, "content": _encodable(message["content"])},))

    def cut_to(self, max_chars: int) -> "Pair":
        """The pair with the middle left out of its longest texts, so that all together have at most `max_chars` (and
        the marks).

        All texts are cut to the same length, so that it does not matter which answer is called A.
        """
        whole = question_text(self.question)
        texts = {"question": whole, "answer_a": self.answer_a, "answer_b": self.answer_b}
        level = _level([len(text) for text in texts.values()], max_chars)
        cut = {field: _without_middle(text, level) for field, text in texts.items()}
        cuts = tuple(Cut(field=name, num_chars=len(text) - level) for name, text in texts.items() if len(text) > level)
        question = self.question
        if len(whole) > level:
            question = (QuestionTurn(role="user", content=cut["question"]),)
        return Pair(question, cut["answer_a"], cut["answer_b"], self.rubric, cuts)


def _level(lengths: Sequence[int], budget: int) -> int:
    """The largest L with sum(min(length, L)) <= budget."""
    left = budget
    for place, length in enumerate(ordered := sorted(lengths)):
        share = left // (len(ordered) - place)
        if length > share:
            return max(0, share)
        left -= length
    return max(lengths)


def _without_middle(text: str, level: int) -> str:
    """`level` characters of a text, from its beginning and its end, and a mark in between."""
    if len(text) <= level:
        return text
    head = level - level // 2
    tail = text[len(text) - level // 2 :] if level > 1 else ""
    return f"{text[:head]}\n[... {len(text) - level} characters left out ...]\n{tail}"


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become the replacement character."""
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
