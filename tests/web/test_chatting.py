"""The chat's way from the judge's pass-through to a reply or a notice, over real HTTP."""

import asyncio
import re

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from reasongenrm.web.chatting import ChatClient, ChatReply
from tests.endpoints import FakeEndpoint, refusal
from tests.judge.replies import choice, streamed

HISTORY = [{"role": "user", "content": "hi"}]


def last(reply: Response) -> ChatReply:
    """What the page shows at the end."""
    with FakeEndpoint(lambda *_: reply).running() as url:

        async def ask() -> ChatReply:
            async with ChatClient(url.removesuffix("/v1")) as chat:
                return [found async for found in chat.reply(HISTORY)][-1]

        return asyncio.run(ask())


def chunk(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"


def test_reason_and_answer_are_told_apart() -> None:
    found = last(streamed(choice(0.75, reason="A is short.") | {"finish_reason": "length"}))
    assert (found.reason, found.answer) == ("A is short.", "[[A]]")
    assert (found.cut_off, found.ended, found.notice) == (True, True, None)


# What vLLM 0.32 and the judge answer (docs/judge.md), and what is neither.
VLLM = {"type": "BadRequestError", "param": "input_tokens", "code": 400}


@pytest.mark.parametrize(
    ("reply", "title", "says"),
    [
        (
            refusal(400, "This model's maximum context length is 9 tokens.", **VLLM),
            "The conversation is too long",
            "Clear it",
        ),
        (refusal(400, "temperature is too hot", **VLLM), "The judge refused this request", "^temperature is too hot"),
        (refusal(401, "wrong key", code="unauthorized"), "The judge refused this page's key", "JUDGE_API_KEY"),
        (JSONResponse({"error": "Unauthorized"}, 401), "The judge refused this page's key", "JUDGE_API_KEY"),
        (refusal(429, "full", code="overloaded", request_id="req-1"), "The judge is busy", "Request req-1"),
        (refusal(503, "away", code="predictor_unavailable"), "The judge does not answer", "Try again"),
        (refusal(504, "slow", code="predictor_timeout"), "The model took too long", "Shorten"),
        (JSONResponse({"detail": "Not Found"}, 404), "This is not a judge", "another service"),
        (PlainTextResponse("", 307, {"Location": "http://127.0.0.1:9/"}), "This is not a judge", "another service"),
        (StreamingResponse(iter([b"data: {nonsense\n\n"])), "This is not a judge", "another service"),
        (StreamingResponse(iter([chunk('{"choices": [{"delta": {}}]}')])), "The judge does not answer", "Try again"),
        (
            StreamingResponse(iter([chunk('{"error": {"message": "broke off", "code": "predictor_timeout"}}')])),
            *("The model took too long", "Shorten"),
        ),
    ],
)
def test_failures_are_told_in_words_without_the_address(reply: Response, title: str, says: str) -> None:
    notice = last(reply).notice
    assert notice is not None
    assert notice.title == title
    assert "127.0.0.1" not in notice.text
    assert re.search(says, notice.text), notice.text
