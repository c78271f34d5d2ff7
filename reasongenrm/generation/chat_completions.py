"""OpenAI's chat completions as our clients write and read them: the body of a request, and what a reply says.

Two clients stand on it, the endpoint engine and the judge's predictor, so that both ask and read in the same way.
Fields that OpenAI's API does not have are vLLM's, and are sent only when they are asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from reasongenrm.data.chat_families import FAMILIES
from reasongenrm.errors import mistake_in
from reasongenrm.generation.seam import GenerationRequest, Sampling
from reasongenrm.generation.verdicts import TOP_LOGPROBS, ReplyToken, probability_of_a
from reasongenrm.records import FinishReason

# A turn's closing token as a stop string, for every family: an endpoint does not tell which one its model is of.
TURN_ENDS = tuple(dict.fromkeys(family.turn_end for family in FAMILIES))
# Kept of max_tokens for the assistant turn's opening and a verdict: at most 14 tokens in the families.
VERDICT_TOKENS = 16
# Of a generation that was cut short: by OpenAI, then by vLLM and SGLang, DeepSeek, Mistral.
CUT_REASONS = ("length", "abort", "error", "insufficient_system_resource", "model_length")


def chat_body(
    model_name: str,
    request: GenerationRequest,
    sampling: Sampling,
    seed: int,
    *,
    choices: Sequence[str] = (),
    keep_markup: bool = False,
) -> dict[str, Any]:
    """The body of the request for one sample.

    Args:
        model_name: as the server lists it.
        sampling: `num_samples` and `seed` are not used: a request is one sample.
        seed: of this sample, in [0, 2**31).
        choices: all that the answer may be; () leaves it free.
        keep_markup: have vLLM leave the turns' markup in the text.
    """
    body: dict[str, Any] = {
        "model": model_name,
        "messages": request.messages,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    if request.opening_role is not None:
        body["chat_template_kwargs"] = {"opening_role": request.opening_role}
    if request.stop_at == "turn":
        body["stop"] = TURN_ENDS
    if sampling.verdict_logprobs:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    if keep_markup:
        body["skip_special_tokens"] = False
    if choices:
        body["structured_outputs"] = {"choice": choices}
        if request.opening_role == "reason" and sampling.max_tokens > VERDICT_TOKENS:
            # vLLM's grammar begins after the reason, and a reason without an end would leave no room for a verdict.
            body["thinking_token_budget"] = sampling.max_tokens - VERDICT_TOKENS
    return body


class _TopToken(TypedDict):
    token: str
    logprob: float


class _Token(TypedDict):
    token: str
    logprob: float
    top_logprobs: NotRequired[list[_TopToken] | None]


class _Logprobs(TypedDict):
    content: NotRequired[list[_Token] | None]


class _Part(TypedDict, total=False):
    """A piece of a content that is a list: {"type": "text", "text"}; Mistral's {"type": "thinking"} has none of it."""

    type: str
    text: str


class _Message(TypedDict, total=False):
    """A message or what is new of it; servers name the reason in two ways. The last field is our own server's."""

    content: str | list[_Part] | None
    refusal: str | None
    reasoning: str | None
    reasoning_content: str | None
    reasoning_truncated: bool


class _Choice(TypedDict, total=False):
    message: _Message
    delta: _Message
    finish_reason: str | None
    logprobs: _Logprobs | None


class _Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int


class _Reply(TypedDict):
    choices: list[_Choice]
    usage: NotRequired[_Usage | None]


# TypedDicts are read out of JSON in one pass and leave out what is not asked for: with 64 tokens of 20 log-
# probabilities
# each half the time of `json.loads`.
_REPLY = TypeAdapter(_Reply)


@dataclass(frozen=True)
class Completion:
    """A chat completion's one choice, or a part of it while it is streamed."""

    # What the server split off as the reason, as it was written; None if it split nothing off.
    reason: str | None = None
    content: str = ""  # the rest
    # `logprobs.content`: {"token", "logprob", "top_logprobs": [{"token", "logprob"}, ...]} each, natural logs; of the
    # content alone, or (vLLM) of all that was generated; none if the server gave none.
    tokens: Sequence[Mapping[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None  # None for a part that is not the last
    reason_truncated: bool = False  # the reason was cut off, though the generation went on
    is_refusal: bool = False  # OpenAI's `refusal` stands in place of the content
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False  # the server counted the tokens

    def ending(self) -> FinishReason:
        """How it ended. Whatever cut it short is "length": a limit of tokens, or a server that gave up."""
        if self.finish_reason == "content_filter" or self.is_refusal:
            return "refused"
        return "length" if self.finish_reason in CUT_REASONS or self.reason_truncated else "stop"

    def p_a(self, answer: str) -> float | None:
        """P([[A]]) of the answer that was read from it (see `verdicts.probability_of_a`)."""
        return probability_of_a(answer, (ReplyToken.of_openai(token) for token in reversed(self.tokens)))


def read_completion(data: str | bytes) -> Completion:
    """A whole reply.

    Raises:
        ValueError: it is no chat completion; the message says where.
    """
    found = _read(data)
    if not found["choices"] or "message" not in found["choices"][0]:
        raise ValueError("choices: empty, or without a message; expected one choice with a message")
    return _part(found["choices"][0]["message"], found)


def read_chunk(data: str | bytes) -> Completion:
    """A part of a streamed reply.

    Raises:
        ValueError: it is no chunk of a chat completion; the message says where.
    """
    found = _read(data)
    return _part(found["choices"][0].get("delta", {}) if found["choices"] else {}, found)


def join_parts(parts: Sequence[Completion]) -> Completion:
    """The completion that was streamed in these parts."""
    reasons = [part.reason for part in parts if part.reason is not None]
    return Completion(
        reason="".join(reasons) if reasons else None,
        content="".join(part.content for part in parts),
        tokens=[token for part in parts for token in part.tokens],
        finish_reason=next((part.finish_reason for part in reversed(parts) if part.finish_reason), None),
        reason_truncated=any(part.reason_truncated for part in parts),
        is_refusal=any(part.is_refusal for part in parts),
        num_prompt_tokens=max((part.num_prompt_tokens for part in parts), default=0),
        num_output_tokens=max((part.num_output_tokens for part in parts), default=0),
        has_usage=any(part.has_usage for part in parts),
    )


def _read(data: str | bytes) -> _Reply:
    try:
        return _REPLY.validate_json(data)
    except ValidationError as error:
        raise ValueError(str(mistake_in(error))) from error


def _part(message: _Message, reply: _Reply) -> Completion:
    choice: _Choice = reply["choices"][0] if reply["choices"] else {}
    usage = reply.get("usage")
    reason = message.get("reasoning")
    return Completion(
        reason=message.get("reasoning_content") if reason is None else reason,
        content=_text(message.get("content")),
        tokens=(choice.get("logprobs") or {}).get("content") or [],
        finish_reason=choice.get("finish_reason"),
        reason_truncated=message.get("reasoning_truncated", False),
        num_prompt_tokens=usage["prompt_tokens"] if usage else 0,
        num_output_tokens=usage["completion_tokens"] if usage else 0,
        is_refusal=bool(message.get("refusal")),
        has_usage=bool(usage),
    )


def _text(content: str | list[_Part] | None) -> str:
    """A content as one text."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if part.get("type", "text") == "text")
    return content or ""
