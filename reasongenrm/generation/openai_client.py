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
from reasongenrm.http_client import AttemptError, LongLineError, Retries, bearer, read_events, retry_after_seconds

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 10.0
EXCERPT_CHARS = 300  # of a server's words, in messages
# OpenAI's code; the words of vLLM 0.32 (its API, then its engine), and of versions before it.
CONTEXT_WORDS = ("context_length_exceeded", "maximum context length", "maximum model length", "context length is only")
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
        super().__init__(f"{where}: {found.rstrip('.')}. {advice or self.advice}")
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
        context = re.search(r"context length\D{0,12}(\d{1,9})\b", self.said)
        asked = max((int(number) for number in re.findall(r"\b\d{1,9}\b", self.said)), default=0)
        return int(context[1]) / asked if context is not None and 0 < int(context[1]) < asked else 1.0


class EndpointRefusedError(EndpointError):
    """The server refuses the request, as it will the next time: any other status."""

    advice = "Expected a chat completion. Change what the server refuses."


class WrongReplyError(EndpointError):
    """The reply does not come from an OpenAI-compatible server."""

    advice = "Expected an OpenAI-compatible server; check the URL, which ends with the API's version (/v1)."


PASSING = (EndpointAwayError, EndpointFailedError, EndpointBusyError, EndpointTimeoutError)


@dataclass(frozen=True)
class ModelCard:
    """A model that a server lists; `max_model_len` is its context in tokens, if told."""

    name: Annotated[str, Field(validation_alias="id")]
    max_model_len: int | None = None


class _Cards(TypedDict):
    data: list[ModelCard]


_CARDS = TypeAdapter(_Cards)


class OpenAIClient:
    """An async context manager: the connections live as long as it does.

    Args:
        base_url: up to and including the API's version, such as "http://127.0.0.1:8000/v1".
        key: sent as a bearer token; "": none.
        key_name: the environment variable of the key, for messages.
        timeout_seconds: of one attempt, from its connection to the end of its reply; None: no limit.
        silence_seconds: between two parts of a reply; None: no limit.
        connect_seconds: for a new connection.
        retries: of requests that have no reply yet.
        passing: which errors are tried again.
        after_retries: what to do when they were in vain, for messages.

    Raises:
        EndpointError: the URL cannot be used.
        ConfigError: the key cannot be sent.
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
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = bearer(key, key_name)
        self._key_name = key_name
        try:
            url = URL(self.base_url)
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError("neither http:// nor https:// and a host")
            _ = url.port
        except ValueError as error:
            found = f"{error}; expected a URL such as http://127.0.0.1:8000/v1"
            raise EndpointError(self.base_url, found, "Correct the URL.") from error
        self._chat_url, self._models_url = url / "chat/completions", url / "models"
        self._timeout = aiohttp.ClientTimeout(timeout_seconds, connect_seconds, silence_seconds)
        self._timeout_seconds, self._connect_seconds = timeout_seconds or silence_seconds, connect_seconds
        self._retrying = retries.retrying(passing, logger)
        self._num_retries, self._passing, self._after_retries = retries.num, passing, after_retries
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

    async def complete(self, body: Mapping[str, Any], what: str = "") -> Completion:
        """One chat completion, whole.

        Args:
            body: see `chat_completions.chat_body`.
            what: the request's name in messages.

        Raises:
            EndpointError: after the retries.
        """
        where = self._where(what)
        raw = await self._retried(self._read, where, "POST", self._chat_url, {"json": body})
        try:
            return read_completion(raw)
        except ValueError as error:
            found = f"the reply is no chat completion with choices and usage: {error} ({_excerpt(raw)})"
            raise WrongReplyError(where, found) from error

    async def stream(self, body: Mapping[str, Any], what: str = "") -> AsyncGenerator[Completion, None]:
        """One chat completion in parts (`chat_completions.join_parts` joins them); retried until the first one comes.

        Leaving the generator (`contextlib.aclosing`) closes the connection.

        Raises:
            EndpointError: also in the middle, if the server gives up or the connection breaks.
        """
        where = self._where(what)
        more = {"json": {**body, "stream": True}}
        response = await self._retried(self._open, where, "POST", self._chat_url, more)
        has_ended = False
        async with response:
            with self._losses(where):
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
        """
        unlimited = aiohttp.ClientTimeout(None, self._connect_seconds, self._timeout.sock_read)
        more = {"data": body, "headers": {"Content-Type": "application/json"}, "timeout": unlimited}
        return await self._retried(self._open, self.base_url, "POST", self._chat_url, more, (502, 503))

    def _where(self, what: str) -> str:
        return f"{self.base_url}: {what}" if what else self.base_url

    async def _retried(self, attempt: Callable[..., Awaitable[T]], where: str, *rest: Any) -> T:
        try:
            return await self._retrying(attempt, where, *rest)
        except self._passing as error:
            if not self._num_retries:
                raise
            found = f"failed {self._num_retries + 1} times, the last time with {error.found}; expected a reply"
            raise type(error)(where, found, self._after_retries, status=error.status, code=error.code) from error

    async def _read(self, where: str, method: str, url: URL, more: Mapping[str, Any]) -> bytes:
        with self._losses(where):
            async with await self._open(where, method, url, more) as response:
                return await response.read()

    async def _open(
        self, where: str, method: str, url: URL, more: Mapping[str, Any], refused: Container[int] = _NOT_OK
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "used as an async context manager"
        with self._losses(where):
            # No redirects: the key is for this server alone.
            response = await self._session.request(method, url, allow_redirects=False, **more)
            if response.status not in refused:
                return response
            async with response:
                raw = await response.read()
        raise self._error(where, response.status, _error_of(raw), raw, response.headers)

    @contextmanager
    def _losses(self, where: str) -> Iterator[None]:
        """What aiohttp raises, sorted: what took too long, what broke, what is no stream."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise EndpointAwayError(where, f"no connection within {self._connect_seconds:g} s") from error
        except TimeoutError as error:
            raise EndpointTimeoutError(where, f"no reply within {self._timeout_seconds:g} s") from error
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
        elif status == 400 and any(words in raw.decode("utf-8", "replace") for words in CONTEXT_WORDS):
            kind = ContextExceededError
        elif status in (401, 403):
            advice = f"Set {self._key_name} to a key that this endpoint takes."
        elif status == 404:
            advice = "Check the model's name, and that the URL ends with the API's version (/v1)."
        words = _excerpt(str(said["message"]).encode() if said.get("message") else raw)
        found = f"HTTP {status}: {words}" if status else words
        said = {"request_id": headers.get("X-Request-ID"), **said}
        named = {name: said[name] for name in ("code", "param", "request_id") if isinstance(said.get(name), str)}
        after = retry_after_seconds(headers.get("Retry-After"))
        return kind(where, found, advice, said=words, status=status, retry_after_seconds=after, **named)


def _error_of(raw: bytes) -> dict[str, Any]:
    """The error object of a reply in OpenAI's shape; vLLM has {"error": "Unauthorized"} too. {} if it has none."""
    try:
        body = json.loads(raw)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


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
