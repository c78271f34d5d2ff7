"""The judge's client of its predictor, against real servers: what is sent, what is read, and every way in which it
fails."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from reasongenrm.generation.openai_client import ContextExceededError, ModelCard
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, sample_seed
from reasongenrm.judge import predictor as predictor_module
from reasongenrm.judge.predictor import Pace, Predictor
from reasongenrm.judge.refusals import (
    JudgeError,
    OverloadedError,
    PredictorRefusedError,
    PredictorTimeoutError,
    PredictorUnavailableError,
    TooFewTokensError,
)
from tests.endpoints import FakeEndpoint, refusal, serving
from tests.judge.replies import REASON, choice, judged, streamed, whole
from tests.waiting import HANG_SECONDS

T = TypeVar("T")

ASK = GenerationRequest("vote", ({"role": "user", "content": "Judge."},), opening_role="reason")
SAMPLING = Sampling(40, temperature=0.5, seed=3, verdict_logprobs=True)
CHOICES = ("[[A]]", "[[B]]")


def complete(
    url: str,
    ask: GenerationRequest = ASK,
    pieces: list[str] | None = None,
    sampling: Sampling = SAMPLING,
    choices: tuple[str, ...] = CHOICES,
    **options: Any,
) -> Generation:
    """One completion by a predictor of its own; streamed into `pieces` if there are any."""

    async def on_reason(piece: str) -> None:
        assert pieces is not None
        pieces.append(piece)

    async def work(predictor: Predictor) -> Generation:
        return await predictor.complete(ask, 1, sampling, choices, None if pieces is None else on_reason)

    return with_predictor(url, work, **options)


def with_predictor(url: str, work: Callable[[Predictor], Awaitable[T]], **options: Any) -> T:
    settings = {"model": None, "key": None, "timeout_seconds": HANG_SECONDS, "max_concurrency": 8} | options

    async def run() -> T:
        async with Predictor(url, **settings) as predictor:
            return await work(predictor)

    return asyncio.run(run())


def test_request_is_what_the_contract_says_and_the_reply_is_read() -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.25))
    with endpoint.running() as url:
        reply = complete(url, key="secret")
    (body,) = endpoint.bodies
    assert body == {
        "model": "fake",
        "messages": [{"role": "user", "content": "Judge."}],
        "max_tokens": 40,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": sample_seed(3, "vote", 1),
        "logprobs": True,
        "top_logprobs": 20,
        "chat_template_kwargs": {"opening_role": "reason"},
        "structured_outputs": {"choice": ["[[A]]", "[[B]]"]},
        "thinking_token_budget": 24,  # 40, less 16 for the assistant turn's opening and a verdict
    }
    assert endpoint.headers[0]["authorization"] == "Bearer secret"
    assert (reply.reason, reply.answer, reply.finish_reason) == (REASON, "[[B]]", "stop")
    assert reply.p_a == pytest.approx(0.25, abs=1e-12)
    assert (reply.num_prompt_tokens, reply.num_output_tokens) == (7, 5)
    assert 0 < reply.seconds < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"ask": replace(ASK, opening_role="assistant")},
        {"sampling": replace(SAMPLING, max_tokens=16)},
        {"choices": ()},
    ],
)
def test_reason_is_bounded_only_where_there_is_one_and_room(changes: dict[str, Any]) -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.25))
    with endpoint.running() as url:
        complete(url, **changes)
    assert "thinking_token_budget" not in endpoint.bodies[0]


def test_max_tokens_that_leave_no_room_for_a_verdict_are_the_callers_to_raise() -> None:
    endpoint = FakeEndpoint(lambda *_: refusal(400, "max_tokens is 8; the answer alone needs 9.", param="max_tokens"))
    with endpoint.running() as url, pytest.raises(TooFewTokensError, match="max_tokens is 8") as caught:
        complete(url)
    assert (caught.value.status, caught.value.param) == (422, "max_tokens")


def test_plain_request_has_no_extensions() -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.25, reason=None))
    with endpoint.running() as url:
        reply = complete(
            url, replace(ASK, opening_role=None), sampling=Sampling(9, seed=3, verdict_logprobs=True), choices=()
        )
    assert not {"chat_template_kwargs", "structured_outputs", "stream"} & set(endpoint.bodies[0])
    assert reply.reason is None


def test_streamed_reply_is_the_whole_one_and_its_reason_comes_in_pieces() -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.75))
    pieces: list[str] = []
    with endpoint.running() as url:
        streaming, at_once = complete(url, pieces=pieces), complete(url)
    assert endpoint.bodies[0]["stream_options"] == {"include_usage": True}
    assert pieces == ["A ", "is ", "short. ", "B ", "is ", "long."]
    assert (streaming.reason, streaming.answer, streaming.p_a) == (at_once.reason, at_once.answer, at_once.p_a)
    assert (streaming.num_prompt_tokens, streaming.num_output_tokens) == (7, 5)


@pytest.mark.parametrize("wrapped", [whole, streamed], ids=["whole", "streamed"])
@pytest.mark.parametrize("change", [{"finish_reason": "length"}, {"message": {"reasoning_truncated": True}}])
def test_generation_that_was_cut_off_says_so(wrapped: Callable[..., Response], change: dict[str, Any]) -> None:
    found = choice(0.75)
    found["message"] |= change.get("message", {})
    found["finish_reason"] = change.get("finish_reason", "stop")
    with FakeEndpoint(lambda *_: wrapped(found)).running() as url:
        assert complete(url, pieces=[] if wrapped is streamed else None).finish_reason == "length"


def test_verdicts_in_the_reason_are_not_the_content() -> None:
    found = choice(0.75, reason="Surely [[A]], [[A]].")
    found |= {"finish_reason": "length", "logprobs": {"content": []}}
    found["message"]["content"] = None
    with FakeEndpoint(lambda *_: whole(found)).running() as url:
        reply = complete(url)
    assert (reply.answer, reply.p_a, reply.finish_reason) == ("", None, "length")


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (refusal(401, "bad key"), PredictorRefusedError, "HTTP 401.*bad key.*VLLM_API_KEY"),
        (refusal(400, "no such field"), PredictorRefusedError, "HTTP 400.*no such field"),
        (refusal(500, "oops"), PredictorRefusedError, "HTTP 500.*oops"),
        (PlainTextResponse("<html>"), PredictorRefusedError, "not JSON"),
        (JSONResponse([1]), PredictorRefusedError, "no chat completion"),
        (JSONResponse({"choices": []}), PredictorRefusedError, "no chat completion"),
        (
            whole({**choice(0.5), "logprobs": {"content": [{"token": "[[A]]", "logprob": None, "top_logprobs": []}]}}),
            PredictorRefusedError,
            r"choices\.0\.logprobs\.content\.0\.logprob: ",
        ),
        (refusal(429, "later", {"Retry-After": "7"}), OverloadedError, "too much to do"),
        (refusal(429, "later", {"Retry-After": "Wed, 21 Oct"}), OverloadedError, "too much to do"),
        (refusal(400, "x" * 400, code="context_length_exceeded"), ContextExceededError, "x"),
    ],
)
def test_answers_that_are_no_completion_are_errors_with_its_words(
    reply: Response, error: type[Exception], words: str
) -> None:
    with FakeEndpoint(lambda *_: reply).running() as url, pytest.raises(error, match=words) as caught:
        complete(url)
    if isinstance(caught.value, OverloadedError):
        assert caught.value.retry_after_seconds == (7 if reply.headers["retry-after"] == "7" else 5)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'data: {"error": {"message": "out of memory"}}\n\n', PredictorRefusedError),
        (b"data: {nonsense\n\n", PredictorRefusedError),
        (b'data: {"choices": [{"delta": 3}]}\n\n', PredictorRefusedError),
        (b'data: {"choices": [{"delta": {"reasoning": "A"}}]}\n\n', PredictorUnavailableError),  # ends before its end
        (b"data: " + b"x" * (9 * 2**20) + b"\n\n", PredictorRefusedError),
    ],
    ids=["error", "no json", "no delta", "cut short", "endless line"],
)
def test_streams_that_go_wrong_are_errors(data: bytes, error: type[Exception]) -> None:
    with FakeEndpoint(lambda *_: StreamingResponse(iter([data]))).running() as url, pytest.raises(error):
        complete(url, pieces=[])


def test_an_error_of_the_listener_is_not_blamed_on_the_predictor() -> None:
    async def on_reason(_: str) -> None:
        raise ValueError("mine")

    async def work(predictor: Predictor) -> None:
        await predictor.complete(ASK, 0, SAMPLING, CHOICES, on_reason)

    with (
        FakeEndpoint(lambda body, _: judged(body, 0.75)).running() as url,
        pytest.raises(ValueError, match=r"^mine$"),
    ):
        with_predictor(url, work)


@pytest.mark.parametrize("status", [502, 503])
def test_predictor_that_is_away_for_a_moment_is_asked_again(status: int) -> None:
    endpoint = FakeEndpoint(lambda body, n: refusal(status, "loading") if n < 2 else judged(body, 0.75))
    with endpoint.running() as url:
        assert complete(url).answer == "[[A]]"
    assert len(endpoint.bodies) == 3


def test_predictor_that_stays_away_is_unavailable_after_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "PATIENCE_SECONDS", 0.3)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(PredictorUnavailableError, match=r"cannot be reached.*ask again") as caught:
        complete(f"http://127.0.0.1:{port}/v1")
    assert (caught.value.status, caught.value.retry_after_seconds) == (503, 5)


def test_connection_that_breaks_before_the_answer_is_tried_again() -> None:
    answer = json.dumps({"data": [{"id": "m", "max_model_len": 512}]}).encode()
    num_connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await reader.readuntil(b"\r\n\r\n")
        if num_connections > 1:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
            writer.write(head.encode() + answer)
        writer.close()
        await writer.wait_closed()

    async def run() -> ModelCard:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Predictor(f"http://127.0.0.1:{port}/v1", None, None, 10.0, 8) as predictor:
            return await predictor.card()

    assert asyncio.run(run()) == ModelCard("m", 512)
    assert num_connections == 2


def test_predictor_that_never_answers_times_out_in_generation_and_in_its_list_of_models() -> None:
    async def hangs(*_: Any) -> Response:
        await asyncio.sleep(0.3)
        return Response()

    with FakeEndpoint(hangs).running() as url, pytest.raises(PredictorTimeoutError, match=r"within 0\.1 s") as caught:
        complete(url, timeout_seconds=0.1)
    assert caught.value.status == 504
    with serving(Starlette(routes=[Route("/v1/models", hangs)])) as url, pytest.raises(PredictorTimeoutError):
        complete(f"{url}/v1", timeout_seconds=0.1)


@pytest.mark.parametrize("streaming", [False, True])
def test_cancelling_closes_the_connection_at_once(streaming: bool) -> None:
    seen: list[str] = []

    async def chat(request: Request) -> Response:
        seen.append("open")

        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield b'data: {"choices": [{"delta": {"reasoning": "So"}}]}\n\n'
                await asyncio.sleep(60)
            finally:
                seen.append("closed")

        if streaming:
            return StreamingResponse(chunks())
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        seen.append("closed")
        return Response()

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "m"}]})

    async def work(predictor: Predictor) -> None:
        began = asyncio.Event()

        async def on_reason(_: str) -> None:
            began.set()

        task = asyncio.create_task(predictor.complete(ASK, 0, SAMPLING, CHOICES, on_reason if streaming else None))
        async with asyncio.timeout(HANG_SECONDS):
            while not (began.is_set() if streaming else seen):
                await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            while seen != ["open", "closed"]:  # while the predictor's client lives on: not the session's end closed it
                await asyncio.sleep(0.01)

    app = Starlette(
        routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])],
    )
    with serving(app) as url:
        with_predictor(f"{url}/v1", work)


def test_no_more_generations_are_under_way_than_allowed() -> None:
    async def slowly(body: dict[str, Any], _: int) -> Response:
        while endpoint.most_open < 3:  # fewer would wait for ever
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)  # for a fourth to come
        return judged(body, 0.75)

    async def work(predictor: Predictor) -> None:
        await asyncio.gather(*(predictor.complete(ASK, 0, SAMPLING, CHOICES) for _ in range(12)))

    endpoint = FakeEndpoint(slowly)
    with endpoint.running() as url:
        with_predictor(url, work, max_concurrency=3)
    assert (len(endpoint.bodies), endpoint.most_open) == (12, 3)


@pytest.mark.parametrize(
    ("models", "model", "words"),
    [
        ((), None, "lists none; expected one model"),
        (("a", "b"), None, "lists a, b"),
        (("a",), "c", "expected the model 'c'"),
    ],
)
def test_predictor_without_the_one_model_is_refused_by_name(
    models: tuple[str, ...], model: str | None, words: str
) -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.5), models)
    with endpoint.running() as url, pytest.raises(PredictorRefusedError, match=words):
        complete(url, model=model)


def test_named_model_is_chosen_among_several() -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.5), ("base", "lora"))
    with endpoint.running() as url:
        complete(url, model="lora")
    assert endpoint.bodies[0]["model"] == "lora"


def test_ready_means_that_the_list_of_models_comes() -> None:
    with FakeEndpoint(lambda body, _: judged(body, 0.5)).running() as url:
        assert with_predictor(url, lambda predictor: predictor.ready())
    assert not with_predictor(url, lambda predictor: predictor.ready())  # it has ended


def test_deadline_follows_the_measured_speed_and_is_never_shorter_than_the_setting() -> None:
    pace = Pace(10.0)
    assert pace.deadline_seconds(2048) == 10.0  # nothing measured
    pace.add(100, 10.0)  # 0.1 s per token
    assert pace.deadline_seconds(2048) == pytest.approx(3 * 204.8)
    assert pace.deadline_seconds(16) == 10.0
    pace.add(100, 20.0)  # 0.1 + 0.2 x (0.2 - 0.1)
    assert pace.deadline_seconds(1000) == pytest.approx(3 * 120)
    pace.add(7, 100.0)  # too short to tell
    assert pace.deadline_seconds(1000) == pytest.approx(3 * 120)


def test_a_long_generation_gets_the_time_that_its_tokens_take() -> None:
    """5 tokens would not count: 20 tokens in 0.1 s are 0.005 s per token, so 100 tokens get 1.5 s, not 0.3."""
    seconds = iter((0.1, 0.6))

    async def slow(body: dict[str, Any], _: int) -> Response:
        await asyncio.sleep(next(seconds))
        reply = json.loads(judged(body, 0.75).body)
        reply["usage"]["completion_tokens"] = 20
        return JSONResponse(reply)

    async def both(url: str) -> list[Generation]:
        async with Predictor(url, "fake", None, 0.3, 1) as predictor:
            return [await predictor.complete(ASK, sample, replace(SAMPLING, max_tokens=100)) for sample in (0, 1)]

    with FakeEndpoint(slow).running() as url:
        assert len(asyncio.run(both(url))) == 2


def test_every_error_has_a_status_and_a_code_of_its_own() -> None:
    kinds = [kind for kind in JudgeError.__subclasses__() if kind.__module__ == JudgeError.__module__]
    assert {(kind.status, kind.code) for kind in kinds} == {
        (422, "too_long"),
        (422, "too_few_tokens"),
        (422, "filtered"),
        (429, "overloaded"),
        (502, "predictor_refused"),
        (502, "unread"),
        (503, "predictor_unavailable"),
        (504, "predictor_timeout"),
    }
