"""The one client of OpenAI-compatible servers: chat completions whole or streamed, and the list of models.

The endpoint engine, the judge's predictor and the web page's chat stand on it. A body goes in, a `Completion` comes
out. Connections are pooled; cancelling the task that waits closes its connection, which is how a cancellation reaches
vLLM. aiohttp, because a request costs a fraction of the CPU time that httpx takes (benchmarks/evaluate_cost.py). Every
error is an `EndpointError`; those of `PASSING` may pass.
"""

import json
import logging
import re
import ssl
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import aiohttp
import certifi
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict
from yarl import URL

from reasongenrm.errors import EngineError, mistake_in
from reasongenrm.generation.chat_completions import Completion, read_chunk, read_completion
from reasongenrm.generation.server_lacks import ServerLacks
from reasongenrm.http_client import (
    AttemptError,
    LongLineError,
    Retries,
    bearer,
    parse_address,
    read_events,
    retry_after_seconds,
    without_login,
    words_of,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 10.0
EXCERPT_CHARS = 300  # of a server's words, in messages
# How servers say that a request does not fit, and that a filter stopped it. Sources: OpenAI's and Azure's codes; vLLM
# 0.32 (its API, then its engine) and before it; SGLang, srt/managers/tokenizer_manager.py; llama.cpp, tools/server;
# text-generation-inference, router/src/validation.rs.
CONTEXT_WORDS = re.compile(
    r"context_length_exceeded|exceed the configured limit"
    r"|maximum context length|maximum model length|context length is only"
    r"|longer than the model's context length|exceeds the maximum allowed length"
    r"|exceed_context_size_error|available context size"
    r"|`inputs` tokens \+ `max_new_tokens` must be|`inputs` must have less than"
)
FILTER_CODES = ("content_filter", "content_policy_violation", "invalid_prompt", "ResponsibleAIPolicyViolation")
_ROW_STATUSES = (400, 413, 422)
NO_RETRIES = Retries(0)
_NOT_OK = range(201, 1000)


class EndpointError(EngineError, AttemptError):
    """The endpoint gave no reply that can be used.

    Attributes:
        found: what came instead, as the message has it, without where and what to do.
        said: the server's own words; "" if there are none.
        status: of the reply; None if there was none, or if the error came within a stream.
        code: the server's, for programs.
        param: the request's field that the server finds at fault.
        request_id: as in the server's log, if it tells one.
        retry_after_seconds: when the server wants to be asked again.
    """

    advice = "Look at the server, and ask again."

    def __init__(
        self,
        where: str,
        found: str,
        advice: str | None = None,
        *,
        said: str = "",
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        found = found.rstrip(".")
        super().__init__(f"{where}: {found}. {advice or self.advice}")
        self.found, self.said, self.brief = found, said, f"{where}: {found}"
        self.status, self.code, self.param, self.request_id = status, code, param, request_id
        self.retry_after_seconds = retry_after_seconds


class EndpointAwayError(EndpointError):
    """No connection, one that broke, or 502 to 504."""


class EndpointFailedError(EndpointError):
    """The server failed: another 5xx."""


class EndpointBusyError(EndpointError):
    """The server has too much to do: 429, perhaps with a Retry-After."""


class EndpointTimeoutError(EndpointError):
    """No reply in time."""


class ContextExceededError(EndpointError):
    """Prompt and max_tokens do not fit into the model's context."""

    advice = "Send less, or ask for a smaller max_tokens."

    @property
    def fitting_fraction(self) -> float:
        """About how much of the prompt would fit, in (0, 1], by the numbers in the server's words; 1 if they do not
        tell.

        The prompt alone is less than the largest number, so that the fraction errs on the side of cutting in two steps.
        """
        context = re.search(r"(?:context (?:length|size)|must be <=|less than|limit of)\D{0,12}(\d{1,9})\b", self.said)
        asked = max((int(number) for number in re.findall(r"\b\d{1,9}\b", self.said)), default=0)
        return int(context[1]) / asked if context is not None and 0 < int(context[1]) < asked else 1.0


class EndpointRefusedError(EndpointError):
    """The server refuses the request, as it will the next time: any other status."""

    advice = "Expected a chat completion. Change what the server refuses."


class RequestRefusedError(EndpointRefusedError):
    """The server refuses what this one request says; others may pass: 400, 413 and 422, or a filter's word.

    Attributes:
        is_filtered: by a content filter.
    """

    is_filtered = False


class FilteredError(RequestRefusedError):
    """A content filter stopped the prompt."""

    advice = "Another prompt may pass."
    is_filtered = True


class WrongReplyError(EndpointError):
    """The reply does not come from an OpenAI-compatible server."""

    advice = "Expected an OpenAI-compatible server; check the URL, which ends with the API's version (/v1)."


PASSING = (EndpointAwayError, EndpointFailedError, EndpointBusyError, EndpointTimeoutError)


@dataclass(frozen=True)
class ModelCard:
    """A model that a server lists; `max_model_len` is its context in tokens, `about` a judge's words on what it is, if
    told."""

    name: Annotated[str, Field(validation_alias="id")]
    max_model_len: int | None = None
    about: str | None = None


class _Cards(TypedDict):
    data: list[ModelCard]


_CARDS = TypeAdapter(_Cards)


class OpenAIClient:
    """An async context manager: the connections live as long as it does.

    Args:
        base_url: up to and including the API's version, such as "http://127.0.0.1:8000/v1". Its query goes with every
            request; a user and a password in it are sent instead of the key, and shown nowhere.
        key: sent as a bearer token, and to Azure (a query with api-version) as its api-key; "": none.
        key_name: the environment variable of the key, for messages.
        timeout_seconds: of one attempt, from its connection to the end of its reply; None: no limit.
        silence_seconds: between two parts of a reply; None: no limit.
        connect_seconds: for a new connection.
        retries: of requests that have no reply yet.
        passing: which errors are tried again.
        after_retries: what to do when they were in vain, for messages.
        lacks: what the server does not take; more is found out from its refusals. None: nothing is known yet.

    Raises:
        ConfigError: the URL cannot be used, or the key cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str = "",
        key_name: str = "OPENAI_API_KEY",
        timeout_seconds: float | None = None,
        silence_seconds: float | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        retries: Retries = NO_RETRIES,
        passing: tuple[type[EndpointError], ...] = PASSING,
        after_retries: str | None = None,
        lacks: ServerLacks | None = None,
    ) -> None:
        address = parse_address(base_url)
        self.base_url = str(address)
        self._headers = {**bearer(key, key_name), **address.headers}
        if key and not address.headers and "api-version=" in address.query:
            self._headers["api-key"] = key
        self._key_name = key_name
        self._chat_url, self._models_url = URL(address.at("/chat/completions")), URL(address.at("/models"))
        self._timeout = aiohttp.ClientTimeout(timeout_seconds, connect_seconds, silence_seconds)
        self._connect_seconds = connect_seconds
        self._retrying = retries.retrying(passing, logger)
        self._num_retries, self._passing, self._after_retries = retries.num, passing, after_retries
        self._lacks = lacks or ServerLacks(self.base_url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if self._chat_url.scheme == "https" else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            proxy=_proxy_of(self._chat_url),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def models(self) -> list[ModelCard]:
        """The models that the server lists.

        Raises:
            EndpointError: no list of models.
        """
        raw = await self._retried(self._read, self.base_url, "GET", self._models_url, {})
        try:
            return _CARDS.validate_json(raw)["data"]
        except ValidationError as error:
            raise WrongReplyError(f"{self.base_url}/models", f"is not a list of models: {mistake_in(error)}") from error

    async def complete(
        self, body: Mapping[str, Any], what: str = "", timeout_seconds: float | None = None
    ) -> Completion:
        """One chat completion, whole.

        Args:
            body: see `chat_completions.chat_body`; what the server lacks is left out of it.
            what: the request's name in messages.
            timeout_seconds: of one attempt; None: the client's.

        Raises:
            EndpointError: after the retries.
        """
        where = self._where(what)
        raw = await self._fitted(self._read, where, body, self._limits(timeout_seconds))
        try:
            completion = read_completion(raw)
        except ValueError as error:
            found = f"the reply is no chat completion with choices: {error} ({_excerpt(raw)})"
            raise WrongReplyError(where, found) from error
        if not completion.has_usage:
            self._lacks.note("usage", "it does not count tokens, so the figures have 0 for them")
        return completion

    async def stream(
        self, body: Mapping[str, Any], what: str = "", timeout_seconds: float | None = None
    ) -> AsyncGenerator[Completion, None]:
        """One chat completion in parts (`chat_completions.join_parts` joins them); retried until the first one comes.

        Leaving the generator (`contextlib.aclosing`) closes the connection.

        Raises:
            EndpointError: also in the middle, if the server gives up or the connection breaks.
        """
        where = self._where(what)
        limits = self._limits(timeout_seconds)
        response = await self._fitted(self._open, where, {**body, "stream": True}, limits)
        has_ended = False
        async with response:
            with self._losses(where, limits.get("timeout")):
                async for event in read_events(response.content.iter_any()):
                    if event.data == "[DONE]":
                        break
                    part = self._part(where, event.data)
                    has_ended |= part.finish_reason is not None
                    yield part
        if not has_ended:
            raise EndpointAwayError(where, "ended its reply before it was whole")

    async def forward(self, body: bytes) -> aiohttp.ClientResponse:
        """Pass a chat completion request on unchanged; the response is the caller's to read and to close.

        `timeout_seconds` does not hold for it: what it answers may be a stream.

        Raises:
            EndpointAwayError: no connection, 502 or 503.
            EndpointRefusedError: a redirect, which is not followed: the key is for this server alone.
        """
        unlimited = aiohttp.ClientTimeout(None, self._connect_seconds, self._timeout.sock_read)
        more = {"data": body, "headers": {"Content-Type": "application/json"}, "timeout": unlimited}
        return await self._retried(
            self._open, self.base_url, "POST", self._chat_url, more, (*range(300, 400), 502, 503)
        )

    def _where(self, what: str) -> str:
        return f"{self.base_url}: {what}" if what else self.base_url

    def _limits(self, timeout_seconds: float | None) -> dict[str, Any]:
        if timeout_seconds is None:
            return {}
        return {"timeout": aiohttp.ClientTimeout(timeout_seconds, self._connect_seconds, self._timeout.sock_read)}

    async def _fitted(
        self, attempt: Callable[..., Awaitable[T]], where: str, body: Mapping[str, Any], more: Mapping[str, Any]
    ) -> T:
        """Send a body without what the server lacks; again, when its refusal tells of something more."""
        while True:
            fitted = self._lacks.fit(body)
            try:
                return await self._retried(attempt, where, "POST", self._chat_url, {"json": fitted, **more})
            except EndpointRefusedError as refusal:
                # What another request has found out meanwhile is news for this one, too.
                if not self._lacks.learn(fitted, refusal.said, refusal.param) and self._lacks.fit(body) == fitted:
                    raise

    async def _retried(self, attempt: Callable[..., Awaitable[T]], where: str, *rest: Any) -> T:
        try:
            return await self._retrying(attempt, where, *rest)
        except self._passing as error:
            if not self._num_retries:
                raise
            found = f"failed {self._num_retries + 1} times, the last time with {error.found}; expected a reply"
            raise type(error)(where, found, self._after_retries, status=error.status, code=error.code) from error

    async def _read(self, where: str, method: str, url: URL, more: Mapping[str, Any]) -> bytes:
        with self._losses(where, more.get("timeout")):
            async with await self._open(where, method, url, more) as response:
                return await response.read()

    async def _open(
        self, where: str, method: str, url: URL, more: Mapping[str, Any], refused: Container[int] = _NOT_OK
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "used as an async context manager"
        with self._losses(where, more.get("timeout")):
            # No redirects: the key is for this server alone.
            response = await self._session.request(method, url, allow_redirects=False, **more)
            if response.status not in refused:
                return response
            async with response:
                raw = await response.read()
        raise self._error(where, response.status, _error_of(raw), raw, response.headers)

    @contextmanager
    def _losses(self, where: str, limits: aiohttp.ClientTimeout | None = None) -> Iterator[None]:
        """What aiohttp raises, sorted: what took too long, what broke, what is no stream."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise EndpointAwayError(where, f"no connection within {self._connect_seconds:g} s") from error
        except TimeoutError as error:
            limits = limits or self._timeout
            raise EndpointTimeoutError(where, f"no reply within {limits.total or limits.sock_read:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise EndpointAwayError(where, f"no connection ({error})") from error
        except aiohttp.ClientError as error:
            raise EndpointAwayError(where, f"the connection broke ({type(error).__name__}: {error})") from error
        except LongLineError as error:
            raise WrongReplyError(where, f"its stream cannot be read: {error}") from error

    def _part(self, where: str, data: str) -> Completion:
        try:
            return read_chunk(data)
        except ValueError as error:
            said = _error_of(data.encode())
            if said:
                raise self._error(where, None, said, data.encode()) from error
            found = f"its stream has something else than chunks of a chat completion: {error}"
            raise WrongReplyError(where, found) from error

    def _error(
        self, where: str, status: int | None, said: Mapping[str, Any], raw: bytes, headers: Mapping[str, str] = {}
    ) -> EndpointError:
        """The error that a reply means, or an event of a stream (its status is None)."""
        kind: type[EndpointError] = EndpointRefusedError
        advice = None
        if status in (502, 503, 504):
            kind = EndpointAwayError
        elif status is None or status >= 500:
            kind = EndpointFailedError
        elif status == 429:
            kind = EndpointBusyError
        elif status in _ROW_STATUSES and CONTEXT_WORDS.search(raw.decode("utf-8", "replace")):
            kind = ContextExceededError
        elif _is_filtered(said):
            kind = FilteredError
        elif status in _ROW_STATUSES:
            kind = RequestRefusedError
        elif 300 <= status < 400:
            target = without_login(headers.get("Location", "nowhere"))
            found = f"HTTP {status}: a redirect to {target}"
            advice = "It is not followed. Give the URL that it leads to, if that may get the key."
            return kind(where, found, advice, said=found, status=status)
        elif status in (401, 403):
            advice = f"Set {self._key_name} to a key that this endpoint takes."
        elif status == 404:
            advice = "Check the model's name, and that the URL ends with the API's version (/v1)."
        words = _excerpt(
            words_of(str(said["message"]) if said.get("message") else raw.decode("utf-8", "replace")).encode()
        )
        found = f"HTTP {status}: {words}" if status else words
        said = {"request_id": headers.get("X-Request-ID"), **said}
        named = {name: said[name] for name in ("code", "param", "request_id") if isinstance(said.get(name), str)}
        after = retry_after_seconds(headers.get("Retry-After"))
        return kind(where, found, advice, said=words, status=status, retry_after_seconds=after, **named)


def _error_of(raw: bytes) -> dict[str, Any]:
    """The error object of a reply in OpenAI's shape; vLLM and text-generation-inference have {"error": "..."} too, and
    SGLang (as vLLM before 0.10) the object by itself. {} if it has none."""
    try:
        body = json.loads(raw)
    except ValueError:
        return {}
    if not isinstance(body, dict):
        return {}
    error = body if body.get("object") == "error" else body.get("error")
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _is_filtered(said: Mapping[str, Any]) -> bool:
    """Whether an error object is a content filter's: OpenAI's codes, Azure's inner error, OpenRouter's metadata."""
    inner, metadata = said.get("innererror"), said.get("metadata")
    return (
        said.get("code") in FILTER_CODES
        or (isinstance(inner, dict) and inner.get("code") in FILTER_CODES)
        or (isinstance(metadata, dict) and "flagged_input" in metadata)
    )


def _excerpt(raw: bytes) -> str:
    """What a server said, on one line, not too long."""
    return " ".join(raw.decode("utf-8", "replace").split())[:EXCERPT_CHARS] or "no text"


def _proxy_of(url: URL) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY, ...)."""
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def _tls() -> ssl.SSLContext:
    """Trusts the system's authorities, which slim images have none of, and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context
