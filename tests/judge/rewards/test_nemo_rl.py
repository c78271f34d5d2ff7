"""The GenRM route, asked as NeMo Gym's genrm_compare asks its model (test_trainers_clients runs its code)."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.responses import Response

from reasongenrm.judge.api import OrderJudgment, PairwiseRequest, PairwiseResponse
from reasongenrm.judge.rewards.nemo_rl import scores_of
from tests.judges_service import LongerWins, common, trainer_app

CONVERSATION = [{"role": "user", "content": "Name a prime.", "type": "message"}]


def post(service: LongerWins, body: dict[str, Any]) -> Any:
    with TestClient(trainer_app(service)) as client:
        return client.post("/nemo_gym/v1/responses", json=body, headers={"X-Request-ID": "r"})


def test_two_rollouts_get_scores_in_the_words_of_genrm_compare() -> None:
    service = LongerWins()
    metadata = {"response_1": "seven", "response_2": "9", "principle": "Be right."}
    reply = post(service, {"input": CONVERSATION, "metadata": metadata, "max_output_tokens": 16384, "temperature": 0.6})
    found = Response.model_validate(reply.json())  # the record that NeMo Gym's own derives from
    assert json.loads(found.output_text) == pytest.approx({"score_1": 4.6, "score_2": 1.4, "ranking": 1.5})
    assert [item.type for item in found.output] == ["reasoning", "reasoning", "message"]
    assert (found.id, found.metadata) == ("r", {"verdict": "A", "consistent": "true"})
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (20, 10, 30)
    (request, _) = service.asked[0]
    assert isinstance(request, PairwiseRequest)
    assert (request.answer_a, request.answer_b, request.rubric) == ("seven", "9", "Be right.")
    assert [turn.content for turn in request.turns()] == ["Name a prime."]


def test_messages_in_parts_and_a_plain_text_are_taken_too() -> None:
    service = LongerWins()
    parts = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Name "}, {"type": "input_text", "text": "one."}]},
    ]
    answers = {"response_1": "7", "response_2": "9"}
    assert post(service, {"input": parts, "metadata": answers}).status_code == 200
    assert post(service, {"input": "Name one.", "metadata": answers}).status_code == 200
    (first, _), (second, _) = service.asked
    assert isinstance(first, PairwiseRequest)
    assert isinstance(second, PairwiseRequest)
    assert [(turn.role, turn.content) for turn in first.turns()] == [("system", "Be brief."), ("user", "Name one.")]
    assert second.question == "Name one."


@pytest.mark.parametrize(
    ("p_a", "preferred", "numbers"),
    [
        (1.0, "A", (5.0, 1.0, 1.0)),
        (0.5, "tie", (3.0, 3.0, 3.5)),
        (0.0, "B", (1.0, 5.0, 6.0)),
    ],
)
def test_the_probability_spans_the_scales(p_a: float, preferred: Any, numbers: tuple[float, ...]) -> None:
    found = PairwiseResponse(
        **common("r"), preferred=preferred, p_a=p_a, consistent=None, calibrated=False, judgments=[]
    )
    assert tuple((scores_of(found) or {}).values()) == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("letters", "preferred", "scores"),
    [
        (("A", "A"), "A", (5.0, 1.0, 1.0)),
        (("A", "B"), "tie", (3.0, 3.0, 3.5)),
        (("A", None), "A", None),
        ((None, None), None, None),
    ],
)
def test_without_probabilities_the_verdicts_count_and_half_a_judgment_is_none(
    letters: Any, preferred: Any, scores: tuple[float, ...] | None
) -> None:
    judgments = [
        OrderJudgment(order=order, vote=0, reason=None, preferred=letter, p_a=None, truncated=False)
        for order, letter in zip(("given", "swapped"), letters, strict=True)
    ]
    found = PairwiseResponse(
        **common("r"), preferred=preferred, p_a=None, consistent=None, calibrated=False, judgments=judgments
    )
    assert scores_of(found) == (
        None if scores is None else dict(zip(("score_1", "score_2", "ranking"), scores, strict=True))
    )


@pytest.mark.parametrize(
    "body",
    [
        {"input": CONVERSATION},
        {"input": CONVERSATION, "metadata": {"response_1": "7"}},
        {"input": [], "metadata": {"response_1": "7", "response_2": "9"}},
        {"input": [{"role": "tool", "content": "x"}], "metadata": {"response_1": "7", "response_2": "9"}},
    ],
)
def test_what_is_no_comparison_is_refused(body: dict[str, Any]) -> None:
    assert post(LongerWins(), body).status_code == 422
