"""The client against a judge that answers as it is told to, over real HTTP."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from reasongenrm import AsyncJudge, Judge
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.judge.api import OrderJudgment, PairwiseRequest, PairwiseResponse, ReasonDelta
from reasongenrm.judge.client import client_http
from reasongenrm.judge.client.client_errors import (
    JudgeBusyError,
    JudgeClientError,
    JudgeKeyError,
    JudgeRequestError,
    JudgeTooLongError,
    JudgeUnavailableError,
    NotAJudgeError,
)
from tests.endpoints import FakeEndpoint, completion
from tests.judges_service import FakeJudge, refused
from tests.waiting import HANG_SECONDS, wait_until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setattr(client_http, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def judge() -> Iterator[Judge]:
    with FakeJudge().running() as url, Judge(url) as found:
        yield found


def failure(fake: FakeJudge, **arguments: object) -> JudgeClientError:
    """The error of one comparison."""
    with fake.running() as url, Judge(url, max_retries=1, **arguments) as judge:  # type: ignore[arg-type]
        with pytest.raises(JudgeClientError) as caught:
            judge.compare("q", "aa", "b")
        return caught.value


def test_the_better_answer_comes_back_with_both_orders_reasons(judge: Judge) -> None:
    found = judge.compare("Name a prime.", "seven", "9")
    assert (found.preferred, found.p_a, found.consistent) == ("A", 0.9, True)
    assert [one.reason for one in found.judgments] == ["It is given.", "It is swapped."]
    assert judge.compare("Name a prime.", "9", "seven").preferred == "B"
    assert judge.compare("Name a prime.", "7", "9").preferred == "tie"


def test_answers_are_ranked_and_scored(judge: Judge) -> None:
    ranked = judge.rank("q", ["bb", "a", "ccc"])
    assert ranked.ranking == [2, 0, 1]
    assert ranked.scores == pytest.approx([0.5, 0.1, 0.9])
    assert (judge.score("q", "long enough").score, judge.score("q", "a", "bb").against) == (0.9, "reference")
    assert judge.score("q", "a").against == "anchor"


def test_options_and_conversations_reach_the_judge_and_nothing_else_does() -> None:
    fake = FakeJudge()
    with fake.running() as url, Judge(url) as judge:
        judge.compare(
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "?"},
            ],
            "a",
            "b",
            rubric="brevity",
            votes=3,
            both_orders=False,
        )
    (asked,) = fake.requests
    assert isinstance(asked, PairwiseRequest)
    assert [turn.content for turn in asked.turns()] == ["Hi", "Hello", "?"]
    assert asked.model_fields_set == {"question", "answer_a", "answer_b", "rubric", "votes", "both_orders"}
    assert (asked.rubric, asked.votes, asked.both_orders) == ("brevity", 3, False)


def test_what_the_api_cannot_hold_is_refused_before_anything_is_sent(judge: Judge) -> None:
    with pytest.raises(JudgeRequestError, match=r"votes: Input should be less than or equal to 16") as caught:
        judge.compare("q", "a", "b", votes=17)
    assert (caught.value.status, caught.value.code, caught.value.param) == (None, "invalid", "votes")
    with pytest.raises(JudgeRequestError, match=r"answers: List should have at least 2"):
        judge.rank("q", ["a"])
    with pytest.raises(JudgeRequestError, match="Use `stream`"):
        judge.ask(PairwiseRequest(question="q", answer_a="a", answer_b="b", stream=True))


def test_key_and_request_id_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeJudge(key="secret")
    request = PairwiseRequest(question="q", answer_a="a", answer_b="b")
    with fake.running() as url:
        with Judge(url, api_key="secret") as judge:
            assert judge.ask(request, request_id="mine").id == "mine"
        monkeypatch.setenv("JUDGE_API_KEY", "secret")
        with Judge(url) as judge:
            assert judge.ask(request).id == "made-up"
        with Judge(url, api_key="other") as judge, pytest.raises(JudgeKeyError, match="JUDGE_API_KEY") as caught:
            judge.ask(request)
    assert caught.value.status == 401


def test_a_key_that_no_header_can_carry_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="holds a line break") as caught:
        Judge("http://127.0.0.1:1", api_key="secret\n")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/", "ftp://x"])
def test_an_address_that_is_no_root_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected (its root,|a URL) such as"):
        Judge(url)


def test_a_refusal_for_a_while_is_tried_again_after_as_long_as_the_judge_asks() -> None:
    def refuse(_: str, number: int) -> Response | None:
        waits = [{"Retry-After": "1"}, None]
        codes = [(429, "overloaded"), (503, "predictor_unavailable")]
        return refused(*codes[number], "later", headers=waits[number]) if number < 2 else None

    fake = FakeJudge(refuse)
    with fake.running() as url, Judge(url) as judge:
        assert judge.compare("q", "aa", "b").preferred == "A"
    first, second, third = fake.times
    assert second - first >= 1.0
    assert third - second < 0.5


def test_retries_are_bounded_and_the_last_refusal_is_told() -> None:
    fake = FakeJudge(lambda *_: refused(429, "overloaded", "too many requests", request_id="r-1"))
    error = failure(fake)
    assert isinstance(error, JudgeBusyError)
    assert isinstance(error, EngineError)
    assert (error.status, error.code, error.request_id) == (429, "overloaded", "r-1")
    assert "too many requests" in str(error)
    assert "Request r-1" in str(error)
    assert len(fake.times) == 2


@pytest.mark.parametrize(
    ("status", "code", "kind", "calls"),
    [
        (422, "too_long", JudgeTooLongError, 1),
        (422, "invalid", JudgeRequestError, 1),
        (400, "invalid", JudgeRequestError, 1),
        (403, "forbidden", JudgeKeyError, 1),
        (502, "predictor_refused", JudgeUnavailableError, 1),
        (503, "predictor_unavailable", JudgeUnavailableError, 2),
        (504, "predictor_timeout", JudgeUnavailableError, 1),
    ],
)
def test_each_refusal_has_its_error(status: int, code: str, kind: type[JudgeClientError], calls: int) -> None:
    fake = FakeJudge(lambda *_: refused(status, code, "no", param="answer_a"))
    error = failure(fake)
    assert type(error) is kind
    assert (error.status, error.code, error.param) == (status, code, "answer_a")
    assert len(fake.times) == calls


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (PlainTextResponse("<h1>It works</h1>"), "not JSON"),
        (JSONResponse({"choices": []}), "no PairwiseResponse: id: Field required"),
        (JSONResponse({"detail": "Not Found"}, status_code=404), "expected a judge service"),
        (RedirectResponse("https://elsewhere/"), "a redirect to https://elsewhere/"),
    ],
)
def test_what_is_no_judge_is_told_from_a_judge_that_refuses(reply: Response, words: str) -> None:
    error = failure(FakeJudge(lambda *_: reply))
    assert isinstance(error, NotAJudgeError)
    assert words in str(error)


def test_the_predictor_in_place_of_the_judge_is_named_as_the_likely_mistake() -> None:
    with FakeEndpoint(lambda *_: completion("7")).running() as url, Judge(url.removesuffix("/v1")) as judge:
        with pytest.raises(NotAJudgeError, match="without /v1, and not the predictor's"):
            judge.compare("q", "a", "b")
        assert judge.ready() is False


def test_nobody_listening_is_an_error_after_the_retries() -> None:
    with Judge("http://127.0.0.1:9", max_retries=1) as judge:
        assert judge.ready() is False
        with pytest.raises(JudgeUnavailableError, match="Is the judge running"):
            judge.compare("q", "a", "b")


def test_a_judge_that_takes_too_long_is_given_up() -> None:
    error = failure(FakeJudge(seconds=1), timeout=0.2)
    assert isinstance(error, JudgeUnavailableError)
    assert "no reply" in str(error)


def test_many_pairs_go_side_by_side_within_the_bound_and_keep_their_order() -> None:
    fake = FakeJudge(seconds=0.2)
    done: list[int] = []
    pairs = [("q", "a" * (number % 3 + 1), "bb") for number in range(24)]
    with fake.running() as url, Judge(url) as judge:
        found = judge.compare_many(pairs, concurrency=4, on_done=lambda number, _: done.append(number), votes=2)
    assert [one.preferred for one in found] == ["B", "tie", "A"] * 8
    assert fake.most_open == 4
    assert sorted(done) == list(range(24))
    assert len(fake.clients) <= 4  # connections are used again
    assert all(isinstance(one, PairwiseRequest) and one.votes == 2 for one in fake.requests)


def test_one_bad_pair_among_many_ends_them_or_stands_in_its_place() -> None:
    def refuse(_: str, number: int) -> Response | None:
        return refused(422, "too_long", "too long") if number == 1 else None

    with FakeJudge(refuse).running() as url, Judge(url) as judge:
        found = judge.compare_many([("q", "aa", "b")] * 3, concurrency=1, return_errors=True)
        assert [type(one) for one in found] == [PairwiseResponse, JudgeTooLongError, PairwiseResponse]
    fake = FakeJudge(refuse)
    with fake.running() as url, Judge(url) as judge:
        with pytest.raises(JudgeTooLongError):
            judge.compare_many([("q", "aa", "b")] * 9, concurrency=1)
        assert len(fake.times) == 2


def test_a_reason_streams_in_and_the_result_comes_last(judge: Judge) -> None:
    events = list(judge.stream("q", "aa", "b"))
    kinds = [type(event) for event in events]
    assert kinds == [ReasonDelta] * 3 + [OrderJudgment] + [ReasonDelta] * 3 + [OrderJudgment, PairwiseResponse]
    assert "".join(event.delta for event in events[:3] if isinstance(event, ReasonDelta)) == "It is\u2028given."
    assert isinstance(events[-1], PairwiseResponse)
    assert events[-1].preferred == "A"


def test_leaving_a_stream_early_tells_the_judge() -> None:
    fake = FakeJudge(seconds=0.05)
    with fake.running() as url, Judge(url) as judge:
        events = judge.stream("q", "aa", "b")
        next(events)
        events.close()
        wait_until(lambda: fake.streams_left == 1)
        assert judge.compare("q", "aa", "b").preferred == "A"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ('event: error\ndata: {"message": "gone", "code": "predictor_unavailable"}\n\n', JudgeUnavailableError, "gone"),
        ('event: error\ndata: {"message": "long", "code": "too_long"}\n\n', JudgeTooLongError, "long.$"),
        (": ping\n\n", JudgeUnavailableError, "without a result"),
        ("event: reason\ndata: {}\n\n", NotAJudgeError, "'reason' is wrong"),
    ],
)
def test_a_stream_that_fails_in_the_middle_is_an_error(body: str, kind: type[JudgeClientError], words: str) -> None:
    async def chunks() -> object:
        for start in range(0, len(body), 3):  # events do not come in one piece
            yield body[start : start + 3]

    fake = FakeJudge(lambda *_: StreamingResponse(chunks(), media_type="text/event-stream"))  # type: ignore[arg-type]
    with fake.running() as url, Judge(url) as judge, pytest.raises(kind, match=words):
        list(judge.stream("q", "a", "b"))


def test_a_stream_is_refused_like_any_other_request() -> None:
    fake = FakeJudge(lambda _, number: refused(503, "predictor_unavailable", "later") if number == 0 else None)
    with fake.running() as url, Judge(url) as judge:
        assert isinstance(list(judge.stream("q", "aa", "b"))[-1], PairwiseResponse)
    assert len(fake.times) == 2
    with FakeJudge(key="k").running() as url, Judge(url) as judge, pytest.raises(JudgeKeyError):
        list(judge.stream("q", "aa", "b"))


def test_coroutines_ask_in_their_own_loop() -> None:
    async def ask(url: str) -> tuple[PairwiseResponse, list[object]]:
        async with AsyncJudge(url) as judge:
            assert await judge.ready()
            return await judge.compare("q", "aa", "b"), [event async for event in judge.stream("q", "aa", "b")]

    with FakeJudge().running() as url:
        found, events = asyncio.run(ask(url))
    assert found.preferred == "A"
    assert len(events) == 9


def test_one_judge_serves_many_threads() -> None:
    with FakeJudge(seconds=0.01).running() as url, Judge(url) as judge:
        found: list[float | None] = []
        threads = [threading.Thread(target=lambda: found.append(judge.compare("q", "aa", "b").p_a)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [0.9] * 8


def test_a_judge_that_nobody_closes_does_not_keep_the_program_from_ending() -> None:
    code = "import sys; from reasongenrm import Judge; print(Judge(sys.argv[1]).compare('q', 'aa', 'b').preferred)"
    with FakeJudge().running() as url:
        done = subprocess.run(
            [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
        )
    assert done.stdout == "A\n"


def test_the_client_needs_neither_torch_nor_a_server() -> None:
    code = (
        "import sys, reasongenrm; assert 'httpx' not in sys.modules; reasongenrm.Judge; "
        "print([name for name in ('torch', 'transformers', 'kserve', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS, check=True
    )
    assert done.stdout == "[]\n"
