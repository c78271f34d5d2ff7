"""No reward without a verdict: all four trainers' ways of asking, in front of a real judge whose predictor fails."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from reasongenrm.errors import EngineError
from reasongenrm.judge import predictor as predictor_module
from reasongenrm.judge.client.client_errors import JudgeClientError, JudgeUnavailableError
from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.rewards import verl
from reasongenrm.judge.rewards.trl import JudgeReward
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import FakeEndpoint, completion, refusal, serving
from tests.judge.replies import asked, choice, judged, whole
from tests.server_words import FILTERED
from tests.waiting import HANG_SECONDS

GOOD, REFERENCE = "seven", "nine"


@contextmanager
def judge_of(reply: Any, **settings: Any) -> Iterator[tuple[str, FakeEndpoint]]:
    """A judge's server in front of a predictor that answers with `reply(body, number)`."""
    endpoint = FakeEndpoint(reply)
    with endpoint.running() as url:
        app = create_app(JudgeSettings(url, **settings), Limits(), ServerSettings())
        with serving(app) as address:
            yield address, endpoint


def cut_off(*_: Any) -> Response:
    return completion("", finish_reason="length", reasoning="A is")


def no_verdict(*_: Any) -> Response:
    return completion("Both are fine.", reasoning="Hm.")


def filtered_while_writing(*_: Any) -> Response:
    return completion("[[A]]", finish_reason="content_filter", reasoning="A is")


def one_order(body: dict[str, Any], _: int) -> Response:
    """A verdict only where the rollout stands first."""
    return judged(body, 0.9) if asked(body)[1] == GOOD else completion("Both are fine.", reasoning="Hm.")


UNREAD = [cut_off, no_verdict, filtered_while_writing, one_order]


def by_trl(address: str, **more: Any) -> list[float | None]:
    reward = JudgeReward(address, mode="reference", **more)
    return asyncio.run(reward(prompts=["Name a prime."], completions=[GOOD], reference=[REFERENCE]))


def by_verl(address: str, **more: Any) -> dict[str, float]:
    async def score() -> dict[str, float]:
        try:
            return await verl.compute_score(
                "s", GOOD, REFERENCE, {"question": "Name a prime."}, judge_url=address, **more
            )
        finally:
            await verl.aclose()

    return asyncio.run(score())


def by_openrlhf(address: str) -> httpx.Response:
    body = {"query": [f"Name a prime.{GOOD}"], "prompts": ["Name a prime."], "labels": [REFERENCE]}
    return httpx.post(f"{address}/openrlhf/get_reward", json=body, timeout=HANG_SECONDS)


def by_nemo(address: str) -> httpx.Response:
    body = {"input": "Name a prime.", "metadata": {"response_1": GOOD, "response_2": REFERENCE}}
    return httpx.post(f"{address}/nemo_gym/v1/responses", json=body, timeout=HANG_SECONDS)


@pytest.mark.parametrize("reply", UNREAD)
def test_without_a_verdict_in_each_order_no_trainer_gets_a_number(reply: Any) -> None:
    with judge_of(reply) as (address, _):
        assert by_trl(address) == [None]
        with pytest.raises(EngineError, match="the judge gave no verdict in one order or both"):
            by_verl(address)
        chosen = by_verl(address, unread_score=0.25)
        assert (chosen["score"], chosen["judge_unread"]) == (0.25, 1.0)
        rollout = by_openrlhf(address)
        assert (rollout.status_code, rollout.json()["error"]["code"]) == (502, "unread")
        compared = by_nemo(address).json()
    assert compared["metadata"]["verdict"] == "none"
    (message,) = [item for item in compared["output"] if item["type"] == "message"]
    assert "{" not in message["content"][0]["text"], "no scores for genrm_compare to find"


def test_a_verdict_in_each_order_is_a_reward_everywhere() -> None:
    def right(body: dict[str, Any], _: int) -> Response:
        return judged(body, 0.75 if asked(body)[1] == GOOD else 0.25)

    with judge_of(right) as (address, _):
        assert by_trl(address) == [pytest.approx(0.75)]
        assert by_verl(address)["score"] == pytest.approx(0.75)
        assert by_openrlhf(address).json()["rewards"] == [pytest.approx(0.75)]
        (*_, message) = by_nemo(address).json()["output"]
    assert json.loads(message["content"][0]["text"])["score_1"] == pytest.approx(4.0)  # 1 + 4 x 0.75


def test_a_verdict_that_cannot_be_read_gets_one_new_sample() -> None:
    def second_time(body: dict[str, Any], _: int) -> Response:
        return judged(body, 0.75 if asked(body)[1] == GOOD else 0.25) if body["temperature"] else no_verdict()

    with judge_of(second_time) as (address, endpoint):
        assert by_trl(address) == [pytest.approx(0.75)]
        assert sorted(body["temperature"] for body in endpoint.bodies) == [0.0, 0.0, 1.0, 1.0]
        endpoint.bodies.clear()
        answer = httpx.post(
            f"{address}/v1/pairwise", json={"question": "?", "answer_a": GOOD, "answer_b": REFERENCE}
        ).json()
    assert answer["usage"] == {"num_requests": 4, "prompt_tokens": 28, "completion_tokens": 20}
    with judge_of(no_verdict) as (address, endpoint):
        by_trl(address)
    assert len(endpoint.bodies) == 4, "one new sample for each order, no more"
    with judge_of(cut_off) as (address, endpoint):
        by_trl(address)
    assert len(endpoint.bodies) == 2, "what was cut off would be again"


def test_a_filtered_rollout_is_left_out_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    status, body = FILTERED["azure"]
    with judge_of(lambda *_: JSONResponse(body, status)) as (address, _):
        assert by_trl(address) == [None]
        assert "content management policy" in caplog.text
        with pytest.raises(JudgeClientError, match="content management policy"):
            by_verl(address)
        assert by_openrlhf(address).status_code == 422
        assert by_nemo(address).status_code == 422


@pytest.mark.parametrize("status", [401, 500, 503])
def test_a_predictor_that_is_dead_is_an_error_everywhere(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "PATIENCE_SECONDS", 0.05)
    with judge_of(lambda *_: refusal(status, "no")) as (address, _):
        monkeypatch.setattr("reasongenrm.judge.client.client_http.FIRST_WAIT_SECONDS", 0.01)
        monkeypatch.setattr("reasongenrm.http_client.MAX_WAIT_SECONDS", 0.01)
        with pytest.raises(JudgeUnavailableError):
            by_trl(address)
        with pytest.raises(JudgeUnavailableError):
            by_verl(address)
        assert by_openrlhf(address).status_code >= 500
        assert by_nemo(address).status_code >= 500


def test_a_time_out_is_an_error_everywhere() -> None:
    async def slow(*_: Any) -> Response:
        await asyncio.sleep(0.5)
        return whole(choice(0.9))

    with judge_of(slow, timeout_seconds=0.1) as (address, _):
        for ask in (by_trl, by_verl):
            with pytest.raises(JudgeUnavailableError, match=r"no reply within 0\.1 s"):
                ask(address)
        assert [by_openrlhf(address).status_code, by_nemo(address).status_code] == [504, 504]
