"""verl: an async `compute_score` that asks a judge service. In verl's config:

    reward:
      custom_reward_function:
        path: pkg://reasongenrm.judge.rewards.verl
        name: compute_score
        reward_kwargs: {judge_url: http://JUDGE:8080, against: ground_truth}

The reward loop's `naive` manager awaits it once a rollout; the `remote` manager refuses async functions. verl hands the
prompt on only in the data's `extra_info`, so the question must stand there (verl's own examples have it as
extra_info.question).

Source of the contract: volcengine/verl, verl/trainer/ppo/reward.py (get_custom_reward_fn) and
verl/experimental/reward_loop/reward_manager/naive.py at v0.9.1 (PyPI).
"""

import asyncio
import weakref
from collections.abc import Mapping
from typing import Any, Literal

from reasongenrm.errors import EngineError
from reasongenrm.http_client import without_login
from reasongenrm.judge.client.client import DEFAULT_TIMEOUT_SECONDS, AsyncJudge
from reasongenrm.judge.rewards.reward_verdicts import reward_of

# One pool of connections a loop and judge: verl awaits one rollout at a time, thousands of times.
_judges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, AsyncJudge]] = weakref.WeakKeyDictionary()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge_url: str,
    api_key: str | None = None,
    against: Literal["ground_truth", "anchor"] = "ground_truth",
    question_key: str = "question",
    rubric: str | None = None,
    votes: int = 1,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    unread_score: float | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one rollout, as verl calls it; what stands after the star comes from `reward_kwargs`.

    Args:
        solution_str: the rollout's answer.
        ground_truth: the reference answer that it is held against; unused with `against="anchor"`.
        extra_info: the row's, with the question (a text or a conversation) under `question_key`.
        api_key: the judge's; None reads JUDGE_API_KEY. verl prints its config: better leave it to the environment.

        unread_score: the score of a rollout that an order has no verdict about, even with one new sample; None ends the
            training, because verl masks nothing: a NaN would become every rollout's advantage.

    Returns:
        score: P(the rollout's answer is better), in [0, 1], or `unread_score`, then judge_unread is 1.

    Raises:
        ValueError: extra_info has no question.
        JudgeClientError: no judgment (too long is cut in the middle instead).
        EngineError: a judgment without a verdict, and no `unread_score`.
    """
    question = (extra_info or {}).get(question_key)
    if question is None:
        raise ValueError(
            f"data source {data_source!r}: extra_info has no {question_key!r}; expected the question, which verl does "
            "not hand on otherwise. Put it into the data's extra_info, or name its key with "
            "reward_kwargs.question_key."
        )
    found = await _judge(judge_url, api_key, timeout).score(
        question if isinstance(question, str) else list(question),
        solution_str,
        None if against == "anchor" else str(ground_truth),
        rubric=rubric,
        votes=votes,
        when_too_long="truncate",
    )
    reward = reward_of(found)
    score = unread_score if reward is None else reward
    if score is None:
        cut = " (it was cut off)" if any(one.truncated for one in found.judgments) else ""
        raise EngineError(
            f"{without_login(judge_url)}: request {found.id}: the judge gave no verdict in one order or both{cut}; "
            "expected one in each. Raise the judge's max_tokens, or look at what it writes; "
            "reward_kwargs.unread_score trains on with that score in such cases."
        )
    return {
        "score": score,
        "judge_unread": float(reward is None),
        "judge_consistent": float(found.consistent is True),
        "judge_cut": float(bool(found.cuts)),
    }


async def aclose() -> None:
    """Close the running loop's connections; without it they stay open as long as the loop."""
    for judge in _judges.pop(asyncio.get_running_loop(), {}).values():
        await judge.aclose()


def _judge(url: str, api_key: str | None, timeout: float) -> AsyncJudge:
    of_loop = _judges.setdefault(asyncio.get_running_loop(), {})
    key = (url, api_key, timeout)
    if key not in of_loop:
        of_loop[key] = AsyncJudge(url, api_key, timeout=timeout)
    return of_loop[key]
