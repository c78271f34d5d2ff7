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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """What the judge takes.

    Attributes:
        api_key: that clients send as a bearer token; None lets everybody in.
        max_requests: under way at once; more get 429.
        max_body_bytes: of a request; longer ones get 413.
        max_held_bytes: of all the requests under way; what would be more gets 429.
        request_seconds: a request takes at most; then 504.
        retry_after_seconds: told with 429.
    """

    api_key: str | None = None
    max_requests: int = 256
    max_body_bytes: int = 32 * 2**20
    max_held_bytes: int = 256 * 2**20
    request_seconds: float = 600.0
    retry_after_seconds: int = 1


def error_body(message: str, code: str, request_id: str, param: str | None = None) -> bytes:
    """The body of an answer that is an error."""
    detail = ErrorDetail(message=message, code=code, param=param, request_id=request_id)
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
        exchange = _Exchange(scope, send)
        work = count_work()
        started = time.perf_counter()
        try:
            await self._answer(scope, receive, exchange)
        except _RefusedError as refused:
            self._telemetry.refused.labels(refused.code).inc()
            await exchange.refuse(refused)
        except _ClientGoneError:
            self._telemetry.abandoned.inc()
            exchange.status = CLOSED_STATUS
        finally:
            self._note(scope, exchange, time.perf_counter() - started, work.fields())

    async def _answer(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        limits = self._limits
        if limits.api_key is not None and not is_open(scope["path"]):
            _check_key(_header(scope, b"authorization"), limits.api_key)
        if scope["method"] != "POST":
            await self._app(scope, receive, exchange.send)
            return
        if self._num_inside >= limits.max_requests:
            raise self._overloaded(f"{self._num_inside} requests are under way")
        self._num_inside += 1
        self._telemetry.in_flight.set(self._num_inside)
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await self._read_body(receive, parts)
            except TimeoutError:
                message = f"The request was not here whole after {BODY_SECONDS:g} s. Send it faster, or send less."
                raise _RefusedError(408, "slow_body", message, {"Connection": "close"}) from None
            await self._run(scope, b"".join(parts), receive, exchange)
        finally:
            self._num_bytes -= sum(map(len, parts))
            self._num_inside -= 1
            self._telemetry.in_flight.set(self._num_inside)

    async def _read_body(self, receive: Receive, parts: list[bytes]) -> None:
        """Read the body into `parts`; the server reads on by itself, and forgets, what is left of a body that is refused.

        Raises:
            _ClientGoneError: it stopped in the middle.
            _RefusedError: it is too long, or there is no room for it now.
        """
        limits, size, more = self._limits, 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size > limits.max_body_bytes:
                too_large = f"The request is longer than {limits.max_body_bytes} bytes. Send less, or several requests."
                raise _RefusedError(413, "too_large", too_large)
            if self._num_bytes + len(part) > limits.max_held_bytes:
                raise self._overloaded(f"the requests under way have {self._num_bytes} bytes")
            parts.append(part)
            self._num_bytes += len(part)
            more = message.get("more_body", False)

    def _overloaded(self, why: str) -> "_RefusedError":
        message = f"No more requests are taken now: {why}. Ask again later."
        return _RefusedError(429, "overloaded", message, {"Retry-After": str(self._limits.retry_after_seconds)})

    async def _run(self, scope: Scope, body: bytes, receive: Receive, exchange: "_Exchange") -> None:
        """Run the app; a client that goes away cancels it, and with it what it asked of the predictor."""
        gone = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            message = next(messages, None)
            if message is None:
                await gone.wait()
                return {"type": "http.disconnect"}
            return message

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        app: asyncio.Task[None] = asyncio.create_task(self._app(scope, replay, exchange.send))  # type: ignore[arg-type]
        watcher = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await asyncio.wait([app, watcher], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            await _cancel(app)
            seconds = self._limits.request_seconds
            message = f"The request took more than {seconds:g} s. Ask for fewer votes or comparisons."
            raise _RefusedError(504, "too_slow", message) from None
        finally:
            gone.set()
            await _cancel(app)
            await _cancel(watcher)
        if not exchange.ended and app.cancelled():
            raise _ClientGoneError
        await app

    def _note(self, scope: Scope, exchange: "_Exchange", seconds: float, judged: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "none")  # the pattern: a path of the client's is no label
        self._telemetry.requests.labels(route, str(exchange.status)).inc()
        self._telemetry.seconds.labels(route).observe(seconds)
        if route in ("/healthz", "/readyz", "/metrics"):
            return
        fields = {
            "request_id": exchange.request_id,
            "method": scope["method"],
            "route": route,
            "status": exchange.status,
            "seconds": round(seconds, 4),
            **judged,
            **scope["state"].get("log", {}),
        }
        logger.info("answered", extra={"fields": fields})


class _RefusedError(Exception):
    """A request that gets no judgment because of a limit."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


class _ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class _Exchange:
    """One request's answer on its way out: adds the request's id, remembers the status."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = _sane_id(_header(scope, b"x-request-id")) or secrets.token_hex(8)
        self.status = 500
        self.began = self.ended = False
        self._send = send
        self._state = scope.setdefault("state", {})
        self._state["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        """See ASGI 3.0."""
        if message["type"] == "http.response.start":
            self.began, self.status = True, message["status"]
            own = (b"x-request-id", self.request_id.encode())
            message = {**message, "headers": [*message.get("headers", []), own]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)

    async def refuse(self, refused: _RefusedError) -> None:
        """Answer with an error; in a stream that has begun, as its last event, if the route said how (`state.stream_error`)."""
        body = error_body(str(refused), refused.code, self.request_id)
        if self.began:
            write: Callable[[bytes], bytes] | None = self._state.get("stream_error")
            if write is not None and not self.ended:
                await self.send({"type": "http.response.body", "body": write(body)})
            return
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _check_key(sent: bytes, key: str) -> None:
    """See that the key was sent.

    Raises:
        _RefusedError: it was not.
    """
    if not hmac.compare_digest(_key_sent(sent), key.encode()):
        message = "The API key is missing or wrong; expected 'Authorization: Bearer KEY' with this judge's key."
        raise _RefusedError(401, "wrong_key", message, {"WWW-Authenticate": "Bearer"})


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """Have a task end, and wait for it."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("ended with %r when it was cancelled", error)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _key_sent(header: bytes) -> bytes:
    """The key in an Authorization header: a bearer token, or the password of a URL such as http://:KEY@host/ (which is all
    that OpenRLHF can send). The scheme's name is taken in any case (RFC 9110, section 11.1)."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"bearer":
        return value
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _sane_id(raw: bytes) -> str:
    """The client's own id, if it fits into a header and a log line."""
    text = raw.decode("latin-1")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID_CHARS else ""


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
