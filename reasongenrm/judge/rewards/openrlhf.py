"""OpenRLHF: its remote reward model, `--reward.remote_url http://JUDGE:8080/openrlhf/get_reward`.

Each rollout is posted as {"query": [prompt and answer, as decoded with its special tokens], "prompts": [the prompt as
templated], "labels": [the data's label]}; expected is {"rewards", "scores", "extra_logs"}, one number a query. A reply
that is no 200 is asked for again four times, a second apart; then the rollout has no reward.

The label, if there is one, is the reference answer that the rollout is held against; with `?against=anchor` in the URL,
or without a label, it is held against the server's anchor. The reward is P(the rollout's answer is better), in [0, 1].
A rollout that an order has no verdict about, even with one new sample, is answered with 502 `unread`: OpenRLHF has no
value for "no reward", and after its attempts leaves that rollout's reward out.

OpenRLHF sends no key of its own accord; put it in the URL as http://:KEY@JUDGE:8080/openrlhf/get_reward.

Source of the contract: OpenRLHF/OpenRLHF, openrlhf/utils/agent.py (SingleTurnAgentExecutor) and
openrlhf/cli/serve_rm.py at commit 3c3be6234e0cb353e76bb8019947db9dfe99fca7, the same in openrlhf 0.11.2 on PyPI.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, StrictFloat, StrictInt, model_validator

from reasongenrm.judge.api import MAX_BATCH, MAX_TEXT_CHARS, PointwiseRequest, Text
from reasongenrm.judge.refusals import UnreadVerdictError
from reasongenrm.judge.rewards.reward_markup import read_turns, without_turn_end
from reasongenrm.judge.rewards.reward_verdicts import reward_of
from reasongenrm.judge.server.routes import JUDGING, request_id
from reasongenrm.judge.service import JudgeService
from reasongenrm.processes.gathering import gather_or_cancel

PROBE_CHARS = 16  # of the query's start, to find where a prompt was cut on its left; as many must be left of it
MAX_PLACES = 64  # that are tried: a prompt of one repeated character has too many

_Query = Annotated[str, Field(max_length=2 * MAX_TEXT_CHARS)]
_Label = Annotated[str, Field(max_length=MAX_TEXT_CHARS)] | StrictInt | StrictFloat | None


class RewardRequest(BaseModel):
    """Rollouts, as OpenRLHF posts them; `prompts` and `labels` are as long as `query`."""

    query: Annotated[list[_Query], Field(min_length=1, max_length=MAX_BATCH)]
    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_BATCH)]
    labels: Annotated[list[_Label], Field(max_length=MAX_BATCH)] | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if len(self.prompts) != len(self.query) or (self.labels is not None and len(self.labels) != len(self.query)):
            raise ValueError("'query', 'prompts' and 'labels' must be equally long: one of each a rollout")
        for number, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if _cut_off(query, prompt) is None:
                raise ValueError(
                    f"query {number} does not begin with its prompt, nor with the end of it; expected prompt and "
                    "answer in one text, as SingleTurnAgentExecutor sends them"
                )
        return self


class RewardResponse(BaseModel):
    """One number a rollout: `rewards` to train on, `scores` the same (for dynamic filtering), `extra_logs` to log."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def openrlhf_router(service: Callable[[], JudgeService]) -> APIRouter:
    """The route `POST /openrlhf/get_reward`."""
    router = APIRouter(prefix="/openrlhf", tags=["trainers"])

    @router.post("/get_reward", responses=JUDGING)
    async def get_reward(
        body: RewardRequest,
        request: Request,
        against: Annotated[Literal["label", "anchor"], Query(description="What a rollout is held against.")] = "label",
    ) -> RewardResponse:
        """OpenRLHF's remote reward model: P(the rollout's answer is better than its label, or than the anchor)."""
        labels = body.labels or [None] * len(body.query)
        judged = await gather_or_cancel(
            service().pointwise(
                _point(query, prompt, label if against == "label" else None), f"{request_id(request)}-{number}"
            )
            for number, (query, prompt, label) in enumerate(zip(body.query, body.prompts, labels, strict=True))
        )
        rewards = [reward for one in judged if (reward := reward_of(one)) is not None]
        if len(rewards) < len(judged):
            cut = any(judgment.truncated for one in judged for judgment in one.judgments)
            raise UnreadVerdictError(
                f"{len(judged) - len(rewards)} of {len(judged)} rollouts have no verdict in one order or both"
                f"{' (some were cut off)' if cut else ''}. Raise the judge's max_tokens, or look at what it writes."
            )
        logs = {
            "judge_consistent": [float(one.consistent is True) for one in judged],
            "judge_cut": [float(bool(one.cuts)) for one in judged],
        }
        return RewardResponse(rewards=rewards, scores=rewards, extra_logs=logs)

    return router


def _point(query: str, prompt: str, label: _Label) -> PointwiseRequest:
    answer = _cut_off(query, prompt)
    assert answer is not None  # RewardRequest refused it
    question, opened = read_turns(prompt) or (prompt, "")
    return PointwiseRequest(
        question=question,
        answer=opened + without_turn_end(answer),
        reference=None if label is None or label == "" else str(label),
        when_too_long="truncate",
    )


def _cut_off(query: str, prompt: str) -> str | None:
    """The answer: what follows the prompt, of which OpenRLHF cuts the beginning off if it is too long."""
    if query.startswith(prompt):
        return query[len(prompt) :]
    probe, at = query[:PROBE_CHARS], 0
    for _ in range(MAX_PLACES if probe else 0):
        at = prompt.find(probe, at + 1)  # not at 0: the prompt is not whole
        if at == -1:
            return None
        if query.startswith(prompt[at:]):
            return query[len(prompt) - at :]
    return None
