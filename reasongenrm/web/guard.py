"""In front of gradio: only the routes this page needs, no large bodies, strict browser headers.

Gradio's app also has uploads, a proxy, files and more, which an open page without log-in must not offer.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 8 * 2**20  # three texts of a million letters and JSON around them
_GET = (
    *("/", "/config", "/favicon.ico", "/healthz", "/robots.txt", "/theme.css"),
    *("/gradio_api/queue/data", "/gradio_api/startup-events"),
)
_GET_BELOW = ("/assets/", "/gradio_api/heartbeat/", "/reports/", "/static/", "/svelte/")
_POST = ("/gradio_api/cancel", "/gradio_api/queue/join", "/gradio_api/reset")
# 'unsafe-inline' and 'unsafe-eval': gradio's start script is inline, and it compiles components' templates in the
# browser. What
# users and models write gets into the page as text only; should that ever fail, nothing can be fetched from or sent
# elsewhere.
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src "
    "'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class PageGuard:
    """ASGI middleware.

    Args:
        root_path: cut off from the beginning of a path if it is there: some ingresses cut it off, some do not.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no route here has websockets
        path = self._inner(scope["path"])
        refusal = _refusal(scope["method"], path, Headers(scope=scope))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
                headers.update(_HEADERS)
            await send(message)

        if refusal:
            await refusal(scope, receive, answer)
            return
        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, answer)

    def _inner(self, path: str) -> str:
        if self._root_path and (path == self._root_path or path.startswith(f"{self._root_path}/")):
            return path.removeprefix(self._root_path) or "/"
        return path


def _refusal(method: str, path: str, headers: Headers) -> PlainTextResponse | None:
    if method not in ("GET", "HEAD", "POST"):
        return PlainTextResponse("this page takes GET and POST", 405, {"Allow": "GET, HEAD, POST"})
    exact, below = (_POST, ()) if method == "POST" else (_GET, _GET_BELOW)
    if (path.rstrip("/") or path) not in exact and not path.startswith(below):
        return PlainTextResponse("there is nothing here", 404)
    if method != "POST":
        return None
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return PlainTextResponse("say how long the body is", 411)
    if int(length) > MAX_BODY_BYTES:
        return PlainTextResponse(f"at most {MAX_BODY_BYTES:,} bytes", 413)
    return None


class TooManyError(Exception):
    """This visitor has as much in progress as one may have."""


class Visitors:
    """Counts what is in progress, by address.

    Args:
        most: per address, >= 1. Behind a proxy, uvicorn knows the visitors' addresses if FORWARDED_ALLOW_IPS names the
            proxy.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one_more(self, address: str) -> Iterator[None]:
        """Count one while the context lasts.

        Raises:
            TooManyError: it would be one too many.
        """
        if self._under_way[address] >= self._most:
            raise TooManyError(address)
        self._under_way[address] += 1
        try:
            yield
        finally:
            self._under_way[address] -= 1
            if not self._under_way[address]:
                del self._under_way[address]
