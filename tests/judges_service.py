"""A judge service for the tests that prefers the longer answer, and can be told to refuse."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from reasongenrm.judge.api import (
    Comparison,
    ErrorDetail,
    ErrorResponse,
    Letter,
    ListwiseRequest,
    ListwiseResponse,
    OrderJudgment,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
    Usage,
)
from reasongenrm.judge.rewards.nemo_rl import nemo_gym_router
from reasongenrm.judge.rewards.openrlhf import openrlhf_router
from reasongenrm.judge.server.limits import Guard, Limits
from reasongenrm.judge.server.routes import add_error_handlers
from reasongenrm.judge.server.telemetry import Telemetry
from tests.endpoints import serving

USAGE = Usage(num_requests=2, prompt_tokens=20, completion_tokens=10)
ANCHOR = "no idea"  # what a single answer without a reference is held against


def refused(status: int, code: str, message: str, **more: Any) -> JSONResponse:
    """An error as a judge words it."""
    headers = more.pop("headers", None)
    detail = ErrorDetail(message=message, code=code, **more)
    return JSONResponse(ErrorResponse(error=detail).model_dump(mode="json"), status_code=status, headers=headers)


def p_longer(first: str, second: str) -> float:
    """P(first better): 0.9 for the longer one, 0.1 for the shorter, 0.5 for equal lengths."""
    if len(first) == len(second):
        return 0.5
    return 0.9 if len(first) > len(second) else 0.1


def judged(answer_a: str, answer_b: str) -> list[OrderJudgment]:
    """Both orders, which agree unless the lengths are equal: then each names the first answer that it sees."""
    p = p_longer(answer_a, answer_b)
    named: tuple[Letter, Letter] = ("A", "B") if p == 0.5 else (("A", "A") if p > 0.5 else ("B", "B"))
    return [
        OrderJudgment(order=order, vote=0, reason=f"It is {order}.", preferred=letter, p_a=p, truncated=False)
        for order, letter in zip(("given", "swapped"), named, strict=True)
    ]


class LongerWins:
    """Answers as `service.JudgeService` does, without a model: the longer answer is better. Remembers its requests."""

    model_name = "fake"

    def __init__(self) -> None:
        self.asked: list[tuple[BaseModel, str]] = []

    async def pairwise(self, request: PairwiseRequest, request_id: str) -> PairwiseResponse:
        """Which one is longer."""
        self.asked.append((request, request_id))
        judgments = judged(request.answer_a, request.answer_b)
        letters = {judgment.preferred for judgment in judgments}
        return PairwiseResponse(
            **common(request_id),
            preferred=judgments[0].preferred if len(letters) == 1 else "tie",
            p_a=p_longer(request.answer_a, request.answer_b),
            consistent=len(letters) == 1,
            calibrated=False,
            judgments=judgments,
        )

    async def listwise(self, request: ListwiseRequest, request_id: str) -> ListwiseResponse:
        """Each against each."""
        self.asked.append((request, request_id))
        answers = request.answers
        scores = [
            sum(p_longer(one, other) for j, other in enumerate(answers) if j != i) / (len(answers) - 1)
            for i, one in enumerate(answers)
        ]
        return ListwiseResponse(
            **common(request_id),
            ranking=sorted(range(len(answers)), key=lambda i: -scores[i]),
            scores=scores,
            comparisons=[
                Comparison(first=i, second=j, preferred=None, p_first=p_longer(answers[i], answers[j]), consistent=True)
                for i, j in itertools.combinations(range(len(answers)), 2)
            ],
            complete=True,
        )

    async def pointwise(self, request: PointwiseRequest, request_id: str) -> PointwiseResponse:
        """Longer than the reference, or than ANCHOR."""
        self.asked.append((request, request_id))
        against = ANCHOR if request.reference is None else request.reference
        return PointwiseResponse(
            **common(request_id),
            score=p_longer(request.answer, against),
            against="anchor" if request.reference is None else "reference",
            consistent=True,
            calibrated=False,
            judgments=judged(request.answer, against),
        )


def trainer_app(service: Any, key: str | None = None) -> Guard:
    """The trainers' routes as the judge's server has them, in front of `service`."""
    app = FastAPI()
    add_error_handlers(app)
    app.include_router(openrlhf_router(lambda: service))
    app.include_router(nemo_gym_router(lambda: service))
    return Guard(app, Limits(api_key=key), Telemetry())


def common(request_id: str) -> dict[str, Any]:
    """What every answer has."""
    return {"id": request_id, "model": "fake", "cuts": [], "usage": USAGE, "latency_seconds": 0.01}


class FakeJudge:
    """Prefers the longer answer; `refuse(path, number of the call)` may give another reply instead.

    Remembers what came, its headers, when, and how many requests were ever open at once; `streams_left` counts streams
    that the client left.
    """

    def __init__(
        self, refuse: Callable[[str, int], Response | None] = lambda *_: None, *, key: str = "", seconds: float = 0.0
    ) -> None:
        self.refuse, self.key, self.seconds = refuse, key, seconds
        self.service = LongerWins()
        self.requests: list[BaseModel] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_open = self._open = self.streams_left = 0
        self.clients: set[tuple[str, int]] = set()
        self._numbers = itertools.count()
        self.app = Starlette(
            routes=[
                Route("/v1/pairwise", self._pairwise, methods=["POST"]),
                Route("/v1/listwise", self._listwise, methods=["POST"]),
                Route("/v1/pointwise", self._pointwise, methods=["POST"]),
                Route("/readyz", lambda _: Response("ready")),
            ]
        )

    def running(self) -> AbstractContextManager[str]:
        """Serve it; yields its URL."""
        return serving(self.app)

    async def _taken(self, request: Request, record: type[BaseModel]) -> Any:
        """The request's record, or the reply that refuses it."""
        self.headers.append(dict(request.headers))
        self.times.append(time.monotonic())
        assert request.client is not None
        self.clients.add(tuple(request.client))
        body = await request.body()
        other = self.refuse(request.url.path, next(self._numbers))
        if other is not None:
            return other
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return refused(401, "unauthorized", "the key is wrong")
        try:
            found = record.model_validate_json(body)
        except ValidationError as error:
            return refused(422, "invalid", error.errors()[0]["msg"], param=str(error.errors()[0]["loc"][0]))
        self.requests.append(found)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self._open -= 1
        return found

    async def _pairwise(self, request: Request) -> Response:
        asked = await self._taken(request, PairwiseRequest)
        if not isinstance(asked, PairwiseRequest):
            return asked
        found = await self.service.pairwise(asked, self._request_id())
        if not asked.stream:
            return JSONResponse(found.model_dump(mode="json"))
        return StreamingResponse(self._events(found), media_type="text/event-stream")

    def _request_id(self) -> str:
        return self.headers[-1].get("x-request-id", "made-up")

    async def _events(self, found: PairwiseResponse) -> AsyncIterator[str]:
        try:
            for judgment in found.judgments:
                for word in ("It ", "is\u2028", f"{judgment.order}."):  # a line separator, raw: JSON may hold it
                    data = {"order": judgment.order, "vote": 0, "delta": word}
                    yield f"event: reason\r\ndata: {json.dumps(data, ensure_ascii=False)}\r\n\r\n"
                    await asyncio.sleep(self.seconds)
                yield f"event: judgment\ndata: {judgment.model_dump_json()}\n\n"
            yield f"event: result\ndata: {found.model_dump_json()}\n\n"
        except asyncio.CancelledError:
            self.streams_left += 1
            raise

    async def _listwise(self, request: Request) -> Response:
        asked = await self._taken(request, ListwiseRequest)
        if not isinstance(asked, ListwiseRequest):
            return asked
        return JSONResponse((await self.service.listwise(asked, self._request_id())).model_dump(mode="json"))

    async def _pointwise(self, request: Request) -> Response:
        asked = await self._taken(request, PointwiseRequest)
        if not isinstance(asked, PointwiseRequest):
            return asked
        return JSONResponse((await self.service.pointwise(asked, self._request_id())).model_dump(mode="json"))
