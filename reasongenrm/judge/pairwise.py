"""One pair: both orders and all votes asked at once, and what they say together.

In goes a pair, out come its judgments in terms of the caller's answers, the answer that they prefer and p_a.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from reasongenrm.evaluation.judging import judge_sampling, preferred_answer, probability_of_first
from reasongenrm.generation.openai_client import ContextExceededError
from reasongenrm.generation.seam import Generation
from reasongenrm.judge.api import MAX_VOTES, CallerOrder, Cut, JudgeOptions, OrderJudgment, ReasonDelta, Usage
from reasongenrm.judge.predictor import OnReason, Predictor
from reasongenrm.judge.prompting import MIN_CHARS, Pair
from reasongenrm.judge.refusals import TooLongError
from reasongenrm.processes.gathering import gather_or_cancel
from reasongenrm.records import Letter
from reasongenrm.variants import JudgeStyle

if TYPE_CHECKING:
    from reasongenrm.evaluation.calibration import PlattScaling

VERDICTS = ("[[A]]", "[[B]]")
CUT_STEP = 0.7  # how much is kept at each try at most, where only the predictor knows what fits
_SEND_LESS = 'Send less, or set when_too_long to "truncate" to have their middle left out'
LEAST_CUT_STEP = 0.05  # and at least, whatever the predictor said


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge asks its predictor."""

    predictor_url: str  # up to and including /v1
    model: str | None = None  # the predictor's; None: the only one that it lists
    # A trained judge is asked for "reason" and verdict or for the "verdict" at once, any other model in "plain" chat.
    style: JudgeStyle = "reason"
    max_tokens: int = 2048  # of one generation, reason and verdict, unless a request says otherwise
    max_chars: int = 400_000  # of question and answers together; more is refused or cut before it is sent
    timeout_seconds: float = 120.0  # of one generation, or more if its max_tokens take longer at the measured speed
    # Nothing but [[A]] and [[B]] is allowed as the answer; not with "plain", whose answer holds its reasoning too.
    constrained: bool = True
    anchor: str = "I am not sure how to answer that."  # what a single answer is held against without a reference
    max_concurrency: int = 64  # generations under way at the predictor at once
    calibration: "PlattScaling | None" = None  # of this checkpoint


JudgeEvent = ReasonDelta | OrderJudgment  # one generation's reason grew, or its judgment is there
OnEvent = Callable[[JudgeEvent], Awaitable[None]]


@dataclass(frozen=True)
class PairResult:
    """What is known of a pair after all of its generations (see `api.PairwiseResponse`)."""

    preferred: Literal["A", "B", "tie"] | None
    p_a: float | None
    consistent: bool | None
    judgments: list[OrderJudgment] = field(default_factory=list)
    cuts: tuple[Cut, ...] = ()
    usage: Usage = field(default_factory=lambda: Usage(num_requests=0, prompt_tokens=0, completion_tokens=0))


class Observer(Protocol):
    """Is told what happens, for metrics."""

    def generation(self, order: CallerOrder, generation: Generation) -> None:
        """A generation ended; its verdict is in the terms of its own order."""

    def pair(self, result: PairResult) -> None:
        """A pair was judged, wherever it came from."""


class PairJudge:
    """Judges pairs through a predictor."""

    def __init__(self, predictor: Predictor, settings: JudgeSettings, observer: Observer | None = None) -> None:
        self._predictor, self._settings, self._observer = predictor, settings, observer

    async def judge(self, pair: Pair, options: JudgeOptions, on_event: OnEvent | None = None) -> PairResult:
        """Judge one pair, cut until it fits if it may be cut.

        Equal answers are a tie with p_a 0.5, by symmetry and without a request.

        Raises:
            TooLongError: it does not fit, and was not to be cut or cannot be cut enough.
            JudgeError: the predictor failed (see `Predictor.complete`).
        """
        if pair.answer_a == pair.answer_b:
            return PairResult("tie", 0.5, True if options.both_orders else None)
        may_cut = options.when_too_long == "truncate"
        if pair.num_chars > self._settings.max_chars:
            if not may_cut:
                raise TooLongError(
                    f"question and answers have {pair.num_chars:,} characters; this judge takes "
                    f"{self._settings.max_chars:,}. {_SEND_LESS}.",
                    pair.num_chars - self._settings.max_chars,
                )
            pair = pair.cut_to(self._settings.max_chars)
        whole, max_chars = pair, pair.num_chars
        while True:
            try:
                return await self._judge(pair, options, on_event)
            except ContextExceededError as error:
                max_chars = int(max_chars * min(CUT_STEP, max(LEAST_CUT_STEP, error.fitting_fraction)))
                if not may_cut or max_chars < MIN_CHARS:
                    advice = "Send less" if may_cut else _SEND_LESS
                    over = math.ceil(whole.num_chars * (1 - error.fitting_fraction)) or None
                    raise TooLongError(
                        f"question and answers ({whole.num_chars:,} characters), rubric ({len(whole.rubric or ''):,}) "
                        f"and the judge's own words do not fit into the model's context: {error.found}. {advice}, or "
                        "ask for a smaller max_tokens.",
                        over,
                    ) from error
                pair = whole.cut_to(max_chars)

    async def _judge(self, pair: Pair, options: JudgeOptions, on_event: OnEvent | None) -> PairResult:
        orders: tuple[CallerOrder, ...] = ("given", "swapped") if options.both_orders else ("given",)
        places = [(order, vote) for order in orders for vote in range(options.votes)]
        max_tokens = options.max_tokens or self._settings.max_tokens
        if (context := (await self._predictor.card()).max_model_len) is not None:
            max_tokens = max(1, min(max_tokens, context // 2))  # the prompt needs room as well
        replies = await gather_or_cancel(
            self._ask(pair, order, vote, options, max_tokens, on_event) for order, vote in places
        )
        judgments = [judgment for _, judgment in replies]
        generations = [generation for written, _ in replies for generation in written]
        usage = Usage(
            num_requests=len(generations),
            prompt_tokens=sum(generation.num_prompt_tokens for generation in generations),
            completion_tokens=sum(generation.num_output_tokens for generation in generations),
        )
        preferred, consistent = agree(judgments, orders)
        return PairResult(preferred, mean_p_a(judgments, orders), consistent, judgments, pair.cuts, usage)

    async def _ask(
        self,
        pair: Pair,
        order: CallerOrder,
        vote: int,
        options: JudgeOptions,
        max_tokens: int,
        on_event: OnEvent | None,
    ) -> tuple[list[Generation], OrderJudgment]:
        """One vote in one order. A whole answer whose verdict cannot be read gets one new sample; what a stream has
        shown is not taken back."""
        settings = self._settings
        # Named by neither order nor pair: the same texts in the same places are the same sample, whichever is called A.
        request = pair.request("vote", order, settings.style)
        sampling = judge_sampling(max_tokens, options.votes, options.temperature, options.seed)
        choices = VERDICTS if settings.constrained and settings.style != "plain" else ()
        on_reason: OnReason | None = None
        if on_event is not None:
            notify = on_event

            async def on_reason(piece: str) -> None:
                await notify(ReasonDelta(order=order, vote=vote, delta=piece))

        generation = await self._predictor.complete(request, vote, sampling, choices, on_reason)
        written = [generation]
        is_swapped = order == "swapped"
        is_unread = preferred_answer(generation, is_swapped) is None and generation.finish_reason == "stop"
        if is_unread and on_event is None:
            second = replace(sampling, temperature=options.temperature)
            generation = await self._predictor.complete(request, MAX_VOTES + vote, second, choices)
            written.append(generation)
        reason = generation.reason
        if reason is None and settings.style == "plain":
            reason = generation.answer  # plain chat: it says why in its answer
        judgment = OrderJudgment(
            order=order,
            vote=vote,
            reason=reason,
            preferred=preferred_answer(generation, is_swapped),
            p_a=probability_of_first(generation.p_a, is_swapped, settings.calibration),
            truncated=generation.finish_reason == "length",
        )
        if self._observer is not None:
            for one in written:
                self._observer.generation(order, one)
        if on_event is not None:
            await on_event(judgment)
        return written, judgment


def agree(
    judgments: Sequence[OrderJudgment], orders: Sequence[CallerOrder]
) -> tuple[Literal["A", "B", "tie"] | None, bool | None]:
    """What the orders prefer together, and whether they agree (see `api.PairwiseResponse`)."""
    said = [_majority([found.preferred for found in judgments if found.order == order]) for order in orders]
    known = [preferred for preferred in said if preferred is not None]
    if not known:
        return None, None
    together = known[0] if len(set(known)) == 1 else "tie"
    return together, known[0] == known[-1] != "tie" if len(known) == 2 else None


def mean_p_a(judgments: Sequence[OrderJudgment], orders: Sequence[CallerOrder]) -> float | None:
    """Mean over the orders of the mean over an order's votes: an order with fewer readable votes weighs no less."""
    of_order = [
        [found.p_a for found in judgments if found.order == order and found.p_a is not None] for order in orders
    ]
    means = [math.fsum(votes) / len(votes) for votes in of_order if votes]
    return math.fsum(means) / len(means) if means else None


def _majority(preferred: Sequence[Letter | None]) -> Literal["A", "B", "tie"] | None:
    num_a, num_b = preferred.count("A"), preferred.count("B")
    if num_a == num_b:
        return "tie" if num_a else None
    return "A" if num_a > num_b else "B"
