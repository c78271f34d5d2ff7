"""NeMo RL: the GenRM behind NeMo Gym's resources server `genrm_compare`.

`genrm_compare` pairs the rollouts of a prompt and asks its GenRM for each pair through OpenAI's Responses API:
{"input": [the conversation], "metadata": {"response_1", "response_2", "principle"?}}. It reads the last JSON object
with "score_1" and "score_2" (1 to 5) and "ranking" (1: the first is much better, 6: the second) from the reply's text,
and makes rewards of them. NeMo Gym's `openai_model` hands requests on as they are, so a config names the judge like
this:

    genrm_model:
      responses_api_models:
        openai_model:
          entrypoint: app.py
          openai_base_url: http://JUDGE:8080/nemo_gym/v1
          openai_api_key: ${judge_api_key}
          openai_model: reasongenrm

Both orders are judged; score_1 = 1 + 4 p, score_2 = 5 - 4 p and ranking = 6 - 5 p, where p = P(the first is better). If
an order has no verdict, even with one new sample, the reply's text has no scores, and its metadata "verdict": "none":
genrm_compare counts that as a failed parse, asks again as often as `genrm_parse_retries` says, and then takes its own
default, with a warning. The reasons come as items of
type "reasoning", which `genrm_compare` leaves out. Sampling parameters in the request are not used: the judge has its
own.

Source of the contract: NVIDIA-NeMo/Gym, resources_servers/genrm_compare/{app,utils}.py,
responses_api_models/{genrm_model,openai_model}/app.py at commit 07d6b0d07b22fcf530b4c211dae2ee23100428e4, the same in
nemo-gym 0.4.0 on PyPI.
"""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from reasongenrm.judge.api import MAX_TURNS, PairwiseRequest, PairwiseResponse, QuestionTurn, Text
from reasongenrm.judge.rewards.reward_verdicts import first_is_better
from reasongenrm.judge.server.routes import JUDGING, request_id
from reasongenrm.judge.service import JudgeService

UNREAD = "No verdict could be read in one order or both."  # no scores: genrm_compare finds none to parse


class InputText(BaseModel):
    """A piece of a message's text."""

    type: Literal["input_text", "output_text"]
    text: Text


class InputMessage(BaseModel):
    """A message of the conversation, in the shape of the Responses API."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[InputText]

    def turn(self) -> QuestionTurn:
        """The message as a turn."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return QuestionTurn(role="system" if self.role == "developer" else self.role, content=text)


class Compared(BaseModel):
    """The two rollouts, and what to judge them by."""

    response_1: Text
    response_2: Text
    principle: Annotated[str, Field(max_length=20_000)] | None = None


class CreateResponse(BaseModel):
    """`POST /v1/responses` as genrm_compare sends it; other fields are taken and not used."""

    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_TURNS)]
    metadata: Compared
    model: str | None = None


def nemo_gym_router(service: Callable[[], JudgeService]) -> APIRouter:
    """The route `POST /nemo_gym/v1/responses`."""
    router = APIRouter(prefix="/nemo_gym/v1", tags=["trainers"])

    @router.post("/responses", responses=JUDGING)
    async def responses(body: CreateResponse, request: Request) -> dict[str, Any]:
        """The GenRM of NeMo Gym's genrm_compare: scores of two rollouts as JSON, with the judge's reasons."""
        pair = PairwiseRequest(
            question=body.input if isinstance(body.input, str) else [message.turn() for message in body.input],
            answer_a=body.metadata.response_1,
            answer_b=body.metadata.response_2,
            rubric=body.metadata.principle,
            when_too_long="truncate",
        )
        return _response(await service().pairwise(pair, request_id(request)))

    return router


def scores_of(found: PairwiseResponse) -> dict[str, float] | None:
    """genrm_compare's three numbers: score_1 and score_2 in [1, 5], ranking in [1, 6], low if the first is better; None
    without a verdict in each order."""
    p = first_is_better(found)
    return None if p is None else {"score_1": 1 + 4 * p, "score_2": 5 - 4 * p, "ranking": 6 - 5 * p}


def _response(found: PairwiseResponse) -> dict[str, Any]:
    """A judgment as a response of OpenAI's Responses API."""
    reasons = [
        {
            "id": f"rs-{found.id}-{number}",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": one.reason}],
        }
        for number, one in enumerate(found.judgments)
        if one.reason
    ]
    scores = scores_of(found)
    text, verdict = (UNREAD, "none") if scores is None else (json.dumps(scores), found.preferred or "none")
    content = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "role": "assistant", "status": "completed", "content": [content]}
    used = found.usage
    return {
        "id": found.id,
        "object": "response",
        "created_at": time.time(),
        "model": found.model,
        "status": "completed",
        "output": [*reasons, {"id": f"msg-{found.id}", **message}],
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "metadata": {"verdict": verdict, "consistent": str(found.consistent).lower()},
        "usage": {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},  # the predictor is not asked
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},  # it does not tell reasons' tokens from verdicts'
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        },
    }
