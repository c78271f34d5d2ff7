"""A judge that streams what a test tells it to, over real HTTP; it remembers what it was asked and who left early."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "secret-judge-key"
GIVEN = "Answer A adds the two numbers step by step and comes to the right sum."
SWAPPED = "Answer B adds the two numbers step by step and comes to the right sum."


@dataclass
class Script:
    """What the judge says. `pause_seconds` lies between two words; `hold_after`: waits there until `release` is set."""

    given: str = GIVEN
    swapped: str = SWAPPED
    preferred_given: str | None = "A"
    preferred_swapped: str | None = "A"
    p_given: float | None = 0.9
    p_swapped: float | None = 0.7
    chat_reason: str = "A greeting asks for a greeting."
    chat_answer: str = "Hello **you**."
    cuts: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    code: str = ""
    message: str = ""
    over: int | None = None
    about: str | None = None
    hold_after: int | None = None
    pause_seconds: float = 0.0


class FakeJudge:
    """`app` is the ASGI app; `script` may be changed between two requests."""

    def __init__(self) -> None:
        self.script = Script()
        self.bodies: list[dict[str, Any]] = []
        self.num_left = 0
        self.released = False
        self.app = Starlette(
            routes=[
                Route("/readyz", lambda _: JSONResponse({"ready": True})),
                Route("/v1/models", self._models),
                Route("/v1/pairwise", self._pairwise, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )

    def reset(self) -> None:
        """As at the start."""
        self.script, self.bodies, self.num_left, self.released = Script(), [], 0, False

    def _refusal(self, request: Request) -> Response | None:
        script = self.script
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "unauthorized", "wrong key")
        if script.status != 200:
            return _error(script.status, script.code, script.message, script.over)
        return None

    async def _models(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse(
            {
                "object": "list",
                "data": [{"id": "tiny-judge", "object": "model", "about": self.script.about}],
                "models": ["tiny-judge"],
            }
        )

    async def _pairwise(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return self._refusal(request) or StreamingResponse(
            self._events(self.bodies[-1]), media_type="text/event-stream", headers={"X-Request-ID": "req-1"}
        )

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        script, votes = self.script, body.get("votes", 1)
        texts = {"given": script.given, "swapped": script.swapped}
        preferred = {"given": script.preferred_given, "swapped": script.preferred_swapped}
        p_a = {"given": script.p_given, "swapped": script.p_swapped}
        try:
            words = {order: text.split(" ") for order, text in texts.items()}
            for number in range(max(map(len, words.values()))):
                if number == script.hold_after:
                    while not self.released:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(script.pause_seconds)
                for order in texts:
                    for vote in range(votes):
                        if number < len(words[order]):
                            delta = (" " if number else "") + words[order][number]
                            yield _event("reason", {"order": order, "vote": vote, "delta": delta})
            judgments = [
                {
                    "order": order,
                    "vote": vote,
                    "reason": texts[order],
                    "preferred": preferred[order],
                    "p_a": p_a[order],
                    "truncated": preferred[order] is None,
                }
                for order in texts
                for vote in range(votes)
            ]
            for judgment in judgments:
                yield _event("judgment", judgment)
            named = set(preferred.values()) - {None}
            known = [p for p in p_a.values() if p is not None]
            yield _event(
                "result",
                {
                    "id": "req-1",
                    "model": "tiny-judge",
                    "cuts": script.cuts,
                    "usage": {"num_requests": 2 * votes, "prompt_tokens": 1234, "completion_tokens": 56},
                    "latency_seconds": 1.25,
                    "preferred": None if not named else named.pop() if len(named) == 1 else "tie",
                    "p_a": sum(known) / len(known) if known else None,
                    "consistent": None if None in preferred.values() else len(set(preferred.values())) == 1,
                    "calibrated": False,
                    "judgments": judgments,
                },
            )
        except asyncio.CancelledError:
            self.num_left += 1
            raise

    async def _chat(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        return self._refusal(request) or StreamingResponse(self._chunks(), media_type="text/event-stream")

    async def _chunks(self) -> AsyncIterator[str]:
        script = self.script
        try:
            for name, text in (("reasoning", script.chat_reason), ("content", script.chat_answer)):
                for number, word in enumerate(text.split(" ")):
                    if number == script.hold_after:
                        while not self.released:
                            await asyncio.sleep(0.01)
                    await asyncio.sleep(script.pause_seconds)
                    delta = {name: (" " if number else "") + word}
                    choice = {"index": 0, "delta": delta, "finish_reason": None}
                    yield f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            yield 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        except asyncio.CancelledError:
            self.num_left += 1
            raise


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _error(status: int, code: str, message: str, over: int | None = None) -> Response:
    error = {"message": message, "code": code, "request_id": "req-1", "num_chars_over": over}
    return JSONResponse({"error": error}, status_code=status)
