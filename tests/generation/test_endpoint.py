"""The endpoint engine against real HTTP servers: replies, seeds, concurrency, retries, resume."""

import asyncio
import gc
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from reasongenrm import http_client
from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.generation import endpoint, open_engine
from reasongenrm.generation.endpoint import EndpointEngine
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, sample_seed
from tests.endpoints import FakeEndpoint, Reply, completion, refusal
from tests.server_words import FILTERED, TOO_LONG
from tests.waiting import HANG_SECONDS

PLAIN = Sampling(max_tokens=9)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)


def ask(name: str, text: str = "Which?", **changes: Any) -> GenerationRequest:
    return replace(GenerationRequest(name, ({"role": "user", "content": text},)), **changes)


def echo(body: dict[str, Any], _: int) -> Response:
    """A model that answers with what fixes its random numbers."""
    return completion(f"{body['messages'][-1]['content']} {body['seed']}")


def generate(
    reply: Reply, requests: list[GenerationRequest], sampling: Sampling = PLAIN, **config: Any
) -> tuple[FakeEndpoint, list[list[Generation]]]:
    fake = FakeEndpoint(reply)
    with fake.running() as url:
        engine = EndpointEngine(url, EngineConfig(**config))
        return fake, list(engine.generate(requests, sampling))


def one(reply: Reply, request: GenerationRequest | None = None, **more: Any) -> Generation:
    ((generation,),) = generate(reply, [request or ask("q")], **more)[1]
    return generation


def test_request_has_what_the_seam_asks_for() -> None:
    sampling = Sampling(max_tokens=9, temperature=0.7, top_p=0.9, num_samples=2, seed=3)
    fake, batches = generate(echo, [ask("q", opening_role="reason")], sampling, concurrency=1)
    first = {
        "model": "fake",
        "messages": [{"role": "user", "content": "Which?"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": sample_seed(3, "q", 0),
        "chat_template_kwargs": {"opening_role": "reason"},
    }
    assert fake.bodies == [first, first | {"seed": sample_seed(3, "q", 1)}]
    assert [g.answer for g in batches[0]] == [f"Which? {body['seed']}" for body in fake.bodies]


def test_extensions_are_sent_only_when_asked_for() -> None:
    fake, _ = generate(echo, [ask("q")])
    assert not {"chat_template_kwargs", "skip_special_tokens", "stop", "n", "logprobs"} & set(fake.bodies[0])
    assert "authorization" not in fake.headers[0]


def test_probabilities_of_the_verdicts_are_asked_for_and_read() -> None:
    tops = [[], [{"token": "B", "logprob": -0.5}, {"token": "A", "logprob": -1.0}], []]
    listed = [
        {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": top}
        for token, top in zip(("[[", "B", "]]"), tops, strict=True)
    ]

    def judge(body: dict[str, Any], _: int) -> Response:
        reply = json.loads(completion("[[B]]").body)
        if body.get("logprobs") and body["top_logprobs"] == 20:
            reply["choices"][0]["logprobs"] = {"content": listed}
        return JSONResponse(reply)

    found = one(judge, sampling=Sampling(max_tokens=9, verdict_logprobs=True))
    assert found.p_a == pytest.approx(1 / (1 + math.exp(0.5)))
    assert one(judge).p_a is None


def test_usage_finish_reason_and_time_are_read() -> None:
    cut = one(lambda *_: completion("half an ans", finish_reason="length"))
    assert (cut.num_prompt_tokens, cut.num_output_tokens, cut.finish_reason) == (7, 5, "length")
    assert 0 < cut.seconds < 10


@pytest.mark.parametrize(
    ("reply", "ending"),
    [
        (completion("half", finish_reason="content_filter"), "refused"),
        (completion(None, refusal="I can't help with that."), "refused"),  # OpenAI's
        (completion("half", finish_reason="abort"), "length"),  # vLLM, SGLang
        (completion("half", finish_reason="insufficient_system_resource"), "length"),  # DeepSeek
        (completion("all", finish_reason="eos_token"), "stop"),  # text-generation-inference
    ],
)
def test_only_what_ended_by_itself_is_whole(reply: Response, ending: str) -> None:
    got = one(lambda *_: reply, endpoint={"max_failed_fraction": 1})
    assert (got.finish_reason, got.answer) == (ending, {"refused": "", "length": "half", "stop": "all"}[ending])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "A is "}, {"type": "text", "text": "right."}], "A is right."),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "B"}], "B"),
        (None, ""),
    ],
)
def test_content_may_be_a_list_or_nothing(content: Any, text: str) -> None:
    assert one(lambda *_: completion(content)).answer == text


def test_null_content_with_reasoning_is_a_reason_without_an_answer() -> None:
    got = one(lambda *_: completion(None, finish_reason="length", reasoning_content="Let me see"))
    assert (got.reason, got.answer, got.finish_reason) == ("Let me see", "", "length")


def test_a_reply_without_usage_is_taken_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def uncounted(*_: Any) -> Response:
        reply = json.loads(completion("fine").body)
        del reply["usage"]
        return JSONResponse(reply)

    _, (batch,) = generate(uncounted, [ask(f"q{i}") for i in range(5)])
    assert [(g.answer, g.num_prompt_tokens, g.num_output_tokens) for g in batch] == [("fine", 0, 0)] * 5
    assert [record.message.split(": ")[-1] for record in caplog.records] == [
        "it does not count tokens, so the figures have 0 for them"
    ]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reason_is_read_under_both_of_its_names(field: str) -> None:
    got = one(lambda *_: completion(" [[A]]", **{field: "A is right.\n"}))
    assert (got.reason, got.answer) == ("A is right.", "[[A]]")


@pytest.mark.parametrize(
    "text",
    [
        "A is right.<|im_end|>\n<|im_start|>assistant\n[[A]]<|im_end|><|endoftext|>",
        "A is right.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[A]]<|eot_id|><|end_of_text|>",
    ],
)
def test_raw_markup_is_split_into_its_turns(text: str) -> None:
    fake = FakeEndpoint(lambda *_: completion(text))
    with fake.running() as url:
        engine = open_engine(url, EngineConfig(), keep_markup=True)
        ((got,),) = engine.generate([ask("q", opening_role="reason")], PLAIN)
    assert (got.reason, got.answer) == ("A is right.", "[[A]]")
    assert fake.bodies[0]["skip_special_tokens"] is False


def test_plain_reply_is_the_answer() -> None:
    got = one(lambda *_: completion("B is better. [[B]]\n"), ask("q", opening_role="reason"))
    assert (got.reason, got.answer) == (None, "B is better. [[B]]")


def test_a_turn_alone_ends_at_every_familys_closing_token() -> None:
    fake, ((got,),) = generate(lambda *_: completion("A is"), [ask("q", opening_role="reason", stop_at="turn")])
    assert fake.bodies[0]["stop"] == ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"]
    assert (got.reason, got.answer) == ("A is", "")


def test_second_step_of_two_step_generation_is_an_answer() -> None:
    messages = ({"role": "user", "content": "Which?"}, {"role": "reason", "content": "A is right."})
    got = one(lambda *_: completion("[[A]]"), ask("q", messages=messages, opening_role="reason", stop_at="turn"))
    assert (got.reason, got.answer) == (None, "[[A]]")


def test_samples_of_a_request_stay_together_and_batches_in_order() -> None:
    async def slow_first(body: dict[str, Any], number: int) -> Response:
        await asyncio.sleep(0.2 if number == 0 else 0)
        return echo(body, number)

    sampling = Sampling(max_tokens=9, num_samples=2)
    _, batches = generate(slow_first, [ask(f"q{i}") for i in range(5)], sampling, batch_size=4, concurrency=3)
    assert [[(g.request_id, g.sample) for g in batch] for batch in batches] == [
        [("q0", 0), ("q0", 1), ("q1", 0), ("q1", 1)],
        [("q2", 0), ("q2", 1), ("q3", 0), ("q3", 1)],
        [("q4", 0), ("q4", 1)],
    ]


def test_resume_leaves_out_whole_batches_only_and_writes_the_same() -> None:
    requests = [ask(f"q{i}") for i in range(6)]
    _, whole = generate(echo, requests, batch_size=2)
    fake = FakeEndpoint(echo)
    with fake.running() as url:
        engine = EndpointEngine(url, EngineConfig(batch_size=2))
        resumed = list(engine.generate(requests, PLAIN, skip={"q0", "q1", "q3"}))
    answers = [[(g.request_id, g.answer) for g in batch] for batch in whole]
    assert [[(g.request_id, g.answer) for g in batch] for batch in resumed] == answers[1:]


def test_no_more_requests_are_open_than_allowed_and_batches_overlap() -> None:
    open_at_once: list[int] = []

    async def slow(body: dict[str, Any], number: int) -> Response:
        open_at_once.append(number)
        while len(open_at_once) < 6:  # three batches of two side by side; fewer would wait for ever
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)  # for a seventh to come
        return echo(body, number)

    fake, batches = generate(slow, [ask(f"q{i}") for i in range(20)], batch_size=2, concurrency=6)
    assert fake.most_open == 6
    assert len(batches) == 10


@pytest.mark.usefixtures("_short_waits")
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_failures_are_tried_again_and_logged(status: int, caplog: pytest.LogCaptureFixture) -> None:
    def reply(body: dict[str, Any], number: int) -> Response:
        return refusal(status, "busy") if number < 2 else echo(body, number)

    with caplog.at_level(logging.WARNING):
        assert one(reply).answer.startswith("Which?")
    assert [f"HTTP {status}: busy; attempt {n} of 6 in" in caplog.messages[n - 2] for n in (2, 3)] == [True, True]


@pytest.mark.usefixtures("_short_waits")
def test_endpoint_that_fails_for_ever_is_one_clear_error() -> None:
    fake = FakeEndpoint(lambda *_: refusal(500, "the GPU\nfell off"))
    with fake.running() as url:
        engine = EndpointEngine(url, EngineConfig(max_retries=3))
        with pytest.raises(
            EngineError, match=r"/v1: request q0: failed 4 times, .* HTTP 500: the GPU fell off; .*start again"
        ):
            list(engine.generate([ask("q0")], PLAIN))
    assert len(fake.bodies) == 4


def test_default_waits_end_well_within_a_minute() -> None:
    waits = [endpoint.FIRST_WAIT_SECONDS * 2**attempt for attempt in range(EngineConfig().max_retries)]
    assert sum(waits) == 15.5


@pytest.mark.usefixtures("_short_waits")
def test_waits_double() -> None:
    fake = FakeEndpoint(lambda *_: refusal(500, "no"))
    with fake.running() as url, pytest.raises(EngineError):
        list(EndpointEngine(url, EngineConfig(max_retries=4)).generate([ask("q")], PLAIN))
    gaps = [after - before for before, after in zip(fake.times, fake.times[1:], strict=False)]
    assert all(gap >= 0.01 * 2**number for number, gap in enumerate(gaps))


@pytest.mark.usefixtures("_short_waits")
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    def reply(body: dict[str, Any], number: int) -> Response:
        if number:
            return echo(body, number)
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
        return refusal(429, "slow down", {"Retry-After": "1" if form == "seconds" else date})

    fake, _ = generate(reply, [ask("q")])
    assert fake.times[1] - fake.times[0] >= 0.9


@pytest.mark.usefixtures("_short_waits")
def test_retry_after_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_WAIT_SECONDS", 0.1)
    got = one(lambda body, n: echo(body, n) if n else refusal(429, "tomorrow", {"Retry-After": "86400"}))
    assert got.answer


@pytest.mark.usefixtures("_short_waits")
def test_silent_endpoint_is_given_up_after_its_time() -> None:
    async def silent(body: dict[str, Any], number: int) -> Response:
        await asyncio.sleep(0.5)
        return echo(body, number)

    with pytest.raises(EngineError, match=r"failed 2 times, the last time with no reply within 0\.1 s"):
        generate(silent, [ask("q")], timeout_seconds=0.1, max_retries=1)


@pytest.mark.usefixtures("_short_waits")
def test_nobody_listening_is_one_clear_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf"http://127\.0\.0\.1:{port}/v1: failed 2 times, .*no connection"):
        EndpointEngine(f"http://127.0.0.1:{port}/v1", EngineConfig(max_retries=1))


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "model's name")]
)
def test_refusal_ends_at_once_with_the_servers_words(status: int, advice: str) -> None:
    fake = FakeEndpoint(lambda *_: refusal(status, "temperature is too hot"))
    with fake.running() as url:
        engine = EndpointEngine(url, EngineConfig())
        with pytest.raises(EngineError, match=rf"request q: HTTP {status}: temperature is too hot\. .*{advice}"):
            list(engine.generate([ask("q")], PLAIN))
    assert len(fake.bodies) == 1


def test_a_redirect_is_an_error_with_its_target_and_is_not_followed() -> None:
    def away(*_: Any) -> Response:
        return Response(status_code=308, headers={"Location": "https://me:hunter2@elsewhere.invalid/v1"})

    with pytest.raises(
        EngineError, match=r"HTTP 308: a redirect to https://elsewhere\.invalid/v1\. It is not"
    ) as caught:
        one(away)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("words", TOO_LONG)
def test_prompt_beyond_the_context_is_cut_off_not_the_end_of_the_run(
    words: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = TOO_LONG[words]

    def first_is_too_long(asked: dict[str, Any], number: int) -> Response:
        return JSONResponse(body, status) if asked["messages"][-1]["content"] == "long" else echo(asked, number)

    requests = [ask("long", "long", opening_role="reason"), *(ask(f"q{i}") for i in range(9))]
    _, (batch,) = generate(first_is_too_long, requests)
    got = batch[0]
    assert (got.reason, got.answer, got.num_output_tokens, got.finish_reason) == ("", "", 0, "length")
    assert [g.finish_reason for g in batch[1:]] == ["stop"] * 9
    assert "request long: HTTP" in caplog.text
    assert "counted as too_long" in caplog.text


@pytest.mark.parametrize("words", FILTERED)
def test_a_filtered_prompt_is_refused_and_the_run_goes_on(words: str) -> None:
    status, body = FILTERED[words]

    def first_is_filtered(asked: dict[str, Any], number: int) -> Response:
        return JSONResponse(body, status) if asked["messages"][-1]["content"] == "bad" else echo(asked, number)

    _, (batch,) = generate(first_is_filtered, [ask("bad", "bad"), *(ask(f"q{i}") for i in range(9))])
    assert [g.finish_reason for g in batch] == ["refused", *["stop"] * 9]
    assert (batch[0].reason, batch[0].answer) == (None, "")


def test_too_many_failures_end_the_run_with_a_summary_by_cause() -> None:
    """Of 20, every fifth is filtered and one in twenty too long: 5 of 20, where 1 in 10 may fail."""
    long, filtered = TOO_LONG["vllm"], FILTERED["azure"]

    def reply(asked: dict[str, Any], number: int) -> Response:
        place = int(asked["messages"][-1]["content"])
        status, body = long if place == 1 else filtered
        return JSONResponse(body, status) if place == 1 or place % 5 == 0 else echo(asked, number)

    requests = [ask(f"q{i}", str(i)) for i in range(20)]
    with pytest.raises(EngineError) as caught:
        generate(reply, requests, batch_size=20)
    assert (
        "5 of 20 requests failed, more than engine.endpoint.max_failed_fraction (0.1) allows: 4 refused (first: "
        in (str(caught.value))
    )
    assert "; 1 too_long (first: " in str(caught.value)
    _, (batch,) = generate(reply, requests, batch_size=20, endpoint={"max_failed_fraction": 0.25})
    assert sum(g.finish_reason != "stop" for g in batch) == 5


def test_a_server_that_refuses_everything_is_not_asked_a_thousand_times() -> None:
    fake = FakeEndpoint(lambda *_: refusal(400, "nonsense"))
    with fake.running() as url:
        engine = EndpointEngine(url, EngineConfig(batch_size=4, concurrency=4))
        with pytest.raises(EngineError, match=r"32 of 1000 requests failed, and none passed: 32 refused \("):
            list(engine.generate([ask(f"q{i}") for i in range(1000)], PLAIN))
    assert len(fake.bodies) <= 32 + 2 * 4  # two batches may be under way


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (PlainTextResponse("<html>hello</html>"), r"not JSON: .* \(<html>hello</html>\)"),
        (refusal(200, "fine"), "no chat completion with choices: choices"),
    ],
)
def test_reply_that_is_no_completion_is_refused(reply: Response, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        one(lambda *_: reply)


def test_only_model_is_found_and_several_must_be_named() -> None:
    fake = FakeEndpoint(echo, models=("judge", "draft"))
    with fake.running() as url:
        with pytest.raises(EngineError, match=r"lists 2 models \(judge, draft\); expected one\. Name"):
            open_engine(url, EngineConfig())
        assert open_engine(url, EngineConfig(), model_name="draft").model_name == "draft"
        with pytest.raises(EngineError, match=r"/v2: HTTP 404: .* ends with the API's version"):
            open_engine(url.replace("v1", "v2"), EngineConfig())


def test_key_is_sent_and_a_broken_one_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    fake, _ = generate(echo, [ask("q")])
    assert fake.headers[0]["authorization"] == "Bearer sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: holds a line break") as caught:
        open_engine("http://127.0.0.1:9/v1", EngineConfig())
    assert "sk-secret" not in str(caught.value)


def test_engine_can_be_left_in_the_middle() -> None:
    left = threading.Event()

    async def slow_later(body: dict[str, Any], number: int) -> Response:
        began = time.monotonic()
        is_later = body["messages"][-1]["content"] not in ("q0", "q1")  # requests may arrive in any order
        while is_later and not left.is_set() and time.monotonic() - began < HANG_SECONDS:
            await asyncio.sleep(0.01)
        return echo(body, number)

    fake = FakeEndpoint(slow_later)
    with fake.running() as url:
        batches: Iterator[list[Generation]] = EndpointEngine(url, EngineConfig(batch_size=2, concurrency=8)).generate(
            [ask(f"q{i}", f"q{i}") for i in range(8)], Sampling(max_tokens=9)
        )
        assert [g.request_id for g in next(batches)] == ["q0", "q1"]
        started = time.monotonic()
        batches.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < HANG_SECONDS  # the others have not been answered
        left.set()


@pytest.mark.parametrize("batch_size", [1, 16])
def test_failure_ends_what_is_under_way_before_its_connections_close(batch_size: int) -> None:
    def first_fails(body: dict[str, Any], number: int) -> Response:
        return refusal(401, "no") if number % 64 == 0 else echo(body, number)

    with FakeEndpoint(first_fails).running() as url:
        engine = EndpointEngine(url, EngineConfig(batch_size=batch_size, concurrency=16))
        for _ in range(4):  # a connection that is opened while its client closes stays open: a ResourceWarning
            with pytest.raises(EngineError, match="HTTP 401: no"):
                list(engine.generate([ask(f"q{i}") for i in range(256)], Sampling(max_tokens=9)))
            gc.collect()


def test_addresses_that_are_neither_endpoint_nor_folder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"s3://bucket/model: expected http\(s\)://\.\.\./v1 or a local folder"):
        open_engine("s3://bucket/model", EngineConfig())
    with pytest.raises(ConfigError, match="keep_markup is for endpoints only"):
        open_engine("/tmp/model", EngineConfig(), keep_markup=True)
    with pytest.raises(ConfigError, match="its port is no number from 1 to 65535; expected a URL such as"):
        open_engine("http://127.0.0.1:port/v1", EngineConfig())


def test_engine_works_where_an_event_loop_is_running() -> None:
    async def notebook(url: str) -> Generation:
        ((generation,),) = open_engine(url, EngineConfig()).generate([ask("q")], PLAIN)
        return generation

    fake = FakeEndpoint(echo)
    with fake.running() as url:
        assert asyncio.run(notebook(url)).answer.startswith("Which?")
