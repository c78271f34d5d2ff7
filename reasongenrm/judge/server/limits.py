"""In front of every request: id, key, body size, requests in flight, clients that disconnect.

Plain ASGI, since a middleware of Starlette's `BaseHTTPMiddleware` would hide that the client has gone.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reasongenrm.judge.api import ErrorDetail, ErrorResponse
from reasongenrm.judge.server.telemetry import Telemetry, count_work

logger = logging.getLogger(__name__)

MAX_ID_CHARS = 128
BODY_SECONDS = 30.0  # that a client gets to send its request: slow ones must not hold the places of others
CLOSED_STATUS = 499  # nginx's number for a client that has gone; for logs and metrics only

# Open to everybody: probes, metrics, and what the API is.
OPEN_PATHS = frozenset(
    {"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"}
)
OPEN_PREFIXES = ("/static-offline-docs/", "/docs/")


@dataclass(frozen=True)
class Limits:
    """What the judge takes."""

    api_key: str | None = None  # that clients send as a bearer token; None lets everybody in
    max_requests: int = 256  # under way at once; more get 429
    max_body_bytes: int = 32 * 2**20  # of a request; longer ones get 413
    max_held_bytes: int = 256 * 2**20  # of all the requests under way; what would be more gets 429
    request_seconds: float = 600.0  # a request takes at most; then 504
    retry_after_seconds: int = 1  # told with 429


def error_body(detail: ErrorDetail) -> bytes:
    """The body of an answer that is an error."""
    return ErrorResponse(error=detail).model_dump_json().encode()


class Guard:
    """The middleware. Requests to judge count against `max_requests`; looking at the judge does not."""

    def __init__(self, app: ASGIApp, limits: Limits, telemetry: Telemetry) -> None:
        self._app, self._limits, self._telemetry = app, limits, telemetry
        self._num_inside = self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3.0."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        work = count_work()
        started = time.perf_counter()
        try:
            await self._answer(exchange)
        except _RefusedError as refused:
            self._telemetry.refused.labels(refused.code).inc()
            await exchange.refuse(refused)
        except ClientDisconnect:
            self._telemetry.abandoned.inc()
            exchange.status = CLOSED_STATUS
        finally:
            self._note(exchange, time.perf_counter() - started, work.fields())

    async def _answer(self, exchange: "_Exchange") -> None:
        limits, scope = self._limits, exchange.scope
        key = None if is_open(scope["path"]) else limits.api_key
        if key is not None and not hmac.compare_digest(_key_sent(exchange.headers), key.encode()):
            message = "The API key is missing or wrong; expected 'Authorization: Bearer KEY' with this judge's key."
            raise _RefusedError(401, "wrong_key", message, {"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST":
            await self._app(scope, exchange.receive, exchange.send)
            return
        if self._num_inside >= limits.max_requests:
            raise self._overloaded(f"{self._num_inside} requests are under way")
        self._num_inside += 1
        self._telemetry.in_flight.set(self._num_inside)
        parts: list[bytes] = []
        try:
            await self._read_body(exchange, parts)
            await self._run(exchange, b"".join(parts))
        finally:
            self._num_bytes -= sum(map(len, parts))
            self._num_inside -= 1
            self._telemetry.in_flight.set(self._num_inside)

    async def _read_body(self, exchange: "_Exchange", parts: list[bytes]) -> None:
        """Read the body into `parts`; the server reads on by itself, and forgets, what is left of a body that is
        refused.

        Raises:
            ClientDisconnect: it stopped in the middle.
            _RefusedError: it is too long or too slow, or there is no room for it now.
        """
        limits, size = self._limits, 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in Request(exchange.scope, exchange.receive).stream():
                    size += len(part)
                    if size > limits.max_body_bytes:
                        message = (
                            f"The request is longer than {limits.max_body_bytes} bytes. Send less, or several requests."
                        )
                        raise _RefusedError(413, "too_large", message)
                    if self._num_bytes + len(part) > limits.max_held_bytes:
                        raise self._overloaded(f"the requests under way have {self._num_bytes} bytes")
                    parts.append(part)
                    self._num_bytes += len(part)
        except TimeoutError:
            message = f"The request was not here whole after {BODY_SECONDS:g} s. Send it faster, or send less."
            raise _RefusedError(408, "slow_body", message, {"Connection": "close"}) from None

    def _overloaded(self, why: str) -> "_RefusedError":
        message = f"No more requests are taken now: {why}. Ask again later."
        return _RefusedError(429, "overloaded", message, {"Retry-After": str(self._limits.retry_after_seconds)})

    async def _run(self, exchange: "_Exchange", body: bytes) -> None:
        """Run the app; a client that goes away cancels it, and with it what it asked of the predictor."""

        async def watch() -> None:
            while (await exchange.receive())["type"] != "http.disconnect":
                pass

        messages: asyncio.Queue[Message] = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
        app: asyncio.Task[None] = asyncio.create_task(self._app(exchange.scope, messages.get, exchange.send))  # type: ignore[arg-type]
        watcher = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await asyncio.wait([app, watcher], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            message = (
                f"The request took more than {self._limits.request_seconds:g} s. Ask for fewer votes or comparisons."
            )
            raise _RefusedError(504, "too_slow", message) from None
        finally:
            await _cancel(app)
            await _cancel(watcher)
        if not exchange.ended and app.cancelled():
            raise ClientDisconnect
        await app

    def _note(self, exchange: "_Exchange", seconds: float, judged: dict[str, Any]) -> None:
        scope = exchange.scope
        route = getattr(scope.get("route"), "path", "none")  # the pattern: a path of the client's is no label
        self._telemetry.requests.labels(route, str(exchange.status)).inc()
        self._telemetry.seconds.labels(route).observe(seconds)
        if route not in ("/healthz", "/readyz", "/metrics"):
            fields = {"request_id": exchange.request_id, "method": scope["method"], "route": route}
            fields |= {"status": exchange.status, "seconds": round(seconds, 4), **judged}
            logger.info("answered", extra={"fields": fields | scope["state"].get("log", {})})


class _RefusedError(Exception):
    """A request that gets no judgment because of a limit."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class _Exchange:
    """One request with its answer on its way out: adds the request's id, remembers the status."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.headers = Headers(scope=scope)
        sent = self.headers.get("x-request-id", "")  # kept if it fits into a header and a log line
        is_sane = sent.isascii() and sent.isprintable() and 0 < len(sent) <= MAX_ID_CHARS
        self.request_id = sent if is_sane else secrets.token_hex(8)
        self.status = 500
        self.began = self.ended = False
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        """See ASGI 3.0."""
        if message["type"] == "http.response.start":
            self.began, self.status = True, message["status"]
            MutableHeaders(scope=message).append("X-Request-ID", self.request_id)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def refuse(self, refused: _RefusedError) -> None:
        """Answer with an error; in a stream that has begun, as its last event, if the route said how
        (`state.stream_error`)."""
        detail = ErrorDetail(message=str(refused), code=refused.code, request_id=self.request_id)
        if not self.began:
            response = Response(error_body(detail), refused.status, refused.headers, media_type="application/json")
            await response(self.scope, self.receive, self.send)
        elif not self.ended and (write := self.scope["state"].get("stream_error")) is not None:
            await self.send({"type": "http.response.body", "body": write(detail)})


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """Have a task end, and wait for it."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("ended with %r when it was cancelled", error)


def _key_sent(headers: Headers) -> bytes:
    """The key in the Authorization header: a bearer token, or the password of a URL such as http://:KEY@host/ (which is
    all that OpenRLHF can send). The scheme's name is taken in any case (RFC 9110, section 11.1)."""
    scheme, _, value = headers.get("authorization", "").encode("latin-1").partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return value if scheme.lower() == b"bearer" else b""


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
