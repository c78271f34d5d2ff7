"""The one client against real HTTP servers: errors in the words and shapes of OpenAI and vLLM, streams, proxies."""

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from reasongenrm.errors import ConfigError
from reasongenrm.generation.openai_client import (
    ContextExceededError,
    EndpointAwayError,
    EndpointBusyError,
    EndpointError,
    EndpointFailedError,
    EndpointRefusedError,
    EndpointTimeoutError,
    FilteredError,
    ModelCard,
    OpenAIClient,
    WrongReplyError,
)
from reasongenrm.http_client import Retries
from tests.endpoints import FakeEndpoint, completion, refusal
from tests.server_words import FILTERED, FITTING, TOO_LONG

T = TypeVar("T")
BODY = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
VLLM = {"type": "BadRequestError", "param": "input_tokens", "code": 400}


def with_client(url: str, work: Callable[[OpenAIClient], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        async with OpenAIClient(url, **options) as client:
            return await work(client)

    return asyncio.run(run())


def complete(reply: Any, **options: Any) -> Any:
    with FakeEndpoint((lambda *_: reply) if isinstance(reply, Response) else reply).running() as url:
        return with_client(url, lambda client: client.complete(BODY, "request q"), **options)


@pytest.mark.parametrize(
    ("reply", "kind", "found"),
    [
        (
            refusal(401, "Incorrect API key provided.", code="invalid_api_key"),
            EndpointRefusedError,
            "HTTP 401: Incorrect",
        ),
        (JSONResponse({"error": "Unauthorized"}, 401), EndpointRefusedError, "HTTP 401: Unauthorized"),  # vLLM's
        (JSONResponse({"detail": "Not Found"}, 404), EndpointRefusedError, "HTTP 404: Not Found"),
        (refusal(400, "temperature is\n too hot", **VLLM), EndpointRefusedError, "HTTP 400: temperature is too hot"),
        (refusal(429, "slow down", {"Retry-After": "7"}), EndpointBusyError, "HTTP 429: slow down"),
        (refusal(500, "the GPU fell off"), EndpointFailedError, "HTTP 500: the GPU fell off"),
        (PlainTextResponse("no healthy upstream", 503), EndpointAwayError, "HTTP 503: no healthy upstream"),
        (PlainTextResponse("", 504), EndpointAwayError, "HTTP 504: no text"),
        (
            PlainTextResponse("", 307, {"Location": "/elsewhere"}),
            EndpointRefusedError,
            "HTTP 307: a redirect to /elsewhere",
        ),
        (
            PlainTextResponse("<html>"),
            WrongReplyError,
            "the reply is no chat completion with choices: not JSON",
        ),
    ],
)
def test_replies_that_are_no_completion_are_errors_of_their_kind(
    reply: Response, kind: type[EndpointError], found: str
) -> None:
    with pytest.raises(kind) as caught:
        complete(reply)
    assert caught.value.found.startswith(found)
    assert f"/v1: request q: {found}" in str(caught.value)
    assert caught.value.retry_after_seconds == (7.0 if kind is EndpointBusyError else None)


@pytest.mark.parametrize(
    ("words", "more", "fraction"),
    [
        # vLLM 0.32: its API, then its engine; vLLM before; OpenAI; our own server.
        (
            "This model's maximum context length is 1000 tokens. However, your prompt contains at least 4000 input "
            "tokens",
            VLLM,
            0.25,
        ),
        ("The decoder prompt (length 99) is longer than the maximum model length of 80.", VLLM, 1.0),
        (
            "You passed 73 input tokens and requested 90 output tokens. However, the model's context length is only 72 "
            "tokens",
            VLLM,
            0.8,
        ),
        ("Your input exceeds the limit.", {"code": "context_length_exceeded"}, 1.0),
        ("This model's maximum context length is 24 tokens; the messages have 30.", {"param": "messages"}, 0.8),
    ],
)
def test_full_context_is_told_from_other_refusals(words: str, more: dict[str, Any], fraction: float) -> None:
    with pytest.raises(ContextExceededError) as caught:
        complete(refusal(400, words, **more))
    assert caught.value.fitting_fraction == fraction


def test_server_that_never_answers_is_given_up() -> None:
    async def hangs(*_: Any) -> Response:
        await asyncio.sleep(0.5)
        return Response()

    with pytest.raises(EndpointTimeoutError, match=r"no reply within 0\.1 s"):
        complete(hangs, timeout_seconds=0.1)
    with pytest.raises(EndpointTimeoutError, match=r"no reply within 0\.1 s"):
        complete(hangs, silence_seconds=0.1)


def test_only_what_may_pass_is_tried_again() -> None:
    retries = Retries(2, first_wait_seconds=0.01)
    replies = [refusal(503, "away"), refusal(500, "no"), completion("yes")]
    assert complete(lambda _, number: replies[number], retries=retries).content == "yes"
    with pytest.raises(EndpointFailedError, match="HTTP 500: no"):
        complete(lambda _, number: replies[number], retries=retries, passing=(EndpointAwayError,))
    with pytest.raises(EndpointFailedError, match=r"failed 3 times, the last time with HTTP 500: no; .* Ask later"):
        complete(replies[1], retries=retries, after_retries="Ask later.")


def chunks(*parts: Any) -> StreamingResponse:
    lines = [f"data: {part if isinstance(part, str) else json.dumps(part)}\n\n" for part in parts]
    return StreamingResponse(iter(lines), media_type="text/event-stream")


def part(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": None, **choice}]}


def streamed(reply: Response) -> str:
    """What is written before the stream ends, or breaks."""

    async def work(client: OpenAIClient) -> str:
        return "".join([part.content async for part in client.stream(BODY)])

    fake = FakeEndpoint(lambda *_: reply)
    with fake.running() as url:
        found = with_client(url, work)
    assert fake.bodies == [{**BODY, "stream": True}]
    return found


def test_stream_ends_at_its_mark_and_not_before() -> None:
    said = part(delta={"content": "so"})
    assert streamed(chunks(said, part(finish_reason="stop"), "[DONE]", "nonsense")) == "so"
    with pytest.raises(EndpointAwayError, match="ended its reply before it was whole"):
        streamed(chunks(said, "[DONE]"))
    with pytest.raises(EndpointFailedError, match="/v1: out of memory"):
        streamed(chunks(said, {"error": {"message": "out of memory", "code": 500}}, "[DONE]"))
    with pytest.raises(WrongReplyError, match="something else than chunks of a chat completion: not JSON"):
        streamed(chunks("{nonsense"))


def test_models_are_listed_with_their_context() -> None:
    with FakeEndpoint(lambda *_: Response(), models=("judge", "draft")).running() as url:
        assert with_client(url, OpenAIClient.models) == [ModelCard("judge", None), ModelCard("draft", None)]
        with pytest.raises(EndpointRefusedError, match="HTTP 404"):
            with_client(f"{url}/more", OpenAIClient.models)


@pytest.mark.parametrize("words", TOO_LONG)
def test_every_servers_words_for_too_long_are_known(words: str) -> None:
    status, body = TOO_LONG[words]
    with pytest.raises(ContextExceededError) as caught:
        complete(JSONResponse(body, status))
    assert caught.value.status == status
    assert caught.value.fitting_fraction == FITTING[words]


@pytest.mark.parametrize("words", FILTERED)
def test_every_servers_words_for_a_filter_are_known(words: str) -> None:
    status, body = FILTERED[words]
    with pytest.raises(FilteredError, match="Another prompt may pass"):
        complete(JSONResponse(body, status))


def test_what_is_no_url_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="does not begin with http:// or https://; expected a URL such as"):
        OpenAIClient("127.0.0.1:8000/v1")


def test_query_and_login_of_a_url_go_along_and_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeEndpoint(lambda *_: refusal(401, "no"))
    with fake.running() as url, caplog.at_level(logging.DEBUG):
        address = url.replace("http://", "http://me:can%40ry@") + "?api-version=2024-10-21"
        with pytest.raises(EndpointRefusedError) as caught:
            with_client(address, lambda client: client.complete(BODY), key="sk-1")
        assert with_client(address, OpenAIClient.models) == [ModelCard("fake", None)]
    assert fake.headers[0]["authorization"] == f"Basic {base64.b64encode(b'me:can@ry').decode()}"
    assert fake.queries == ["api-version=2024-10-21"] * 2
    assert str(caught.value).startswith(f"{url}?api-version=2024-10-21: HTTP 401")
    assert "can" not in f"{caught.value}{caplog.text}".replace("cannot", "")


def test_azure_gets_the_key_in_its_own_header() -> None:
    fake = FakeEndpoint(lambda *_: completion("yes"))
    with fake.running() as url:
        with_client(f"{url}?api-version=2024-10-21", lambda client: client.complete(BODY), key="sk-1")
        with_client(url, lambda client: client.complete(BODY), key="sk-1")
    assert [headers.get("api-key") for headers in fake.headers] == ["sk-1", None]
    assert [headers["authorization"] for headers in fake.headers] == ["Bearer sk-1"] * 2


def test_tls_is_spoken_where_the_url_says_so() -> None:
    with FakeEndpoint(lambda *_: Response()).running() as url, pytest.raises(EndpointAwayError, match="no connection"):
        with_client(url.replace("http:", "https:"), OpenAIClient.models)


def test_proxy_of_the_environment_is_used_but_not_for_what_it_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        answer = b'{"data": [{"id": "far"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with server:
            for url in ("http://far.invalid/v1", f"{address}/v1"):
                async with OpenAIClient(url) as client:
                    assert await client.models() == [ModelCard("far", None)]

    asyncio.run(run())
    assert asked == [b"GET http://far.invalid/v1/models HTTP/1.1", b"GET /v1/models HTTP/1.1"]
