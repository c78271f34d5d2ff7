"""A pair in the judge tab: from what was typed to what is shown, as the judge streams it."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from reasongenrm.judge.api import CallerOrder, OrderJudgment, PairwiseResponse, ReasonDelta
from reasongenrm.judge.client.client import AsyncJudge
from reasongenrm.judge.client.client_errors import JudgeClientError
from reasongenrm.web.pace import paced
from reasongenrm.web.words import NO_ANSWERS, NO_EARLIER_QUESTION, NO_QUESTION, Notice, notice_of

logger = logging.getLogger(__name__)
ORDERS: tuple[CallerOrder, ...] = ("given", "swapped")


@dataclass(frozen=True)
class Asked:
    """The judge tab's fields. `earlier`: pairs of a question and its reply, oldest first, empty ones are left out."""

    question: str
    answer_a: str
    answer_b: str
    rubric: str = ""
    votes: int = 1
    cut: bool = False
    system: str = ""
    earlier: Sequence[tuple[str, str]] = ()

    def problem(self) -> Notice | None:
        """What is missing, if anything. One empty answer is fine: models give such."""
        if not self.question.strip():
            return NO_QUESTION
        if not self.answer_a.strip() and not self.answer_b.strip():
            return NO_ANSWERS
        if any(reply.strip() and not question.strip() for question, reply in self.earlier):
            return NO_EARLIER_QUESTION
        return None

    def turns(self) -> list[dict[str, str]]:
        """The conversation; its last turn is the question."""
        turns = [_turn("system", self.system)] if self.system.strip() else []
        for question, reply in self.earlier:
            if question.strip():
                turns += [_turn("user", question), _turn("assistant", reply)]
        return [*turns, _turn("user", self.question)]


@dataclass
class Seen:
    """What has come so far: reasons and judgments by order and vote, then the response or what went wrong."""

    reasons: dict[CallerOrder, dict[int, str]] = field(default_factory=lambda: {order: {} for order in ORDERS})
    judgments: dict[CallerOrder, dict[int, OrderJudgment]] = field(
        default_factory=lambda: {order: {} for order in ORDERS}
    )
    response: PairwiseResponse | None = None
    notice: Notice | None = None

    @property
    def running(self) -> bool:
        """Whether more is to come."""
        return self.response is None and self.notice is None

    def take(self, event: ReasonDelta | OrderJudgment | PairwiseResponse) -> None:
        """Add one event."""
        match event:
            case ReasonDelta():
                reasons = self.reasons[event.order]
                reasons[event.vote] = reasons.get(event.vote, "") + event.delta
            case OrderJudgment():
                self.judgments[event.order][event.vote] = event
            case PairwiseResponse():
                self.response = event
                for judgment in event.judgments:
                    self.judgments[judgment.order][judgment.vote] = judgment


async def judge_pair(judge: AsyncJudge, asked: Asked) -> AsyncGenerator[Seen, None]:
    """Ask the judge; yields what has come so far, the same object again and again, last with a response or a notice."""
    if problem := asked.problem():
        yield Seen(notice=problem)
        return
    seen = Seen()
    yield seen
    events = judge.stream(
        asked.turns() if asked.system.strip() or asked.earlier else asked.question,
        asked.answer_a,
        asked.answer_b,
        rubric=asked.rubric.strip() or None,
        votes=asked.votes,
        when_too_long="truncate" if asked.cut else "refuse",
    )
    try:
        async with aclosing(paced(events)) as batches:
            async for batch in batches:
                for event in batch:
                    seen.take(event)
                if seen.running:
                    yield seen
    except JudgeClientError as error:
        logger.warning("a judgment failed: %s", error)
        seen.notice = notice_of(error)
    yield seen


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
