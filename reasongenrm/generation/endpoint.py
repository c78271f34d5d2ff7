"""The endpoint engine: any OpenAI-compatible server (a teacher's API, vLLM, `reasongenrm serve`).

One HTTP request is one sample with a seed of its own, so that records do not depend on how a server batches. Requests
run side by side, at most `concurrency` at a time; a 429, a 5xx, a time-out or a lost connection is tried again after a
growing, bounded wait. A request that is refused for what it says (a content filter, too long) is an answer that failed;
the run goes on until too many fail. A refusal that is about the server (its key, its address) ends it at once.
"""

import asyncio
import logging
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import start_blocking_portal

from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import split_generation
from reasongenrm.data.chat_families import FAMILIES, family_of_reply
from reasongenrm.errors import EngineError
from reasongenrm.generation.chat_completions import Completion, chat_body
from reasongenrm.generation.openai_client import (
    CONNECT_SECONDS,
    ContextExceededError,
    OpenAIClient,
    RequestRefusedError,
)
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches, sample_seed
from reasongenrm.generation.server_lacks import ServerLacks
from reasongenrm.http_client import Retries, parse_address
from reasongenrm.processes.gathering import gather_or_cancel
from reasongenrm.records import FinishReason

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.5  # doubled at every retry: five retries wait 15.5 s in all
NUM_HOPELESS = 32  # answers of a call, all of them refused, that end it: its server refuses everything
EXAMPLE_CHARS = 200  # of a server's words in a summary


class _Failures:
    """Answers of one call that failed, by cause, with the server's first words of each."""

    def __init__(self, where: str, num_requests: int, max_fraction: float) -> None:
        self._where, self._num_requests, self._max_fraction = where, num_requests, max_fraction
        self._num_answers = 0
        self._found: dict[tuple[str, int], tuple[str, str]] = {}  # of batches that were not looked at
        self._causes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, request: GenerationRequest, sample: int, cause: str, words: str) -> None:
        """Say that an answer failed; it counts when its batch is looked at."""
        logger.warning("%s, counted as %s", words, cause)
        self._found[request.request_id, sample] = cause, words

    def check(self, batch: Sequence[Generation]) -> bool:
        """See whether too many failed, with one batch more.

        Returns:
            Whether something else than refusals has come, or will not come any more.

        Raises:
            EngineError: too many; the message counts the causes.
        """
        self._num_answers += len(batch)
        for generation in batch:
            cause, words = self._found.pop((generation.request_id, generation.sample), (None, ""))
            if cause is not None:
                self._causes[cause] += 1
                self._examples.setdefault(cause, words[:EXAMPLE_CHARS])
        num_failed = self._causes.total()
        all_refused = self._causes["refused"] == self._num_answers
        if num_failed > self._max_fraction * self._num_requests:
            allowed = f"more than engine.endpoint.max_failed_fraction ({self._max_fraction:g}) allows"
        elif all_refused and self._max_fraction < 1 and self._num_answers >= NUM_HOPELESS:
            allowed = "and none passed"
        else:
            return not all_refused or self._num_answers == self._num_requests or self._max_fraction == 1
        causes = "; ".join(f"{n} {cause} (first: {self._examples[cause]})" for cause, n in self._causes.most_common())
        raise EngineError(
            f"{self._where}: {num_failed} of {self._num_requests} requests failed, {allowed}: {causes}. Change what "
            "the server refuses, or allow a larger share; finished work is kept."
        )


@dataclass(frozen=True)
class _Connections:
    """What the requests of one call share; `tasks` are the batches under way."""

    client: OpenAIClient
    slots: asyncio.Semaphore
    failures: _Failures
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)


class EndpointEngine:
    """Generates through `POST {base_url}/chat/completions`.

    The key, if the server wants one, is read from the environment variable `key_variable`.

    Args:
        base_url: up to and including the API's version, such as "http://127.0.0.1:8000/v1".
        config: concurrency, timeout_seconds, max_retries, batch_size and endpoint are used.
        model_name: the model to ask for; None asks for the only one that the endpoint lists.
        keep_markup: send vLLM's `skip_special_tokens: false`, for a judge behind a vLLM that has no reasoning parser:
            its text then holds the turns' markup, which is split here. Other servers refuse the field.

    Raises:
        EngineError: the endpoint cannot be reached, or lists no model or several and none was named.
        ConfigError: the URL cannot be used, or the key cannot be sent.
    """

    holds_letters = False

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
        self._base_url, self.base_url = base_url, str(parse_address(base_url))
        self._config = config
        self._lacks = ServerLacks(self.base_url, config.endpoint)
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
        "length", as the engines in the process do; one that the server refuses for another reason by such with
        "refused".

        Raises:
            EngineError: a request failed for good, or more of them than `endpoint.max_failed_fraction` were refused;
                requests under way are given up.
        """
        batches = plan_batches(requests, sampling.num_samples, self._config.batch_size, skip)
        # Enough batches under way to keep every connection busy while the oldest one waits for its last answer.
        num_ahead = 1 + -(-self._config.concurrency // self._config.batch_size)
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(
                self._connections(sum(map(len, batches)) * sampling.num_samples)
            ) as connections,
        ):
            under_way: deque[Future[list[Generation]]] = deque()
            waiting = deque(batches)
            held: list[
                list[Generation]
            ] = []  # handed on once it is known that not too many failed: a caller keeps them
            while waiting or under_way:
                if waiting and len(under_way) < num_ahead:
                    batch = waiting.popleft()
                    under_way.append(portal.start_task_soon(self._generate_batch, connections, batch, sampling))
                    continue
                found = under_way.popleft().result()
                held.append(found)
                if connections.failures.check(found):
                    yield from held
                    held = []

    @asynccontextmanager
    async def _connections(self, num_requests: int) -> AsyncIterator["_Connections"]:
        """The client; when the context ends, requests under way end before it: a connection that is being opened while
        its client is closed would stay open."""
        async with self._client() as client:
            failures = _Failures(self.base_url, num_requests, self._config.endpoint.max_failed_fraction)
            connections = _Connections(client, asyncio.Semaphore(self._config.concurrency), failures)
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
        seed = sample_seed(sampling.seed, request.request_id, sample)
        body = chat_body(self.model_name, request, sampling, seed, keep_markup=self._keep_markup)
        async with connections.slots:
            started = time.perf_counter()
            try:
                completion = await connections.client.complete(body, f"request {request.request_id}")
            except ContextExceededError as refusal:
                connections.failures.add(request, sample, "too_long", refusal.brief)
                return _failed(request, sample, "length")
            except RequestRefusedError as refusal:
                connections.failures.add(request, sample, "refused", refusal.brief)
                return _failed(request, sample, "refused")
            seconds = time.perf_counter() - started
        ending = completion.ending()
        if ending == "refused":
            words = f"{self.base_url}: request {request.request_id}: stopped by a content filter"
            connections.failures.add(request, sample, "refused", words)
            return _failed(request, sample, "refused")
        reason, answer = self._split(completion, request)
        return Generation(
            request_id=request.request_id,
            sample=sample,
            reason=reason,
            answer=answer,
            num_prompt_tokens=completion.num_prompt_tokens,
            num_output_tokens=completion.num_output_tokens,
            finish_reason=ending,
            seconds=seconds,
            p_a=completion.p_a(answer),
        )

    def _split(self, completion: Completion, request: GenerationRequest) -> tuple[str | None, str]:
        """(reason, answer) of a reply: split by the server, by its markup, or (a plain chat) all of it the answer."""
        if completion.reason is not None:
            return completion.reason.strip(), completion.content.strip()
        family = family_of_reply(completion.content)
        if family is not None or self._keep_markup or request.stop_at == "turn":
            # A request that ends with a reason turn opens the assistant's, whatever was asked for.
            role = "assistant" if request.messages[-1]["role"] == "reason" else request.opening_role
            return split_generation(completion.content, family or FAMILIES[0], role)
        return None, completion.content.strip()

    def close(self) -> None:
        """Nothing is held between calls."""

    def _client(self) -> OpenAIClient:
        config = self._config
        return OpenAIClient(
            self._base_url,
            lacks=self._lacks,
            key=os.environ.get(self._key_variable, ""),
            key_name=self._key_variable,
            timeout_seconds=config.timeout_seconds,
            connect_seconds=min(CONNECT_SECONDS, config.timeout_seconds),
            retries=Retries(config.max_retries, first_wait_seconds=FIRST_WAIT_SECONDS, log_level=logging.WARNING),
            after_retries="Look at the server, then start again: finished work is kept. engine.max_retries and "
            "engine.timeout_seconds give it more time.",
        )

    async def _only_model(self) -> str:
        async with self._client() as client:
            names = [model.name for model in await client.models()]
        if len(names) != 1:
            raise EngineError(
                f"{self.base_url}: lists {len(names)} models ({', '.join(names[:10])}); expected one. "
                "Name the model to ask."
            )
        return names[0]


def _failed(request: GenerationRequest, sample: int, ending: FinishReason) -> Generation:
    """What stands in the place of an answer that is not there."""
    reason = "" if request.opening_role == "reason" else None
    return Generation(request.request_id, sample, reason, "", 0, 0, ending, 0.0)
