"""A predictor whose answers follow a rule: OpenAI's chat completions with reason, verdict, log-probabilities and
streams.

As an ASGI app for tests in the process, and as a program (`python -m tests.predictors --port 8000 --latency 0.05`) for
tests and benchmarks that need a process to kill.
"""

import argparse
import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.endpoints import refusal

_PROMPT = re.compile(
    r"^### Answer A\n(.*?)\n\n^### Answer B\n(.*?)\n\n^### (?:Verdict|Judge by)\n", re.DOTALL | re.MULTILINE
)

Rule = Callable[[str, str], float]  # (answer A, answer B) as the model sees them -> P([[A]])


def longer(answer_a: str, answer_b: str) -> float:
    """The longer answer is better, the surer the longer; equally long ones are told apart by nothing."""
    return 1.0 / (1.0 + math.exp(max(-50.0, min(50.0, (len(answer_b) - len(answer_a)) / 4))))


def first(_answer_a: str, _answer_b: str) -> float:
    """A judge that follows the place."""
    return 0.9


class RulePredictor:
    """Answers by a rule. Remembers bodies, and how many answers were given up by the asker.

    Args:
        rule: P([[A]]) of two answers as the prompt shows them.
        latency: of each answer, in seconds; half of it before the reason, half before the verdict.
        context_chars: longer prompts get vLLM's 400; None takes everything.
        key: bearer token that is wanted.
    """

    def __init__(
        self, rule: Rule = longer, latency: float = 0.0, context_chars: int | None = None, key: str | None = None
    ) -> None:
        self.rule, self.latency, self.context_chars, self.key = rule, latency, context_chars, key
        self.bodies: list[dict[str, Any]] = []
        self.num_open = 0
        self.num_abandoned = 0
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: JSONResponse({"status": "ok"})),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "rule", "object": "model", "max_model_len": 32768}]})

    async def _complete(self, request: Request) -> Response:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, "wrong key")
        body = await request.json()
        self.bodies.append(body)
        try:
            content = str(body["messages"][-1]["content"])
        except (KeyError, IndexError, TypeError):
            return refusal(400, "messages: expected a list of messages")
        if self.context_chars is not None and len(content) > self.context_chars:
            return refusal(400, "This model's maximum context length is 100 tokens. However, you requested more.")
        if body.get("stream"):
            return StreamingResponse(self._stream(body, content), media_type="text/event-stream")
        self.num_open += 1
        try:
            work = asyncio.create_task(self._work())
            gone = asyncio.create_task(_disconnected(request))
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                self.num_abandoned += 1
                return Response(status_code=499)
            gone.cancel()
        finally:
            self.num_open -= 1
        p_a = self._p_a(content)
        reason, verdict = _said(p_a)
        message = {"role": "assistant", "content": verdict, "reasoning": reason, "reasoning_content": reason}
        choice = {"index": 0, "message": message, "logprobs": {"content": _tokens(p_a)}, "finish_reason": "stop"}
        return JSONResponse(_head("chat.completion") | {"choices": [choice], "usage": _usage(content)})

    async def _work(self) -> None:
        """Take `latency` seconds, also where that is changed meanwhile."""
        began = time.monotonic()
        while (left := began + self.latency - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))

    async def _stream(self, body: dict[str, Any], content: str) -> AsyncIterator[str]:
        p_a = self._p_a(content)
        reason, verdict = _said(p_a)
        self.num_open += 1
        ended = False
        try:
            yield _chunk({"role": "assistant", "content": ""})
            words = reason.split(" ")
            for place, word in enumerate(words):
                await asyncio.sleep(self.latency / len(words))
                piece = word if place == 0 else f" {word}"
                yield _chunk({"reasoning": piece, "reasoning_content": piece})
            yield _chunk({"content": verdict}, logprobs={"content": _tokens(p_a)})
            yield _chunk({}, finish_reason="stop")
            if (body.get("stream_options") or {}).get("include_usage"):
                last = _head("chat.completion.chunk") | {"choices": [], "usage": _usage(content)}
                yield f"data: {json.dumps(last)}\n\n"
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            self.num_open -= 1
            self.num_abandoned += not ended

    def _p_a(self, content: str) -> float:
        found = _PROMPT.search(content)
        return self.rule(found[1], found[2]) if found else 0.5


def _said(p_a: float) -> tuple[str, str]:
    letter = "A" if p_a >= 0.5 else "B"
    return f"Answer {letter} does what the question asks. The other one does less.", f"[[{letter}]]"


def _tokens(p_a: float) -> list[dict[str, Any]]:
    """The verdict as three tokens."""
    logprobs = {"A": math.log(max(p_a, 1e-12)), "B": math.log(max(1.0 - p_a, 1e-12))}
    letter = "A" if p_a >= 0.5 else "B"
    decides = [{"token": name, "logprob": logprob} for name, logprob in logprobs.items()]
    return [
        {"token": "[[", "logprob": -0.1, "top_logprobs": [{"token": "[[", "logprob": -0.1}]},
        {"token": letter, "logprob": logprobs[letter], "top_logprobs": decides},
        {"token": "]]", "logprob": 0.0, "top_logprobs": [{"token": "]]", "logprob": 0.0}]},
    ]


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "rule"}


def _chunk(delta: dict[str, Any], **choice: Any) -> str:
    whole = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **choice}
    return f"data: {json.dumps(_head('chat.completion.chunk') | {'choices': [whole]})}\n\n"


def _usage(content: str) -> dict[str, int]:
    num_prompt = len(content) // 4
    return {"prompt_tokens": num_prompt, "completion_tokens": 20, "total_tokens": num_prompt + 20}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    options = parser.parse_args()
    predictor = RulePredictor(latency=options.latency)
    uvicorn.run(
        predictor.app, host="127.0.0.1", port=options.port, log_level="error", access_log=False, ws="none", backlog=4096
    )


if __name__ == "__main__":
    main()
