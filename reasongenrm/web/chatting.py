"""A conversation through the judge with its predictor: messages in, reason and answer out, streamed.

Messages are gradio's: {"role", "content", "metadata"}; a reason is a message of the assistant with a title in its metadata,
and is shown to the visitor but never sent back to the model.
"""

import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from reasongenrm.judge.api import ErrorDetail
from reasongenrm.judge.client.client_errors import (
    JudgeClientError,
    JudgeUnavailableError,
    NotAJudgeError,
    error_of_detail,
    error_of_reply,
)
from reasongenrm.judge.client.client_http import KEY_VARIABLE
from reasongenrm.judge.client.client_stream import read_events
from reasongenrm.web.pace import paced
from reasongenrm.web.words import Notice, notice_of

logger = logging.getLogger(__name__)
PATH = "/v1/chat/completions"
REASON_TITLE = "Reason"
MAX_TOKENS = 1024  # reason and answer of one turn
TIMEOUT_SECONDS = 120.0  # between two parts of a stream
CONNECT_SECONDS = 5.0
DONE = "[DONE]"  # OpenAI's end of a stream


class _Delta(BaseModel):
    """What one chunk adds. vLLM has had both names for the reason."""

    reasoning: str | None = None
    reasoning_content: str | None = None
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None


@dataclass
class Reply:
    """The model's reply as far as it is written."""

    reason: str = ""
    answer: str = ""
    ended: bool = False
    cut_off: bool = False
    notice: Notice | None = None

    def messages(self) -> list[dict[str, Any]]:
        """As messages for the page: the reason in a bubble of its own, folded once the answer begins."""
        shown: list[dict[str, Any]] = []
        if self.reason:
            status = "done" if self.answer or self.ended else "pending"
            metadata = {"title": REASON_TITLE, "status": status}
            shown.append({"role": "assistant", "content": self.reason, "metadata": metadata})
        if self.answer:
            shown.append({"role": "assistant", "content": self.answer})
        if self.cut_off:
            text = f"The reply was cut off after {MAX_TOKENS} tokens."
            shown.append({"role": "assistant", "content": text, "metadata": {"title": "Cut off"}})
        return shown


class ChatClient:
    """Asks the judge for chat completions; close it at the end."""

    def __init__(self, judge_url: str) -> None:
        key = os.environ.get(KEY_VARIABLE, "")
        self._where = judge_url + PATH
        self._model: str | None = None
        self._http = httpx.AsyncClient(
            base_url=judge_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def reply(self, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[Reply, None]:
        """The reply to a conversation whose last message is the user's; yields the same object again and again.

        A reader that stops closes the connection, which ends the generation.
        """
        reply = Reply()
        try:
            async with aclosing(paced(self._chunks(plain(history)))) as batches:
                async for batch in batches:
                    for choice in batch:
                        reply.reason += choice.delta.reasoning or choice.delta.reasoning_content or ""
                        reply.answer += choice.delta.content or ""
                        reply.cut_off |= choice.finish_reason == "length"
                    yield reply
        except JudgeClientError as error:
            logger.warning("a chat failed: %s", error)
            reply.notice = notice_of(error)
        reply.ended = True
        yield reply

    async def _chunks(self, messages: list[dict[str, str]]) -> AsyncIterator[_Choice]:
        body = {"messages": messages, "max_tokens": MAX_TOKENS, "stream": True}
        try:
            body["model"] = await self._name()
            async with self._http.stream("POST", PATH, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise error_of_reply(self._where, response)
                async for event in read_events(response.aiter_bytes()):
                    if event.data == DONE:
                        return
                    chunk = _Chunk.model_validate_json(event.data)
                    if chunk.error is not None:
                        said = ErrorDetail(
                            message=str(chunk.error.get("message", "")), code=str(chunk.error.get("code", ""))
                        )
                        raise error_of_detail(self._where, said, None, None)
                    for choice in chunk.choices[:1]:
                        yield choice
        except httpx.TimeoutException as error:
            raise JudgeUnavailableError(f"{self._where}: no reply in time", code="predictor_timeout") from error
        except httpx.RequestError as error:
            raise JudgeUnavailableError(
                f"{self._where}: {type(error).__name__}: {error}", code="unavailable"
            ) from error
        except ValidationError as error:
            raise NotAJudgeError(
                f"{self._where}: no chunk of a chat completion: {error}", code="not_a_judge"
            ) from error
        raise JudgeUnavailableError(f"{self._where}: the stream ended too early", code="unavailable")

    async def _name(self) -> str:
        """The model's name, asked once."""
        if self._model is None:
            response = await self._http.get("/v1/models")
            if response.status_code != 200:
                raise error_of_reply(self._where, response)
            try:
                self._model = str(response.json()["data"][0]["id"])
            except (json.JSONDecodeError, LookupError, TypeError) as error:
                raise NotAJudgeError(f"{self._where}: its list of models is none", code="not_a_judge") from error
        return self._model


def plain(history: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the model is sent: roles and texts, without reasons and notes (messages with a title)."""
    return [
        {"role": message["role"], "content": text}
        for message in history
        if not (message.get("metadata") or {}).get("title") and (text := text_of(message["content"]))
    ]


def text_of(content: Any) -> str:
    """The text of a message, which gradio hands on as a string or as parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
