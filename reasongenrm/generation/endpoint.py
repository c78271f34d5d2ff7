"""The endpoint engine: any OpenAI-compatible server (a teacher's API, vLLM, `reasongenrm serve`).

One HTTP request is one sample with a seed of its own, so that records do not depend on how a server batches. Requests
run side by side, at most `concurrency` at a time; a 429, a 5xx, a time-out or a lost connection is tried again after a
growing, bounded wait; any other refusal ends the run at once with the server's own words.
"""

import asyncio
import email.utils
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import FAMILIES, ChatFamily, split_generation
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches, sample_seed
from reasongenrm.generation.verdicts import TOP_LOGPROBS, ReplyToken, reply_verdict_logprobs
from reasongenrm.processes.gathering import gather_or_cancel
from reasongenrm.records import Verdict

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.5  # doubled at every retry: five retries wait 15.5 s in all
MAX_WAIT_SECONDS = 60.0  # also of a server's Retry-After
CONNECT_SECONDS = 10.0
BODY_EXCERPT_CHARS = 300  # of a server's answer, in messages

# A turn's closing token as a stop string, for every family: an endpoint does not tell which one its model is of.
TURN_ENDS = tuple(dict.fromkeys(family.turn_end for family in FAMILIES))


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Reply(BaseModel):
    """The message of a choice; servers name the reason in two ways."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _TopToken(BaseModel):
    token: str
    logprob: float


class _Token(BaseModel):
    token: str
    top_logprobs: list[_TopToken] = []


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Choice(BaseModel):
    message: _Reply
    finish_reason: str | None
    logprobs: _Logprobs | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Transient(Exception):
    """A failure that may pass; `retry_after_seconds` is what the server asked for."""

    def __init__(self, what: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds


class _TooLong(Exception):
    """The server says that prompt and max_tokens do not fit into the model's context."""


@dataclass(frozen=True)
class _Connections:
    """What the requests of one call share; `tasks` are the batches under way."""

    client: httpx.AsyncClient
    slots: asyncio.Semaphore
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)


class EndpointEngine:
    """Generates through `POST {base_url}/chat/completions`.

    The key, if the server wants one, is read from the environment variable `key_variable`.

    Args:
        base_url: up to and including the API's version, such as "http://127.0.0.1:8000/v1".
        config: concurrency, timeout_seconds, max_retries and batch_size are used.
        model_name: the model to ask for; None asks for the only one that the endpoint lists.
        keep_markup: send vLLM's `skip_special_tokens: false`, for a judge behind a vLLM that has no reasoning parser:
            its text then holds the turns' markup, which is split here. Other servers refuse the field.

    Raises:
        EngineError: the endpoint cannot be reached, or lists no model or several and none was named.
        ConfigError: the key cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        config: EngineConfig,
        *,
        model_name: str | None = None,
        keep_markup: bool = False,
        key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        self._key_variable = key_variable
        self.base_url = base_url.rstrip("/")
        self._config = config
        self._keep_markup = keep_markup
        if model_name is None:
            with start_blocking_portal() as portal:  # a loop of its own: a notebook has one running already
                model_name = portal.call(self._only_model)
        self.model_name = model_name

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        """See `Engine.generate`. Batches come in the order of the requests, while later ones are already under way.

        A prompt that does not fit into the model's context is answered by generations with no tokens and finish_reason
        "length", as the engines in the process do.

        Raises:
            EngineError: a request failed for good; requests under way are given up.
        """
        batches = plan_batches(requests, sampling.num_samples, self._config.batch_size, skip)
        # Enough batches under way to keep every connection busy while the oldest one waits for its last answer.
        num_ahead = 1 + -(-self._config.concurrency // self._config.batch_size)
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._connections()) as connections:
            under_way: deque[Future[list[Generation]]] = deque()
            for batch in batches:
                if len(under_way) == num_ahead:
                    yield under_way.popleft().result()
                under_way.append(portal.start_task_soon(self._generate_batch, connections, batch, sampling))
            while under_way:
                yield under_way.popleft().result()

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator["_Connections"]:
        """The client; when the context ends, requests under way end before it: a connection that is being opened while
        its client is closed would stay open."""
        async with self._client() as client:
            connections = _Connections(client, asyncio.Semaphore(self._config.concurrency))
            try:
                yield connections
            finally:
                for task in connections.tasks:
                    task.cancel()
                await asyncio.gather(*connections.tasks, return_exceptions=True)

    async def _generate_batch(
        self, connections: "_Connections", batch: list[GenerationRequest], sampling: Sampling
    ) -> list[Generation]:
        own_task = asyncio.current_task()
        assert own_task is not None
        connections.tasks.add(own_task)
        own_task.add_done_callback(connections.tasks.discard)
        return await gather_or_cancel(
            self._generate_one(connections, request, sample, sampling)
            for request in batch
            for sample in range(sampling.num_samples)
        )

    async def _generate_one(
        self, connections: "_Connections", request: GenerationRequest, sample: int, sampling: Sampling
    ) -> Generation:
        where = f"{self.base_url}: request {request.request_id}"
        async with connections.slots:
            started = time.perf_counter()
            try:
                data = await self._call(
                    connections.client, "POST", "/chat/completions", self._body(request, sample, sampling), where
                )
            except _TooLong as refusal:
                logger.warning("%s: longer than the model's context, counted as cut off (%s)", where, refusal)
                role = request.opening_role
                return Generation(request.request_id, sample, "" if role == "reason" else None, "", 0, 0, "length", 0.0)
            seconds = time.perf_counter() - started
        try:
            completion = _Completion.model_validate(data)
        except ValidationError as error:
            raise EngineError(
                f"{where}: the reply is no chat completion with choices and usage: {_first(error)}. "
                "Expected an OpenAI-compatible server; check the URL."
            ) from error
        if not completion.choices:
            raise EngineError(f"{where}: the reply has no choices; expected one. Check the server.")
        choice = completion.choices[0]
        reason, answer = self._split(choice.message, request)
        return Generation(
            request_id=request.request_id,
            sample=sample,
            reason=reason,
            answer=answer,
            num_prompt_tokens=completion.usage.prompt_tokens,
            num_output_tokens=completion.usage.completion_tokens,
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            seconds=seconds,
            verdict_logprobs=_verdict_logprobs(choice.logprobs, answer),
        )

    def _body(self, request: GenerationRequest, sample: int, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model_name,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sample_seed(sampling.seed, request.request_id, sample),
        }
        if request.opening_role is not None:
            body["chat_template_kwargs"] = {"opening_role": request.opening_role}
        if request.stop_at == "turn":
            body["stop"] = list(TURN_ENDS)
        if sampling.verdict_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if self._keep_markup:
            body["skip_special_tokens"] = False
        return body

    def _split(self, message: _Reply, request: GenerationRequest) -> tuple[str | None, str]:
        """(reason, answer) of a reply: split by the server, by its markup, or (a plain chat) all of it the answer."""
        content = message.content or ""
        reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
        if reasoning is not None:
            return reasoning.strip(), content.strip()
        family = _family_of(content)
        if family is not None or self._keep_markup or request.stop_at == "turn":
            # A request that ends with a reason turn opens the assistant's, whatever was asked for.
            role = "assistant" if request.messages[-1]["role"] == "reason" else request.opening_role
            return split_generation(content, family or FAMILIES[0], role)
        return None, content.strip()

    def close(self) -> None:
        """Nothing is held between calls."""

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get(self._key_variable, "")
        if not (key.isascii() and key.isprintable()):  # httpx's own error would print the key
            raise ConfigError(
                f"{self._key_variable}: holds a line break or another character that no HTTP header can carry; expected a key. "
                "Set it again without what was copied along with it."
            )
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # The whole request has a time limit (`_attempt`); waiting for a connection is the semaphore's.
            timeout=httpx.Timeout(None, connect=min(CONNECT_SECONDS, self._config.timeout_seconds)),
            limits=httpx.Limits(max_connections=self._config.concurrency),
        )

    async def _only_model(self) -> str:
        async with self._client() as client:
            data = await self._call(client, "GET", "/models", None, self.base_url)
        try:
            names = [model.id for model in _Models.model_validate(data).data]
        except ValidationError as error:
            raise EngineError(
                f"{self.base_url}/models: is no list of models: {_first(error)}. Expected an OpenAI-compatible server; "
                "check that the URL ends with the API's version (/v1), or name the model."
            ) from error
        if len(names) != 1:
            raise EngineError(
                f"{self.base_url}: lists {len(names)} models ({', '.join(names[:10])}); expected one. "
                "Name the model to ask."
            )
        return names[0]

    async def _call(
        self,
        client: httpx.AsyncClient,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, Any] | None,
        where: str,
    ) -> Any:
        """One request with its retries; the parsed JSON of the reply."""
        num_attempts = self._config.max_retries + 1
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            stop=stop_after_attempt(num_attempts),
            wait=_wait_seconds,
            before_sleep=lambda state: _log_retry(state, where, num_attempts),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, client, method, path, body, where)
        except _Transient as error:
            raise EngineError(
                f"{where}: failed {num_attempts} times, the last time with {error}; expected a reply. "
                "Look at the server, then start again: finished work is kept. engine.max_retries and "
                "engine.timeout_seconds give it more time."
            ) from error

    async def _attempt(
        self,
        client: httpx.AsyncClient,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, Any] | None,
        where: str,
    ) -> Any:
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                response = await client.request(method, self.base_url + path, json=body)
        except TimeoutError:
            raise _Transient(f"no reply within {self._config.timeout_seconds:g} s") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise EngineError(f"{where}: {error}; expected a URL such as http://127.0.0.1:8000/v1. Mend it.") from error
        except httpx.RequestError as error:
            raise _Transient(f"{type(error).__name__}: {error}") from error
        said = _message_of(response)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Transient(f"HTTP {response.status_code}: {said}", _retry_after_seconds(response))
        if response.status_code == 400 and body is not None and _is_too_long(response):
            raise _TooLong(said)
        if response.status_code != 200:
            raise EngineError(f"{where}: HTTP {response.status_code}: {said}. {self._advice(response.status_code)}")
        try:
            return response.json()
        except ValueError as error:
            raise EngineError(
                f"{where}: the reply is not JSON ({said}); expected an OpenAI-compatible server. Check the URL."
            ) from error

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f"Set {self._key_variable} to a key that this endpoint takes."
        if status == 404:
            return "Check the model's name, and that the URL ends with the API's version (/v1)."
        return "Expected a chat completion. Change what the server refuses."


def _wait_seconds(state: RetryCallState) -> float:
    """Doubling waits, or what the server asked for, whichever is longer, up to MAX_WAIT_SECONDS."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, _Transient)
    growing = FIRST_WAIT_SECONDS * 2 ** (state.attempt_number - 1)
    return min(MAX_WAIT_SECONDS, max(growing, error.retry_after_seconds or 0.0))


def _log_retry(state: RetryCallState, where: str, num_attempts: int) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    logger.warning(
        "%s: %s; attempt %d of %d in %.1f s",
        where,
        state.outcome.exception(),
        state.attempt_number + 1,
        num_attempts,
        state.next_action.sleep,
    )


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """The Retry-After header, which is a number of seconds or a date (RFC 9110, section 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of a reply in OpenAI's shape, or an empty one."""
    try:
        body = response.json()
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _message_of(response: httpx.Response) -> str:
    """What the server said, on one line, not too long."""
    message = _error_of(response).get("message")
    text = message if isinstance(message, str) else response.text
    line = " ".join(text.split())
    return line[:BODY_EXCERPT_CHARS] or "no text"


def _is_too_long(response: httpx.Response) -> bool:
    """Whether a 400 is about the context's length: OpenAI has a code for it, vLLM only a sentence."""
    return _error_of(response).get("code") == "context_length_exceeded" or "maximum context length" in response.text


def _verdict_logprobs(logprobs: _Logprobs | None, answer: str) -> dict[Verdict, float] | None:
    """Of a reply that has log-probabilities; servers that do not know them leave them out."""
    if logprobs is None or logprobs.content is None:
        return None
    tokens = [
        ReplyToken(token.token, {top.token: top.logprob for top in token.top_logprobs}) for token in logprobs.content
    ]
    return reply_verdict_logprobs(tokens, answer)


def _family_of(text: str) -> ChatFamily | None:
    """The family whose markup a text holds, None for a text without any."""
    for family in FAMILIES:
        if family.turn_end in text:
            return family
    return None


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
