"""The judge's REST API: each route checks a request and has the service answer it.

Every error has the same shape (`api.ErrorResponse`). docs/judge.md shows the routes by example.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, TypeVar

import aiohttp
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from reasongenrm.judge.api import (
    BatchItem,
    BatchList,
    BatchPair,
    BatchPoint,
    BatchRequest,
    BatchResponse,
    ErrorDetail,
    ErrorResponse,
    ListwiseRequest,
    ListwiseResponse,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
    ReasonDelta,
)
from reasongenrm.judge.predictor import RETRY_AFTER_SECONDS, Predictor
from reasongenrm.judge.refusals import JudgeError, PredictorUnavailableError
from reasongenrm.judge.server.limits import error_body
from reasongenrm.judge.service import JudgeEvent, JudgeService
from reasongenrm.processes.gathering import gather_or_cancel

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=BaseModel)
FAILED = "The judge failed; its log says why."

_MEANINGS = {
    400: "The body is not JSON, or not what this protocol expects.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "The body is too long.",
    422: "The request does not fit the schema, or its texts do not fit into the model's context.",
    429: "Too much is under way; Retry-After says when to ask again.",
    500: FAILED,
    502: "The predictor answered something that is no completion.",
    503: "The predictor cannot be reached; Retry-After says when to ask again.",
    504: "It took too long.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead, for its description."""
    return {status: {"model": ErrorResponse, "description": _MEANINGS[status]} for status in statuses}


_EVENT = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["reason", "judgment", "result", "error"]},
        "data": {"type": "string", "description": "JSON."},
    },
    "required": ["event", "data"],
}
_EVENTS = {
    "description": "The judgment; with `stream`, server-sent events `reason`, `judgment`, and `result` or `error`.",
    "content": {"text/event-stream": {"schema": _EVENT}},
}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_CHAT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As the predictor answers; with `stream`, server-sent events.",
        "content": {**_OBJECT, "text/event-stream": {}},
    },
    "4XX": {"description": "The predictor's own refusal, in OpenAI's shape, or the judge's.", "content": _OBJECT},
}
JUDGING = errors(400, 401, 408, 413, 422, 429, 500, 502, 503, 504)


class ChatBody(BaseModel):
    """OpenAI's chat completion request; whatever else it has is for the predictor to check."""

    model_config = ConfigDict(extra="allow")
    model: str
    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1)]
    stream: StrictBool = False


class Live(BaseModel):
    """The judge runs."""

    status: str


def request_id(request: Request) -> str:
    """The id that `limits.Guard` gave the request."""
    return str(request.state.request_id)


def error_response(
    request: Request,
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer that is an error."""
    detail = ErrorDetail(message=message, code=code, param=param, request_id=request_id(request))
    return Response(error_body(detail), status, headers, media_type="application/json")


def not_ready(request: Request) -> Response:
    """The predictor does not answer now."""
    message = "The predictor does not answer yet. Ask again later."
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return error_response(request, 503, "predictor_unavailable", message, headers=headers)


def detail_of(error: Exception, of_request: str) -> ErrorDetail:
    """An error as part of an answer; what is no `JudgeError` is for the log, not for the client."""
    if not isinstance(error, JudgeError):
        return ErrorDetail(message=FAILED, code="internal", request_id=of_request)
    over = error.num_chars_over
    return ErrorDetail(
        message=str(error), code=error.code, param=error.param, request_id=of_request, num_chars_over=over
    )


def add_error_handlers(app: FastAPI) -> None:
    """Give every error the one shape."""

    @app.exception_handler(JudgeError)
    async def judge_error(request: Request, error: JudgeError) -> Response:
        after = error.retry_after_seconds
        headers = None if after is None else {"Retry-After": str(after)}
        body = error_body(detail_of(error, request_id(request)))
        return Response(body, error.status, headers, media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def not_as_described(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(request, 422, "not_json", "The body is not JSON; expected an object.")
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where or 'the body'}: {first['msg']}. See /docs for what is expected."
        return error_response(request, 422, "invalid", message, param=where or None)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}. See /docs for what there is."
        code = {400: "not_json", 404: "not_found", 405: "wrong_method"}.get(error.status_code, "refused")
        return error_response(request, error.status_code, code, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, _: Exception) -> Response:
        return error_response(request, 500, "internal", FAILED)  # Starlette raises the error again, for the log


def judge_router(service: Callable[[], JudgeService], log_text: bool = False) -> APIRouter:
    """pairwise, listwise, pointwise, batch, and chat completions passed through.

    Args:
        service: gives the service, which exists once the app has started.
        log_text: let the log have the users' text.
    """
    router = APIRouter()

    def note(request: Request, asked: BaseModel, answer: Answer) -> Answer:
        if log_text:
            request.state.log = {"asked": asked.model_dump(mode="json"), "answered": answer.model_dump(mode="json")}
        return answer

    @router.post("/v1/pairwise", response_model=PairwiseResponse, responses={**JUDGING, 200: _EVENTS}, tags=["judge"])
    async def pairwise(body: PairwiseRequest, request: Request) -> Any:
        """Which of two answers is better: judged in both orders, with a reason for each."""
        if body.stream:
            request.state.stream_error = _last_event
            return StreamingResponse(
                _events(service(), body, request_id(request), lambda answer: note(request, body, answer)),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            )
        return as_json(note(request, body, await service().pairwise(body, request_id(request))))

    @router.post("/v1/listwise", response_model=ListwiseResponse, responses=JUDGING, tags=["judge"])
    async def listwise(body: ListwiseRequest, request: Request) -> Any:
        """Rank several answers by a tournament of pairs."""
        return as_json(note(request, body, await service().listwise(body, request_id(request))))

    @router.post("/v1/pointwise", response_model=PointwiseResponse, responses=JUDGING, tags=["judge"])
    async def pointwise(body: PointwiseRequest, request: Request) -> Any:
        """Score one answer against a reference answer, or against the judge's fixed anchor."""
        return as_json(note(request, body, await service().pointwise(body, request_id(request))))

    @router.post("/v1/batch", response_model=BatchResponse, responses=JUDGING, tags=["judge"])
    async def batch(body: BatchRequest, request: Request) -> Any:
        """Several judgments at once; each ends by itself, with a result or an error."""
        own = request_id(request)
        items = (_item(service(), asked, f"{own}-{number}") for number, asked in enumerate(body.requests))
        return as_json(note(request, body, BatchResponse(id=own, results=await gather_or_cancel(items))))

    @router.post(
        "/v1/chat/completions", responses={**errors(401, 408, 413, 429, 500, 502, 503, 504), **_CHAT}, tags=["openai"]
    )
    async def chat_completions(body: ChatBody, request: Request) -> Response:  # noqa: ARG001 - checked, then passed on as it is
        """The predictor's own endpoint, passed through: OpenAI's chat completions, reason and verdict in one reply."""
        return _Forwarded(service().predictor, await request.body(), request)

    return router


class _Forwarded(Response):
    """The predictor's answer as it comes. Its connection is held by the answer's own task: whatever ends that closes
    it."""

    def __init__(self, predictor: Predictor, asked: bytes, request: Request) -> None:
        super().__init__()
        self._predictor, self._asked, self._request = predictor, asked, request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3.0.

        Raises:
            PredictorUnavailableError: it cannot be reached, or broke off before its answer was whole.
        """
        async with self._predictor.forward(self._asked) as answer:
            kept = {name: answer.headers[name] for name in ("Content-Type", "Retry-After") if name in answer.headers}
            response: Response
            if answer.content_type == "text/event-stream":
                self._request.state.stream_error = _last_chunk
                response = StreamingResponse(self._pieces(answer), answer.status, kept)
            else:
                try:
                    response = Response(await answer.read(), answer.status, kept)
                except aiohttp.ClientError as error:
                    raise _broke_off(error) from error
            await response(scope, receive, send)

    async def _pieces(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in answer.content.iter_any():
                yield piece
        except aiohttp.ClientError as error:
            broken = _broke_off(error)
            logger.warning("%s", broken, extra={"fields": {"request_id": request_id(self._request)}})
            yield _last_chunk(detail_of(broken, request_id(self._request)))


def _broke_off(error: aiohttp.ClientError) -> PredictorUnavailableError:
    message = f"the predictor broke off ({type(error).__name__}: {error}). Ask again."
    return PredictorUnavailableError(message, retry_after_seconds=RETRY_AFTER_SECONDS)


def _last_event(error: ErrorDetail) -> bytes:
    """An error as our streams end with it."""
    return _event("error", error).encode()


def _last_chunk(error: ErrorDetail) -> bytes:
    """An error as OpenAI's clients expect it in a stream, which may have stopped in the middle of a line."""
    return b"\n\ndata: " + error_body(error) + b"\n\n"


async def _item(service: JudgeService, asked: BatchPair | BatchList | BatchPoint, own_id: str) -> BatchItem:
    judges: dict[str, Callable[..., Any]]
    judges = {"pairwise": service.pairwise, "listwise": service.listwise, "pointwise": service.pointwise}
    try:
        return BatchItem(result=await judges[asked.kind](asked, own_id))
    except JudgeError as error:
        return BatchItem(error=detail_of(error, own_id))


async def _events(
    service: JudgeService, asked: PairwiseRequest, own_id: str, note: Callable[[PairwiseResponse], PairwiseResponse]
) -> AsyncIterator[str]:
    """A pairwise judgment as server-sent events. Leaving the iterator gives up the generations."""
    events: asyncio.Queue[str | None] = asyncio.Queue()

    async def tell(event: JudgeEvent) -> None:
        events.put_nowait(_event("reason" if isinstance(event, ReasonDelta) else "judgment", event))

    async def work() -> None:
        try:
            events.put_nowait(_event("result", note(await service.pairwise(asked, own_id, tell))))
        except Exception as error:
            events.put_nowait(_event("error", detail_of(error, own_id)))
            if not isinstance(error, JudgeError):
                logger.exception("a streamed judgment failed", extra={"fields": {"request_id": own_id}})
                raise
        finally:
            events.put_nowait(None)

    working = asyncio.create_task(work())
    try:
        while (event := await events.get()) is not None:
            yield event
    finally:
        working.cancel()
        await asyncio.wait([working])


def _event(name: str, data: BaseModel) -> str:
    return f"event: {name}\ndata: {data.model_dump_json()}\n\n"


def as_json(answer: BaseModel) -> Response:
    """The answer as it is: FastAPI would validate it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")
