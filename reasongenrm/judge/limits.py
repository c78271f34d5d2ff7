"""What stands in front of every request: its id, the key, the size of its body, how many are under way, and a client that goes away.

Plain ASGI, since a middleware of Starlette's `BaseHTTPMiddleware` would hide that the client has gone.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from reasongenrm.judge.api import ErrorDetail, ErrorResponse
from reasongenrm.judge.telemetry import Telemetry

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_ID_CHARS = 128
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
        request_seconds: a request takes at most; then 504.
        retry_after_seconds: told with 429.
    """

    api_key: str | None = None
    max_requests: int = 256
    max_body_bytes: int = 32 * 2**20
    request_seconds: float = 600.0
    retry_after_seconds: int = 1


def error_body(message: str, code: str, request_id: str, param: str | None = None) -> bytes:
    """The body of an answer that is an error."""
    detail = ErrorDetail(message=message, code=code, param=param, request_id=request_id)
    return ErrorResponse(error=detail).model_dump_json().encode()


class Guard:
    """The middleware. Requests to judge count against `max_requests`; looking at the judge does not."""

    def __init__(self, app: App, limits: Limits, telemetry: Telemetry) -> None:
        self._app, self._limits, self._telemetry = app, limits, telemetry
        self._num_inside = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI 3.0."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        started = time.perf_counter()
        try:
            await self._answer(scope, receive, exchange)
        except _ClientGoneError:
            self._telemetry.abandoned.inc()
            exchange.status = CLOSED_STATUS
        finally:
            self._note(scope, exchange, time.perf_counter() - started)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, exchange: "_Exchange") -> None:
        limits = self._limits
        sent = _header(scope, b"authorization")
        if (
            limits.api_key is not None
            and not _is_open(scope["path"])
            and not hmac.compare_digest(_key_sent(sent), limits.api_key.encode())
        ):
            await self._refuse(
                exchange,
                401,
                "wrong_key",
                "The API key is missing or wrong; expected 'Authorization: Bearer KEY' with this judge's key.",
                {"WWW-Authenticate": "Bearer"},
            )
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, exchange.send)
            return
        if self._num_inside >= limits.max_requests:
            await self._refuse(
                exchange,
                429,
                "overloaded",
                f"{self._num_inside} requests are under way, and no more are taken. Ask again later.",
                {"Retry-After": str(limits.retry_after_seconds)},
            )
            return
        self._num_inside += 1
        self._telemetry.in_flight.set(self._num_inside)
        try:
            body = await _read_body(receive, limits.max_body_bytes)
            if body is None:
                await self._refuse(
                    exchange,
                    413,
                    "too_large",
                    f"The request is longer than {limits.max_body_bytes} bytes. Send less, or several requests.",
                    {"Connection": "close"},
                )
                return
            await self._run(scope, body, receive, exchange)
        finally:
            self._num_inside -= 1
            self._telemetry.in_flight.set(self._num_inside)

    async def _run(self, scope: MutableMapping[str, Any], body: bytes, receive: Receive, exchange: "_Exchange") -> None:
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
            if not exchange.began:
                await self._refuse(
                    exchange,
                    504,
                    "too_slow",
                    f"The request took more than {self._limits.request_seconds:g} s. Ask for fewer votes or comparisons.",
                )
            return
        finally:
            gone.set()
            await _cancel(app)
            await _cancel(watcher)
        if not exchange.ended and app.cancelled():
            raise _ClientGoneError
        await app

    async def _refuse(
        self, exchange: "_Exchange", status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        self._telemetry.refused.labels(code).inc()
        body = error_body(message, code, exchange.request_id)
        own = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        raw = [(name.lower().encode(), value.encode()) for name, value in own.items()]
        await exchange.send({"type": "http.response.start", "status": status, "headers": raw})
        await exchange.send({"type": "http.response.body", "body": body})

    def _note(self, scope: MutableMapping[str, Any], exchange: "_Exchange", seconds: float) -> None:
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
            **scope.get("state", {}).get("log", {}),
        }
        logger.info("answered", extra={"fields": fields})


class _ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class _Exchange:
    """One request's answer on its way out: adds the request's id, remembers the status."""

    def __init__(self, scope: MutableMapping[str, Any], send: Send) -> None:
        self.request_id = _sane_id(_header(scope, b"x-request-id")) or secrets.token_hex(8)
        self.status = 500
        self.began = self.ended = False
        self._send = send
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        """See ASGI 3.0."""
        if message["type"] == "http.response.start":
            self.began, self.status = True, message["status"]
            message = {
                **message,
                "headers": [*message.get("headers", []), (b"x-request-id", self.request_id.encode())],
            }
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
        await self._send(message)


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """The body; None if it is longer than the limit.

    Raises:
        _ClientGoneError: it stopped in the middle.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """Have a task end, and wait for it."""
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("ended with %r when it was cancelled", error)


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _key_sent(header: bytes) -> bytes:
    """The key in an Authorization header: a bearer token, or the password of a URL such as http://:KEY@host/ (which is all
    that OpenRLHF can send)."""
    scheme, _, value = header.partition(b" ")
    if scheme == b"Bearer":
        return value
    if scheme == b"Basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _sane_id(raw: bytes) -> str:
    """The client's own id, if it fits into a header and a log line."""
    text = raw.decode("latin-1")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID_CHARS else ""


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)
