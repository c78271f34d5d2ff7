"""A conversation through the judge with its predictor: messages in, reason and answer out, streamed.

Messages are gradio's: {"role", "content", "metadata"}; a reason is a message of the assistant with a title in its
metadata, and is shown to the visitor but never sent back to the model.
"""

import html
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

from reasongenrm.generation.chat_completions import Completion
from reasongenrm.generation.openai_client import (
    ContextExceededError,
    EndpointError,
    EndpointTimeoutError,
    ModelCard,
    OpenAIClient,
    WrongReplyError,
)
from reasongenrm.judge.api import ErrorDetail
from reasongenrm.judge.client.client_errors import JudgeClientError, NotAJudgeError, error_of_detail
from reasongenrm.judge.client.client_http import KEY_VARIABLE
from reasongenrm.web.pace import paced
from reasongenrm.web.words import CHAT_TOO_LONG, Notice, notice_of

logger = logging.getLogger(__name__)
REASON_TITLE = "Reason"
MAX_TOKENS = 1024  # reason and answer of one turn
TIMEOUT_SECONDS = 120.0  # between two parts of a stream
CONNECT_SECONDS = 5.0
_MARKUP = re.compile(r"[ -/:-@\[-`{-~\n\t]")  # ASCII punctuation and white space


@dataclass
class ChatReply:
    """The model's reply as far as it is written."""

    reason: str = ""
    answer: str = ""
    ended: bool = False
    cut_off: bool = False
    notice: Notice | None = None

    def messages(self) -> list[dict[str, Any]]:
        """As messages for the page: the reason in a separate bubble, folded once the answer begins."""
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
    """Asks the judge for chat completions. An async context manager: the connections live as long as it does."""

    def __init__(self, judge_url: str) -> None:
        self._card: ModelCard | None = None
        self._client = OpenAIClient(
            f"{judge_url}/v1",
            key=os.environ.get(KEY_VARIABLE, ""),
            key_name=KEY_VARIABLE,
            silence_seconds=TIMEOUT_SECONDS,
            connect_seconds=CONNECT_SECONDS,
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def reply(self, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[ChatReply, None]:
        """The reply to a conversation whose last message is the user's; yields the same object again and again.

        A reader that stops closes the connection, which ends the generation.
        """
        reply = ChatReply()
        try:
            async with aclosing(paced(self._parts(plain(history)))) as batches:
                async for batch in batches:
                    for part in batch:
                        reply.reason += part.reason or ""
                        reply.answer += part.content
                        reply.cut_off |= part.finish_reason == "length"
                    yield reply
        except EndpointError as error:
            logger.warning("a chat failed: %s", error)
            is_long = isinstance(error, ContextExceededError)
            reply.notice = CHAT_TOO_LONG if is_long else notice_of(self._as_client_error(error))
        reply.ended = True
        yield reply

    async def _parts(self, messages: list[dict[str, str]]) -> AsyncIterator[Completion]:
        body = {"model": (await self._listed()).name, "messages": messages, "max_tokens": MAX_TOKENS}
        async with aclosing(self._client.stream(body)) as parts:
            async for part in parts:
                yield part

    async def card(self) -> ModelCard | None:
        """The judge's model, as it is listed now; None if nothing is."""
        self._card = None  # another judge may have taken its place
        try:
            return await self._listed()
        except EndpointError as error:
            logger.warning("the judge does not say what it is: %s", error)
            return None

    async def _listed(self) -> ModelCard:
        if self._card is None:
            cards = await self._client.models()
            if not cards:
                raise WrongReplyError(self._client.base_url, "lists no model")
            self._card = cards[0]
        return self._card

    def _as_client_error(self, error: EndpointError) -> JudgeClientError:
        """The same failure as the judge's client tells it."""
        code = error.code
        if isinstance(error, EndpointTimeoutError):
            code = "predictor_timeout"
        is_unknown = code is None and error.status is not None and (error.status < 400 or error.status == 404)
        if isinstance(error, WrongReplyError) or is_unknown:
            return NotAJudgeError(str(error), code="not_a_judge")
        detail = ErrorDetail(message=error.said or error.found, code=code or "unavailable", param=error.param)
        return error_of_detail(self._client.base_url, detail, error.status, error.request_id)


def plain(history: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What the model is sent: roles and texts, without reasons and notes (messages with a title)."""
    return [
        {"role": message["role"], "content": text}
        for message in history
        if not (message.get("metadata") or {}).get("title") and (text := text_of(message["content"]))
    ]


def as_typed(text: str) -> str:
    """A text that the page's Markdown shows letter for letter: what Markdown or HTML could read is a character code."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def typed(shown: str) -> str:
    """What `as_typed` was given."""
    return html.unescape(shown)


def text_of(content: Any) -> str:
    """The text of a message, which gradio hands on as a string or as parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
