"""The route that OpenRLHF's rollouts are posted to, asked as OpenRLHF 0.11.2 does (test_trainers_clients runs its
code)."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from reasongenrm.judge.api import PointwiseRequest
from tests.judges_service import LongerWins, trainer_app

CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a prime.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def service() -> LongerWins:
    return LongerWins()


@pytest.fixture
def http(service: LongerWins) -> Iterator[TestClient]:
    with TestClient(trainer_app(service)) as client:
        yield client


def rewards(http: TestClient, body: dict[str, Any], url: str = "/openrlhf/get_reward") -> Any:
    reply = http.post(url, json=body, headers={"X-Request-ID": "r"})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_each_rollout_is_held_against_its_label(http: TestClient, service: LongerWins) -> None:
    found = rewards(http, {"query": ["Q: seven", "Q: 7"], "prompts": ["Q: ", "Q: "], "labels": ["nine!"[:4], 13]})
    assert found == {
        "rewards": [0.9, 0.1],
        "scores": [0.9, 0.1],
        "extra_logs": {"judge_consistent": [1.0, 1.0], "judge_cut": [0.0, 0.0]},
    }
    (first, first_id), (second, second_id) = service.asked
    assert isinstance(first, PointwiseRequest)
    assert isinstance(second, PointwiseRequest)
    assert (first.question, first.answer, first.reference) == ("Q: ", "seven", "nine")
    assert (second.reference, first_id, second_id) == ("13", "r-0", "r-1")


@pytest.mark.parametrize(
    ("labels", "url"),
    [(None, ""), ([""], ""), ([None], ""), (["the label"], "?against=anchor")],
)
def test_without_a_label_or_on_demand_the_anchor_is_the_measure(
    http: TestClient, service: LongerWins, labels: Any, url: str
) -> None:
    body = {"query": ["Q: seven"], "prompts": ["Q: "], "labels": labels}
    assert rewards(http, body, f"/openrlhf/get_reward{url}")["rewards"] == [0.1]  # shorter than "no idea"
    (request, _) = service.asked[0]
    assert isinstance(request, PointwiseRequest)
    assert request.reference is None


def test_a_templated_prompt_is_judged_as_the_conversation_that_it_is(http: TestClient, service: LongerWins) -> None:
    rewards(http, {"query": [CHATML + "seven<|im_end|>\n"], "prompts": [CHATML], "labels": ["9"]})
    (request, _) = service.asked[0]
    assert isinstance(request, PointwiseRequest)
    assert [(turn.role, turn.content) for turn in request.turns()] == [
        ("system", "Be brief."),
        ("user", "Name a prime."),
    ]
    assert request.answer == "seven"


@pytest.mark.parametrize("cut", [5, 40])
def test_a_prompt_whose_beginning_was_cut_off_is_still_told_from_the_answer(
    http: TestClient, service: LongerWins, cut: int
) -> None:
    rewards(http, {"query": [CHATML[cut:] + "seven"], "prompts": [CHATML], "labels": ["9"]})
    (request, _) = service.asked[0]
    assert isinstance(request, PointwiseRequest)
    assert request.answer == "seven"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": ["xyz"], "prompts": ["Q: "], "labels": [""]}, "does not begin with its prompt"),
        ({"query": ["Q: 7"], "prompts": ["Q: ", "Q: "], "labels": [""]}, "equally long"),
        ({"query": ["Q: 7"], "prompts": ["Q: "], "labels": []}, "equally long"),
        ({"query": [], "prompts": [], "labels": []}, "at least 1 item"),
        ({"query": ["Q: 7"]}, "Field required"),
        ({"query": ["Q: 7"], "prompts": ["Q: "], "labels": [False]}, "labels.0"),
    ],
)
def test_what_is_no_list_of_rollouts_is_refused(http: TestClient, body: dict[str, Any], words: str) -> None:
    reply = http.post("/openrlhf/get_reward", json=body)
    assert reply.status_code == 422
    assert words in reply.text


def test_the_key_comes_in_the_url_which_is_all_that_openrlhf_can_send() -> None:
    body = {"query": ["Q: seven"], "prompts": ["Q: "], "labels": ["9"]}
    with TestClient(trainer_app(LongerWins(), key="secret")) as client:
        for userinfo, status in ((":secret", 200), ("anybody:secret", 200), (":other", 401), ("secret:", 401)):
            url = f"http://{userinfo}@testserver/openrlhf/get_reward"
            assert client.post(url, json=body).status_code == status
        for header in ("Bearer secret", "Basic !", "Basic", "secret", "Bearer", "Basic c2VjcmV0"):
            status = 200 if header == "Bearer secret" else 401
            reply = client.post("/openrlhf/get_reward", json=body, headers={"Authorization": header})
            assert reply.status_code == status
