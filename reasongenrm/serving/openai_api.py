"""OpenAI's chat completion API as the small server speaks it: requests, responses, errors.

Whatever would have no effect is refused by name instead of being ignored. Beyond OpenAI's fields: the role "reason",
`chat_template_kwargs.opening_role` and `structured_outputs.choice` (as in vLLM), and the reason in the reply (as in
vLLM), with `reasoning_truncated` where it had to be closed: its `thinking_token_budget` (vLLM's too) was spent, or no
more tokens were left than the choices need.
"""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from reasongenrm.errors import mistake_in
from reasongenrm.records import OpeningRole, Record

if TYPE_CHECKING:
    from reasongenrm.serving.live import Delta, LiveRequest, TokenLogprob

MAX_CHOICES = 64
MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MAX_STOP_STRINGS = 4  # OpenAI's limit
NotEmpty = Annotated[str, Field(min_length=1)]


@dataclass(eq=False)
class APIError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    kind: str = "invalid_request_error"
    headers: dict[str, str] | None = None

    def body(self) -> dict[str, Any]:
        """As the client gets it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class TextPart(Record):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Record):
    """One turn; its content is a text or pieces of it."""

    role: Literal["system", "user", "reason", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TemplateArguments(Record):
    """What the chat template takes."""

    opening_role: OpeningRole | None = None


class StructuredOutputs(Record):
    """What the content is held to; the reason before it is free."""

    choice: Annotated[list[NotEmpty], Field(min_length=1, max_length=MAX_CHOICES)]


class StreamOptions(Record):
    """What a stream has at its end."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """What the content is to look like: text, nothing else."""

    type: str

    @model_validator(mode="after")
    def _is_text(self) -> "ResponseFormat":
        if self.type != "text":
            raise ValueError(
                f"this server cannot hold an answer to a {self.type}. Send 'structured_outputs': {{'choice': [...]}} "
                "for one of several answers, or ask a judge service's POST /v1/pairwise, whose answer is JSON; vLLM "
                "takes a json_schema"
            )
        return self


class ChatRequest(Record):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: int | None = None
    stop: NotEmpty | Annotated[list[NotEmpty], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: TemplateArguments = TemplateArguments()
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = None
    # Clients send these along; they change nothing here at the values that are let through.
    user: str | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("'max_tokens' is the old name of 'max_completion_tokens'; send one of them")
        return self

    def token_limit(self) -> int | None:
        """The limit of generated tokens, under either name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, under either form."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def parse_chat_request(body: bytes, content_type: str) -> ChatRequest:
    """Check a body.

    Raises:
        APIError: 415 if it is not declared as JSON (which a web page cannot do without asking first), 400 if it is not
            JSON or not a request; the message names the field.
    """
    if content_type.split(";")[0].strip().lower() != "application/json":
        raise APIError(415, f"Content-Type is '{content_type}'; expected application/json.")
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        param, problem, kind = mistake = mistake_in(error)
        if kind == "json_invalid":
            raise APIError(400, f"The body is {problem}.") from error
        if kind == "extra_forbidden":
            raise APIError(400, f"Unknown parameter: '{param}'. Leave it out.", param, "unknown_parameter") from error
        raise APIError(400, f"{mistake}.", param) from error


def completion(chat: ChatRequest, live: "LiveRequest", deltas: Sequence["Delta"]) -> dict[str, Any]:
    """The whole reply, made of all its deltas."""
    choices = []
    for index in range(chat.n):
        own = [delta for delta in deltas if delta.choice == index]
        reasoning = "".join(delta.reasoning for delta in own) if live.prompt.opening_role == "reason" else None
        message: dict[str, Any] = {"role": "assistant", "content": "".join(delta.content for delta in own)}
        message |= {"refusal": None, "reasoning": reasoning, "reasoning_content": reasoning}
        if any(delta.reasoning_truncated for delta in own):
            message["reasoning_truncated"] = True
        logprobs = _logprobs([delta.logprob for delta in own]) if chat.logprobs else None
        finish = own[-1].finish_reason
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    return _head(chat, "chat.completion") | {"choices": choices, "usage": _usage(live, len(deltas))}


async def chunks(
    chat: ChatRequest, live: "LiveRequest", deltas: AsyncIterator["Delta"]
) -> AsyncIterator[dict[str, Any]]:
    """The reply as OpenAI's chunks: a role, then what is new, then why it ended, then the usage if it was asked for."""
    head = _head(chat, "chat.completion.chunk")
    if chat.stream_options is not None and chat.stream_options.include_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return head | {"choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

    for index in range(chat.n):
        yield chunk(index, {"role": "assistant", "content": ""})
    num_tokens = 0
    async for delta in deltas:
        num_tokens += 1
        new: dict[str, Any] = {}
        if delta.reasoning:
            new |= {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning}
        if delta.content:
            new["content"] = delta.content
        if delta.reasoning_truncated:
            new["reasoning_truncated"] = True
        if new or delta.logprob:
            yield chunk(delta.choice, new, _logprobs([delta.logprob]) if chat.logprobs else None)
        if delta.finish_reason:
            yield chunk(delta.choice, {}, finish=delta.finish_reason)
    if "usage" in head:
        yield head | {"choices": [], "usage": _usage(live, num_tokens)}


def _head(chat: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": chat.model}


def _usage(live: "LiveRequest", num_tokens: int) -> dict[str, int]:
    num_prompt = len(live.prompt.ids)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_tokens, "total_tokens": num_prompt + num_tokens}


def _logprobs(tokens: Sequence["TokenLogprob | None"]) -> dict[str, Any]:
    """OpenAI's shape; tokens that are not the content's have none."""
    content = [
        _token(token.text, token.logprob) | {"top_logprobs": [_token(*pair) for pair in token.top]}
        for token in tokens
        if token is not None
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token that is part of a character has no text; its bytes are left out then.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
