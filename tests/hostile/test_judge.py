"""Hostile pairs through the judge over real HTTP, its predictor a stub that follows a rule: the text never decides."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from reasongenrm.data.prompts import as_data
from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import serving
from tests.hostile.cases import CASES, Case, each_of, every_case
from tests.predictors import RulePredictor, first, longer
from tests.waiting import HANG_SECONDS

MAX_CHARS = 8000
SWAPPED = {"A": "B", "B": "A", "tie": "tie", None: None}


@contextmanager
def judging(predictor: Any, **settings: Any) -> Iterator[httpx.Client]:
    with serving(predictor.app) as behind:
        judge = JudgeSettings(f"{behind}/v1", max_chars=MAX_CHARS, **settings)
        with (
            serving(create_app(judge, Limits(), ServerSettings())) as address,
            httpx.Client(base_url=address, timeout=HANG_SECONDS) as client,
        ):
            yield client


class QuotingPredictor:
    """Gives no verdict: its reason (or its whole answer, in plain chat) is the question and the answers, as it was
    asked."""

    def __init__(self, *, plain: bool = False) -> None:
        self.plain = plain
        self.app = Starlette(
            routes=[
                Route("/v1/models", lambda _: JSONResponse({"object": "list", "data": [{"id": "quotes"}]})),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        quoted = body["messages"][-1]["content"].rsplit("### Verdict\n", 1)[0]
        said = {"content": quoted} if self.plain else {"reasoning": quoted, "reasoning_content": quoted}
        head = {"id": "1", "object": "chat.completion", "created": 1, "model": "quotes"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "", **said}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            return JSONResponse(head | {"choices": [choice], "usage": usage})

        async def stream() -> AsyncIterator[str]:
            for delta, finish_reason in ((said, None), ({}, "length")):
                choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
                yield f"data: {json.dumps(head | {'choices': [choice]})}\n\n"
            yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def by_length() -> Iterator[httpx.Client]:
    with judging(RulePredictor(longer)) as client:
        yield client


@pytest.fixture(scope="module")
def by_place() -> Iterator[httpx.Client]:
    with judging(RulePredictor(first)) as client:
        yield client


@pytest.fixture(scope="module")
def quoting() -> Iterator[httpx.Client]:
    with judging(QuotingPredictor()) as client:
        yield client


@pytest.fixture(scope="module")
def quoting_plainly() -> Iterator[httpx.Client]:
    with judging(QuotingPredictor(plain=True), style="plain") as client:
        yield client


def ask(client: httpx.Client, case: Case, *, swapped: bool = False, **options: Any) -> httpx.Response:
    """As any JSON library sends it: what is not ASCII as \\u escapes."""
    answers = (case.answer_b, case.answer_a) if swapped else (case.answer_a, case.answer_b)
    body = {"question": case.question, "answer_a": answers[0], "answer_b": answers[1], **options}
    return client.post("/v1/pairwise", content=json.dumps(body), headers={"Content-Type": "application/json"})


def num_chars(case: Case) -> int:
    return len(case.question) + len(case.answer_a) + len(case.answer_b)


def is_refused(case: Case, answer: httpx.Response) -> bool:
    """422 with words, and right so: the text is no text, or it is too long and was not to be cut."""
    if answer.status_code == 200:
        return False
    error = answer.json()["error"]
    assert answer.status_code == 422, error
    assert len(error["message"]) > 20
    assert len(error["message"]) < 2000
    assert not case.sendable or error["code"] == "too_long"
    return True


@every_case
def test_rule_decides_and_swapping_the_answers_swaps_the_verdict(by_length: httpx.Client, case: Case) -> None:
    given, swapped = (ask(by_length, case, swapped=turn) for turn in (False, True))
    may_be_judged = case.sendable and (num_chars(case) <= MAX_CHARS or case.answer_a == case.answer_b)
    assert is_refused(case, given) == is_refused(case, swapped) == (not may_be_judged)
    if not may_be_judged:
        return
    one, two = given.json(), swapped.json()
    p_a = longer(as_data(case.answer_a), as_data(case.answer_b))
    assert one["p_a"] == pytest.approx(p_a, abs=1e-9)
    assert two["p_a"] == pytest.approx(1 - p_a, abs=1e-9)
    assert one["preferred"] == ("tie" if p_a == 0.5 else "A" if p_a > 0.5 else "B")
    assert two["preferred"] == SWAPPED[one["preferred"]]
    assert one["cuts"] == two["cuts"] == []


@each_of(case for case in CASES if num_chars(case) > MAX_CHARS)
def test_too_long_is_cut_in_the_middle_and_says_so_if_it_may_be(by_length: httpx.Client, case: Case) -> None:
    one, two = (ask(by_length, case, swapped=turn, when_too_long="truncate").json() for turn in (False, True))
    assert one["preferred"] in ("A", "B", "tie")
    assert two["preferred"] == SWAPPED[one["preferred"]]
    assert one["p_a"] == pytest.approx(1 - two["p_a"])
    names = {"answer_a": "answer_b", "answer_b": "answer_a", "question": "question"}
    assert {cut["field"]: cut["num_chars"] for cut in one["cuts"]} == {
        names[cut["field"]]: cut["num_chars"] for cut in two["cuts"]
    }
    lengths = {"question": len(case.question), "answer_a": len(case.answer_a), "answer_b": len(case.answer_b)}
    left = sum(lengths.values()) - sum(cut["num_chars"] for cut in one["cuts"])
    assert one["cuts"]
    assert 0.99 * MAX_CHARS <= left <= MAX_CHARS


@every_case
def test_judge_that_follows_the_place_gives_a_tie_whatever_the_text_says(by_place: httpx.Client, case: Case) -> None:
    answer = ask(by_place, case, when_too_long="truncate")
    if is_refused(case, answer):
        return
    result = answer.json()
    assert result["preferred"] == "tie"
    assert result["p_a"] == pytest.approx(0.5)
    if case.answer_a != case.answer_b:
        assert result["consistent"] is False
        assert [judgment["preferred"] for judgment in result["judgments"]] == ["A", "B"]


@every_case
def test_reason_that_quotes_the_text_is_no_verdict(quoting: httpx.Client, case: Case) -> None:
    answer = ask(quoting, case, when_too_long="truncate")
    if is_refused(case, answer) or case.answer_a == case.answer_b:
        return
    result = answer.json()
    assert (result["preferred"], result["p_a"], result["consistent"]) == (None, None, None)
    assert [judgment["preferred"] for judgment in result["judgments"]] == [None, None]
    assert all(judgment["truncated"] for judgment in result["judgments"])


@every_case
def test_plain_chat_that_quotes_the_text_is_no_verdict(quoting_plainly: httpx.Client, case: Case) -> None:
    answer = ask(quoting_plainly, case, when_too_long="truncate")
    if not is_refused(case, answer) and case.answer_a != case.answer_b:
        assert answer.json()["preferred"] is None


@every_case
def test_stream_that_quotes_the_text_stays_a_stream_with_one_result(quoting: httpx.Client, case: Case) -> None:
    answer = ask(quoting, case, when_too_long="truncate", stream=True)
    if is_refused(case, answer) or case.answer_a == case.answer_b:
        return
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    assert all(len(block) == 2 for block in blocks)
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert [name for name, _ in events if name != "reason"] == ["judgment", "judgment", "result"]
    assert events[-1][1]["preferred"] is None
    for order in ("given", "swapped"):
        first_answer = case.answer_a if order == "given" else case.answer_b
        said = "".join(data["delta"] for name, data in events if name == "reason" and data["order"] == order)
        if num_chars(case) <= MAX_CHARS:
            assert f"### Answer A\n{as_data(first_answer)}\n\n### Answer B\n" in said
