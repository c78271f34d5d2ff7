"""What a predictor answers in these tests: a completion with a reason, a verdict and its log-probabilities; and what it
was asked."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

REASON = "A is short. B is long."
_PROMPT = re.compile(r"### Question\n(.*?)\n\n### Answer A\n(.*?)\n\n### Answer B\n(.*?)\n\n### ", re.DOTALL)


def asked(body: dict[str, Any]) -> tuple[str, str, str]:
    """Question, answer A and answer B as the prompt has them."""
    found = _PROMPT.search(body["messages"][-1]["content"])
    assert found is not None
    return found[1], found[2], found[3]


def verdict_tokens(p_a: float) -> list[dict[str, Any]]:
    """ "[[", a letter, "]]", P([[A]]) being `p_a`."""

    def token(text: str, p: float, **others: float) -> dict[str, Any]:
        top = [{"token": name, "logprob": math.log(max(q, 1e-300))} for name, q in {text: p, **others}.items()]
        return {**top[0], "top_logprobs": top}

    letter = token("A", p_a, B=1 - p_a) if p_a >= 0.5 else token("B", 1 - p_a, A=p_a)
    return [token("[[", 0.9, x=0.1), letter, token("]]", 1.0)]


def choice(p_a: float, reason: str | None = REASON, **message: Any) -> dict[str, Any]:
    """The more probable verdict as a choice."""
    content = "[[A]]" if p_a >= 0.5 else "[[B]]"
    return {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": content,
            "reasoning": reason,
            "reasoning_content": reason,
            **message,
        },
        "logprobs": {"content": verdict_tokens(p_a)},
        "finish_reason": "stop",
    }


def whole(choice: dict[str, Any]) -> Response:
    """A completion of 7 prompt tokens and 5 output tokens."""
    return JSONResponse(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "fake",
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        }
    )


def streamed(choice: dict[str, Any]) -> Response:
    """The same in chunks: role, each word of the reason, content with its log-probabilities, usage."""

    def chunk(delta: dict[str, Any], **more: Any) -> bytes:
        data = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, **more}]}
        return b"data: " + json.dumps(data).encode() + b"\n\n"

    def chunks() -> Iterator[bytes]:
        yield chunk({"role": "assistant", "content": ""})
        for word in re.findall(r"\S+\s*", choice["message"]["reasoning"] or ""):
            yield chunk({"reasoning": word, "reasoning_content": word})
        yield chunk({"content": choice["message"]["content"]}, logprobs=choice["logprobs"])
        marks = {name: choice["message"][name] for name in ("reasoning_truncated",) if name in choice["message"]}
        yield chunk(marks, finish_reason=choice["finish_reason"])
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


def judged(body: dict[str, Any], p_a: float, **message: Any) -> Response:
    """The reply to a request, whole or streamed as it asks."""
    found = choice(p_a, **message)
    return streamed(found) if body.get("stream") else whole(found)
