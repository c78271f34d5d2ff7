"""The predictor as the judge sees it: one chat completion at a time, streamed or whole.

In goes what to ask, out comes a reply with reason, content, P([[A]]) and counts. Cancelling the task that waits closes the
connection, which is how a cancellation reaches vLLM. aiohttp, not httpx: on this path it needs a fraction of the CPU time
(docs/judge.md, "What the judge costs").
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from reasongenrm.generation.seam import OpeningRole
from reasongenrm.generation.verdicts import TOP_LOGPROBS, ReplyToken, probability_of_a
from reasongenrm.judge.refusals import (
    OverloadedError,
    PredictorRefusedError,
    PredictorTimeoutError,
    PredictorUnavailableError,
    TooFewTokensError,
)

VERDICT_TOKENS = (
    16  # kept of max_tokens for the assistant turn's opening and a verdict: about ten in the three families
)
PATIENCE_SECONDS = 5.0  # with a predictor that cannot be reached: a Service whose endpoints change is back in less
CONNECT_SECONDS = 3.0
RETRY_AFTER_SECONDS = 5  # told to the caller when the predictor is away: it loads a model
EXCERPT_CHARS = 300
TOO_LONG_WORDS = (
    "context_length_exceeded",
    "maximum context length",
    "maximum model length",
)  # OpenAI's code, vLLM's words
MAX_LINE_BYTES = 4 * 2**20  # of a streamed event

OnReason = Callable[[str], Awaitable[None]]


class ContextExceededError(Exception):
    """The predictor says that prompt and max_tokens do not fit into the model's context.

    Attributes:
        fitting_fraction: about how much of the prompt would fit, in (0, 1], by the numbers in the predictor's words and
            its context; 1 if they do not tell.
    """

    def __init__(self, words: str, context: int | None) -> None:
        super().__init__(words)
        # vLLM names the context and what was asked for in words that change from version to version. The prompt alone
        # is less than the largest number, so that the fraction errs on the side of cutting in two steps.
        asked = max((int(number) for number in re.findall(r"\b\d{1,9}\b", words)), default=0)
        self.fitting_fraction = context / asked if context is not None and asked > context else 1.0


@dataclass(frozen=True)
class ModelCard:
    """A model of the predictor; `max_model_len` is its context in tokens, if told."""

    name: str
    max_model_len: int | None


@dataclass(frozen=True)
class Ask:
    """One generation. `choices`: all that the content may be; () leaves it free."""

    messages: tuple[dict[str, str], ...]
    opening_role: OpeningRole | None
    max_tokens: int
    temperature: float
    seed: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        p_a: P([[A]]) in terms of the prompt as asked, not calibrated; None if it could not be told.
        truncated: the generation, or its reason, was cut off.
    """

    reason: str | None
    content: str
    p_a: float | None
    truncated: bool
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float


class Predictor:
    """An OpenAI-compatible server. An async context manager: the connections live as long as it does.

    Args:
        url: up to and including /v1.
        model: the model to ask for; None: the only one that is listed, asked for at first use.
        key: sent as a bearer token; None: none.
        timeout_seconds: of one generation.
        max_concurrency: generations under way at once; more wait here.
    """

    def __init__(
        self, url: str, model: str | None, key: str | None, timeout_seconds: float, max_concurrency: int
    ) -> None:
        self.url = url.rstrip("/")
        self._model, self._card = model, None if model is None else ModelCard(model, None)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_seconds = timeout_seconds
        self._slots = asyncio.Semaphore(max_concurrency)
        self._max_concurrency = max_concurrency
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Predictor":
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),  # the semaphore limits
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
            read_bufsize=MAX_LINE_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def card(self) -> ModelCard:
        """The model that is asked, looked up once.

        Raises:
            PredictorUnavailableError, PredictorRefusedError: no list of models, or none that fits.
            PredictorTimeoutError: no list in time.
        """
        if self._card is None or (self._model is not None and self._card.max_model_len is None):
            async with self._in_time():
                cards = await self._patiently(self._list_models)
            if self._model is not None:
                cards = [card for card in cards if card.name == self._model]
            if len(cards) != 1:
                wanted = f"the model '{self._model}'" if self._model else "one model"
                raise PredictorRefusedError(
                    f"{self.url} lists {', '.join(card.name for card in cards) or 'none'}; expected {wanted}. "
                    "Name the predictor's model when the judge is started."
                )
            self._card = cards[0]
            self._model = None  # looked up
        return self._card

    async def ready(self) -> bool:
        """Whether the predictor lists its models now."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._list_models()
        except (PredictorUnavailableError, PredictorRefusedError, TimeoutError):
            return False
        return True

    async def complete(self, ask: Ask, on_reason: OnReason | None = None) -> Reply:
        """Have one generation written; with `on_reason` it is streamed, and that is called with each piece of the reason.

        Raises:
            ContextExceededError: it does not fit into the model's context.
            PredictorUnavailableError: it cannot be reached for PATIENCE_SECONDS, or it broke off.
            PredictorTimeoutError, OverloadedError, PredictorRefusedError: what it answered instead.
        """
        card = await self.card()
        body: dict[str, Any] = {
            "model": card.name,
            "messages": list(ask.messages),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": 1.0,
            "seed": ask.seed,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        if ask.opening_role is not None:
            body["chat_template_kwargs"] = {"opening_role": ask.opening_role}
        if ask.choices:
            body["structured_outputs"] = {"choice": list(ask.choices)}
            if ask.opening_role == "reason" and ask.max_tokens > VERDICT_TOKENS:
                # vLLM's grammar begins after the reason, and a reason without an end would leave no room for a verdict.
                body["thinking_token_budget"] = ask.max_tokens - VERDICT_TOKENS
        async with self._slots:
            started = time.perf_counter()
            async with self._in_time():
                if on_reason is None:
                    found = await self._patiently(self._whole, body)
                else:
                    found = await self._patiently(self._streamed, body, on_reason)
        try:
            return found.reply(time.perf_counter() - started)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._refused(f"its log-probabilities are none: {error!r}") from error

    @asynccontextmanager
    async def forward(self, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """Hand a chat completion request on as it is; the response is the caller's to read.

        Raises:
            PredictorUnavailableError: it cannot be reached for PATIENCE_SECONDS.
        """
        async with self._slots:
            headers = {"Content-Type": "application/json"}
            response = await self._patiently(self._open, "POST", "/chat/completions", data=body, headers=headers)
            async with response:
                yield response

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        limit = asyncio.timeout(self._timeout_seconds)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise  # the caller's own
            raise PredictorTimeoutError(
                f"the predictor at {self.url} did not finish within {self._timeout_seconds:g} s. Ask for fewer votes or "
                "tokens, or start the judge with a longer time limit."
            ) from None

    async def _patiently(self, work: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Try again while the predictor cannot be reached."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_AwayError),
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=0.1, max=1.0),
            reraise=True,
        )
        return await retrying(work, *args, **kwargs)

    async def _open(self, method: str, path: str, **kwargs: Any) -> aiohttp.ClientResponse:
        assert self._session is not None, "used as an async context manager"
        try:
            response = await self._session.request(method, self.url + path, **kwargs)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from error
        if response.status in (502, 503):
            text = await _text(response)
            raise self._away(f"HTTP {response.status}: {_excerpt(text)}")
        return response

    def _away(self, why: str) -> "_AwayError":
        return _AwayError(
            f"the predictor at {self.url} cannot be reached ({why}). It may be starting; ask again in some seconds.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )

    async def _list_models(self) -> list[ModelCard]:
        response = await self._open("GET", "/models")
        async with response:
            await self._check(response)
            data = await self._json(response)
        try:
            return [ModelCard(str(card["id"]), card.get("max_model_len")) for card in data["data"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._refused("its list of models is none") from error

    async def _whole(self, body: Mapping[str, Any]) -> "_Found":
        response = await self._open("POST", "/chat/completions", json=body)
        async with response:
            await self._check(response)
            data = await self._json(response)
        found = _Found()
        try:
            choice = data["choices"][0]
            found.add(choice["message"], choice.get("logprobs"), choice.get("finish_reason"))
            found.count(data["usage"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._refused(f"its answer is no chat completion: {_excerpt(json.dumps(data))}") from error
        return found

    async def _streamed(self, body: Mapping[str, Any], on_reason: OnReason) -> "_Found":
        streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
        response = await self._open("POST", "/chat/completions", json=streaming)
        found = _Found()
        async with response:
            await self._check(response)
            async for event in self._events(response):
                piece = self._take(found, event)
                if piece:
                    await on_reason(piece)
        if found.finish_reason is None:
            raise PredictorUnavailableError(
                f"the predictor at {self.url} ended its answer before it was whole. Ask again.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        return found

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The data of each server-sent event but the last, "[DONE]"."""
        try:
            async for line in response.content:
                event = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and event != b"[DONE]":
                    yield event
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise PredictorUnavailableError(
                f"the predictor at {self.url} broke off ({type(error).__name__}: {error}). Ask again.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from error
        except LineTooLong as error:
            raise self._refused(f"an event of its stream is too long: {error}") from error

    def _take(self, found: "_Found", event: bytes) -> str:
        """Add one streamed event; the new piece of the reason."""
        try:
            chunk = json.loads(event)
            if "error" in chunk:
                raise self._refused(_excerpt(str(chunk["error"])))
            if chunk.get("usage"):
                found.count(chunk["usage"])
            pieces = [
                found.add(choice["delta"], choice.get("logprobs"), choice.get("finish_reason"))
                for choice in chunk["choices"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._refused(f"its stream is none of chat completion chunks: {error!r}") from error
        return "".join(pieces)

    async def _json(self, response: aiohttp.ClientResponse) -> Any:
        try:
            return json.loads(await response.read())
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise self._away(f"it broke off, {type(error).__name__}: {error}") from error
        except ValueError as error:
            raise self._refused("its answer is not JSON") from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        text = await _text(response)
        if response.status == 400 and any(words in text for words in TOO_LONG_WORDS):
            raise ContextExceededError(_excerpt(text), self._card.max_model_len if self._card else None)
        if response.status == 400 and _param_of(text) in ("max_tokens", "max_completion_tokens"):
            raise TooFewTokensError(f"the predictor refuses this max_tokens: {_excerpt(text)}", param="max_tokens")
        if response.status == 429:
            asked = response.headers.get("Retry-After", "")
            seconds = int(asked) if asked.isascii() and asked.isdigit() else RETRY_AFTER_SECONDS
            raise OverloadedError(
                f"the predictor at {self.url} has too much to do. Ask again later.", retry_after_seconds=seconds
            )
        raise self._refused(f"HTTP {response.status}: {_excerpt(text)}")

    def _refused(self, why: str) -> PredictorRefusedError:
        return PredictorRefusedError(
            f"the predictor at {self.url} did not give a completion: {why}. Ask the judge's operator to look at the "
            "predictor: its log, its model's name, and the key in VLLM_API_KEY."
        )


class _AwayError(PredictorUnavailableError):
    """Worth trying again."""


class _Found:
    """A completion while it comes in."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._reason: list[str] = []
        self._has_reason = False
        self._content: list[str] = []
        self._tokens: list[Mapping[str, Any]] = []
        self._cut_reason = False
        self._num_prompt_tokens = self._num_output_tokens = 0

    def add(self, message: Mapping[str, Any], logprobs: Mapping[str, Any] | None, finish_reason: str | None) -> str:
        """Take a message, or what is new of it; the new piece of the reason."""
        reason = message.get("reasoning")
        if reason is None:
            reason = message.get("reasoning_content")
        self._has_reason |= reason is not None
        self._reason.append(reason or "")
        self._content.append(message.get("content") or "")
        self._tokens += (logprobs or {}).get("content") or ()
        self._cut_reason |= bool(message.get("reasoning_truncated"))
        self.finish_reason = finish_reason or self.finish_reason
        return reason or ""

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take the predictor's counts."""
        self._num_prompt_tokens, self._num_output_tokens = (
            int(usage["prompt_tokens"]),
            int(usage["completion_tokens"]),
        )

    def reply(self, seconds: float) -> Reply:
        """All of it."""
        content = "".join(self._content).strip()
        return Reply(
            reason="".join(self._reason).strip() if self._has_reason else None,
            content=content,
            p_a=probability_of_a(content, (ReplyToken.of_openai(token) for token in reversed(self._tokens))),
            truncated=self.finish_reason == "length" or self._cut_reason,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            seconds=seconds,
        )


async def _text(response: aiohttp.ClientResponse) -> str:
    async with response:
        try:
            return await response.text(encoding="utf-8", errors="replace")
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
            return "no text"


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:EXCERPT_CHARS]


def _param_of(text: str) -> str | None:
    """The field that an error in OpenAI's shape names."""
    try:
        param = json.loads(text)["error"]["param"]
    except (ValueError, KeyError, TypeError):
        return None
    return param if isinstance(param, str) else None
