"""compute_score, awaited as verl's reward loop awaits it."""

import asyncio
import inspect
from functools import partial
from typing import Any

import pytest

from reasongenrm.judge.api import PointwiseRequest
from reasongenrm.judge.rewards.verl import aclose, compute_score
from tests.judges_service import FakeJudge


def scored(reward_kwargs: dict[str, Any], **rollout: Any) -> dict[str, float]:
    """One rollout: reward_kwargs are merged over the call's, as verl's get_custom_reward_fn does."""
    assert inspect.iscoroutinefunction(partial(compute_score))  # what the naive manager asks before it awaits
    extra_info = {"question": "Name a prime.", "num_turns": None, "rollout_reward_scores": {}}
    call = {"data_source": "primes", "solution_str": "seven", "ground_truth": "9", "extra_info": extra_info, **rollout}

    async def score() -> dict[str, float]:
        try:
            return await compute_score(**{**call, **reward_kwargs})
        finally:
            await aclose()

    return asyncio.run(score())


def test_a_rollout_is_held_against_the_ground_truth() -> None:
    fake = FakeJudge()
    with fake.running() as url:
        found = scored({"judge_url": url, "rubric": "Be right."}, reward_router_address=None, ground_truth=9)
    assert found == {"score": 0.9, "judge_unread": 0.0, "judge_consistent": 1.0, "judge_cut": 0.0}
    (asked,) = fake.requests
    assert isinstance(asked, PointwiseRequest)
    assert (asked.question, asked.answer, asked.reference, asked.rubric) == ("Name a prime.", "seven", "9", "Be right.")
    assert asked.when_too_long == "truncate"


def test_the_anchor_takes_the_ground_truths_place() -> None:
    with FakeJudge().running() as url:
        assert scored({"judge_url": url, "against": "anchor"})["score"] == 0.1


def test_a_conversation_under_another_key_is_taken() -> None:
    fake = FakeJudge()
    chat = [{"role": "user", "content": "Hi"}]
    with fake.running() as url:
        scored({"judge_url": url, "question_key": "chat"}, extra_info={"chat": chat})
    (asked,) = fake.requests
    assert isinstance(asked, PointwiseRequest)
    assert [turn.content for turn in asked.turns()] == ["Hi"]


@pytest.mark.parametrize("extra_info", [None, {}, {"index": 1}])
def test_a_row_without_its_question_is_an_error_that_says_where_to_put_it(extra_info: Any) -> None:
    with pytest.raises(ValueError, match=r"'primes': extra_info has no 'question'.*reward_kwargs\.question_key"):
        scored({"judge_url": "http://127.0.0.1:9"}, extra_info=extra_info)


def test_rollouts_of_one_loop_share_their_connections() -> None:
    fake = FakeJudge()

    async def many(url: str) -> None:
        for _ in range(5):
            await compute_score("primes", "seven", "9", {"question": "q"}, judge_url=url)
        await aclose()

    with fake.running() as url:
        asyncio.run(many(url))
    assert len(fake.clients) == 1
