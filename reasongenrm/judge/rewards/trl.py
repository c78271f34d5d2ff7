"""TRL: a reward function for GRPOTrainer and RLOOTrainer that asks a judge service.

    GRPOTrainer(model=..., reward_funcs=JudgeReward("http://127.0.0.1:8080", mode="group"), args=..., train_dataset=...)

A reward function is called as `f(prompts=, completions=, completion_ids=, trainer_state=, log_extra=, log_metric=,
**columns)`, each a list with one entry a completion, and gives one float or None a completion; None leaves the
function out for that sample. An async one runs together with the others in the trainer's loop. Texts are strings, or
lists of {"role", "content"} for conversational data.

Source of the contract: huggingface/trl 1.16.0, trl/trainer/grpo_trainer.py (GRPOTrainer._calculate_rewards) and
trl/trainer/utils.py (is_async_callable).
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from pydantic import ValidationError

from reasongenrm.errors import mistake_in
from reasongenrm.judge.api import MAX_ANSWERS, ListwiseRequest, ListwiseResponse, PointwiseRequest, PointwiseResponse
from reasongenrm.judge.client.client import DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_SECONDS, AsyncJudge, Options
from reasongenrm.judge.client.client_errors import JudgeRequestError
from reasongenrm.judge.rewards.reward_verdicts import reward_of

logger = logging.getLogger(__name__)

Chat = str | Sequence[Mapping[str, Any]]


class JudgeReward:
    """A reward in [0, 1] by the judge.

    mode "group": the completions of one prompt are ranked against each other; the reward is the score of
        `api.ListwiseResponse`, the probability of being better than another one of the group (0.5 in the group's mean).
        A completion that is alone gets None.
    mode "reference": P(better than the row's reference answer), from the data's column `reference_column`; a row whose
        reference is None gets None.
    mode "anchor": P(better than the server's anchor).

    A completion that the judge refuses (too long, a content filter) or that an order has no verdict about, even with
    one new sample, gets None, is logged, and is counted in the metric judge/unjudged_fraction: TRL leaves it out of the
    group's mean and gives it the advantage 0. A judge that cannot be reached, or is too slow, ends the training.

    Args:
        url: the judge service's root.
        api_key: its key; None reads JUDGE_API_KEY.
        max_comparisons: of one group; None sorts the group (see `api.ListwiseRequest`).
        concurrency: requests to the judge side by side, of this process.
        options: rubric, votes, both_orders and so on, as in `client.Options`.
    """

    def __init__(
        self,
        url: str,
        *,
        mode: Literal["group", "reference", "anchor"] = "group",
        reference_column: str = "reference",
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_comparisons: int | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[Options],
    ) -> None:
        self._url, self._api_key, self._timeout = url, api_key, timeout
        self._mode, self._reference_column, self._max_comparisons = mode, reference_column, max_comparisons
        self._concurrency, self._options = concurrency, options
        self.__name__ = f"judge_{mode}"  # the reward's name in TRL's logs

    async def __call__(
        self,
        prompts: Sequence[Chat],
        completions: Sequence[Chat],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward a completion, as TRL calls it.

        Raises:
            ValueError: a prompt has turns that the judge does not know, a column is missing, or a group has more than
                32.
            JudgeClientError: the judge cannot be reached or refuses the key.
        """
        if self._mode == "group":
            rewards = await self._by_group(prompts, completions)
        else:
            rewards, reasons = await self._by_itself(prompts, completions, columns)
            if log_extra is not None:
                log_extra("judge_reason", reasons)
        num_unjudged = sum(reward is None for reward in rewards)
        if num_unjudged:
            logger.warning("%d of %d completions have no reward from the judge", num_unjudged, len(rewards))
        if log_metric is not None:
            log_metric("judge/unjudged_fraction", num_unjudged / len(rewards))
        return rewards

    async def _by_group(self, prompts: Sequence[Chat], completions: Sequence[Chat]) -> list[float | None]:
        groups: dict[str, list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True, ensure_ascii=False), []).append(number)
        ranked = [members for members in groups.values() if len(members) > 1]
        largest = max(map(len, groups.values()))
        if largest > MAX_ANSWERS:
            raise ValueError(
                f"a group has {largest} completions; the judge ranks up to {MAX_ANSWERS}. Lower num_generations, or "
                "use "
                'JudgeReward with mode="reference" or "anchor".'
            )
        requests = [
            self._request(
                ListwiseRequest,
                prompts[members[0]],
                answers=[_answer(completions[number]) for number in members],
                max_comparisons=self._max_comparisons,
            )
            for members in ranked
        ]
        rewards: list[float | None] = [None] * len(prompts)
        for members, found in zip(ranked, await self._ask(requests), strict=True):
            if isinstance(found, ListwiseResponse):
                read = [pair for pair in found.comparisons if pair.p_first is not None or pair.preferred is not None]
                judged = {one for pair in read for one in (pair.first, pair.second)}
                for place, number in enumerate(members):
                    rewards[number] = found.scores[place] if place in judged else None
        return rewards

    async def _by_itself(
        self, prompts: Sequence[Chat], completions: Sequence[Chat], columns: Mapping[str, Any]
    ) -> tuple[list[float | None], list[str | None]]:
        """Rewards and reasons."""
        references: Sequence[str | None] = [None] * len(prompts)
        asked = list(range(len(prompts)))
        if self._mode == "reference":
            if self._reference_column not in columns:
                raise ValueError(
                    f"the data has no column {self._reference_column!r}; expected the reference answers in it. "
                    'Name another one with reference_column, or use mode="group" or "anchor".'
                )
            references = columns[self._reference_column]
            asked = [number for number in asked if references[number] is not None]
        requests = [
            self._request(
                PointwiseRequest, prompts[number], answer=_answer(completions[number]), reference=references[number]
            )
            for number in asked
        ]
        rewards: list[float | None] = [None] * len(prompts)
        reasons: list[str | None] = [None] * len(prompts)
        for number, found in zip(asked, await self._ask(requests), strict=True):
            if isinstance(found, PointwiseResponse):
                rewards[number] = reward_of(found)
                reasons[number] = found.judgments[0].reason if found.judgments else None
        return rewards, reasons

    def _request(self, record: type[Any], prompt: Chat, **fields: Any) -> Any:
        question = (
            prompt if isinstance(prompt, str) else [{"role": one["role"], "content": _text(one)} for one in prompt]
        )
        try:
            return record(question=question, **fields, **self._options)
        except ValidationError as error:
            raise ValueError(f"the judge cannot be asked about this data: {mistake_in(error)}. Change it.") from error

    async def _ask(self, requests: Sequence[Any]) -> list[Any]:
        # A pool for each batch: the loop that a trainer calls this in may be another one the next time.
        async with AsyncJudge(self._url, self._api_key, timeout=self._timeout) as judge:
            found = await judge.ask_many(requests, concurrency=self._concurrency, return_errors=JudgeRequestError)
        for one in found:
            if isinstance(one, JudgeRequestError):
                logger.warning("no reward: %s", one)
        return found


def _answer(completion: Chat) -> str:
    """The answer's text; of several messages (tools were used) the last one that the assistant wrote."""
    if isinstance(completion, str):
        return completion
    said = [turn for turn in completion if turn["role"] == "assistant"]
    return _text(said[-1]) if said else ""


def _text(message: Mapping[str, Any]) -> str:
    """A message's text; a content in parts has its texts joined."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
