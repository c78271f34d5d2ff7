"""The judge itself, without HTTP: API requests in, responses out, one predictor behind it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from reasongenrm.judge.api import (
    AnswerPair,
    Cut,
    JudgeOptions,
    ListwiseRequest,
    ListwiseResponse,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
    Usage,
)
from reasongenrm.judge.listwise import rank
from reasongenrm.judge.pairwise import JudgeEvent, JudgeSettings, Observer, OnEvent, PairJudge, PairResult
from reasongenrm.judge.predictor import KEY_VARIABLE, Predictor
from reasongenrm.judge.prompting import Pair

__all__ = ["JudgeEvent", "JudgeService", "JudgeSettings", "Observer", "judge_once", "open_judge"]


class JudgeService:
    """Judges pairs, lists and single answers. Make it with `open_judge`.

    What cannot be judged is raised as a `JudgeError`: see `PairJudge.judge`.
    """

    def __init__(self, predictor: Predictor, settings: JudgeSettings, observer: Observer | None = None) -> None:
        self.predictor, self.settings = predictor, settings
        self._pairs, self._observer = PairJudge(predictor, settings, observer), observer
        self._is_calibrated = settings.calibration is not None

    async def pairwise(self, request: AnswerPair, request_id: str, on_event: OnEvent | None = None) -> PairwiseResponse:
        """Which of two answers is better; `on_event` is told of each piece of a reason and of each judgment."""
        started = time.perf_counter()
        result = await self._judge(request, request.answer_a, request.answer_b, on_event)
        return PairwiseResponse(
            preferred=result.preferred,
            p_a=result.p_a,
            consistent=result.consistent,
            calibrated=self._is_calibrated,
            judgments=result.judgments,
            cuts=list(result.cuts),
            **await self._common(request_id, started, result.usage),
        )

    async def pointwise(self, request: PointwiseRequest, request_id: str) -> PointwiseResponse:
        """How probable it is that an answer is better than its reference, or than the fixed anchor."""
        started = time.perf_counter()
        against = self.settings.anchor if request.reference is None else request.reference
        result = await self._judge(request, request.answer, against)
        names = {"question": "question", "answer_a": "answer", "answer_b": "reference"}
        return PointwiseResponse(
            score=result.p_a,
            against="anchor" if request.reference is None else "reference",
            consistent=result.consistent,
            calibrated=self._is_calibrated,
            judgments=result.judgments,
            cuts=[cut.model_copy(update={"field": names[cut.field]}) for cut in result.cuts],
            **await self._common(request_id, started, result.usage),
        )

    async def listwise(self, request: ListwiseRequest, request_id: str) -> ListwiseResponse:
        """A ranking of several answers; what cannot be judged ends the comparisons under way."""
        started = time.perf_counter()
        cuts: dict[str, Cut] = {}

        async def compare(first: int, second: int) -> PairResult:
            result = await self._judge(request, request.answers[first], request.answers[second])
            names = {"question": "question", "answer_a": f"answers.{first}", "answer_b": f"answers.{second}"}
            for cut in result.cuts:  # an answer may be cut differently with another one: report the longest cut
                name = names[cut.field]
                if name not in cuts or cut.num_chars > cuts[name].num_chars:
                    cuts[name] = Cut(field=name, num_chars=cut.num_chars)
            return result

        ranking = await rank(len(request.answers), compare, request.max_comparisons)
        return ListwiseResponse(
            ranking=ranking.order,
            scores=ranking.scores,
            comparisons=ranking.comparisons,
            complete=ranking.complete,
            cuts=[cuts[name] for name in sorted(cuts)],
            **await self._common(request_id, started, ranking.usage),
        )

    async def _common(self, request_id: str, started: float, usage: Usage) -> dict[str, Any]:
        """What every answer has."""
        model = (await self.predictor.card()).name
        return {"id": request_id, "model": model, "usage": usage, "latency_seconds": time.perf_counter() - started}

    async def _judge(
        self, options: JudgeOptions, answer_a: str, answer_b: str, on_event: OnEvent | None = None
    ) -> PairResult:
        pair = Pair(tuple(options.turns()), answer_a, answer_b, options.rubric)
        result = await self._pairs.judge(pair, options, on_event)
        if self._observer is not None:
            self._observer.pair(result)
        return result


@asynccontextmanager
async def open_judge(
    settings: JudgeSettings, observer: Observer | None = None, key: str | None = None
) -> AsyncIterator[JudgeService]:
    """A judge with its connections.

    Args:
        observer: is told of every generation and pair.
        key: the predictor's; None reads VLLM_API_KEY, which may be unset.
    """
    predictor = Predictor(
        settings.predictor_url,
        settings.model,
        key or os.environ.get(KEY_VARIABLE) or None,
        settings.timeout_seconds,
        settings.max_concurrency,
    )
    async with predictor:
        yield JudgeService(predictor, settings, observer)


def judge_once(settings: JudgeSettings, request: PairwiseRequest, key: str | None = None) -> PairwiseResponse:
    """One pair, judged as a server with these settings would, from code without an event loop (see `open_judge`)."""

    async def ask() -> PairwiseResponse:
        async with open_judge(settings, key=key) as service:
            return await service.pairwise(request, "once")

    return asyncio.run(ask())
