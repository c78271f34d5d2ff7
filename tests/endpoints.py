"""Real HTTP servers on loopback for the tests: any ASGI app, and an endpoint that answers as it is told to."""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.waiting import HANG_SECONDS

Reply = Callable[[dict[str, Any], int], Response | Awaitable[Response]]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI app in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(HANG_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def completion(content: Any, *, finish_reason: str = "stop", **message: Any) -> JSONResponse:
    """A chat completion of one choice, 7 prompt tokens and 5 output tokens."""
    return JSONResponse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, **message},
                    "finish_reason": finish_reason,
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        }
    )


def refusal(status: int, message: str, headers: dict[str, str] | None = None, **error: Any) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": message, **error}}, status_code=status, headers=headers)


class FakeEndpoint:
    """An OpenAI-compatible endpoint whose replies are `reply(body, number of the call, from 0)`.

    Remembers every body, when it came, its headers, queries, and how many requests were ever open at once.
    """

    def __init__(self, reply: Reply, models: tuple[str, ...] = ("fake",)) -> None:
        self.reply = reply
        self.models = models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.queries: list[str] = []
        self.most_open = 0
        self._open = 0
        self.app = Starlette(
            routes=[
                Route("/v1/models", self._list_models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _list_models(self, request: Request) -> Response:
        self.queries.append(request.url.query)
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        number = len(self.bodies)
        self.queries.append(request.url.query)
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(time.monotonic())
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            reply = self.reply(body, number)
            return reply if isinstance(reply, Response) else await reply
        finally:
            self._open -= 1

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve it; yields the base URL."""
        with serving(self.app) as url:
            yield f"{url}/v1"
