"""The predictor as the judge sees it: one generation at a time over pooled connections, streamed or whole.

In goes what to ask, out comes a reply with reason, content, P([[A]]) and counts; what the endpoint's client finds wrong
becomes what the judge answers instead. Cancelling the task that waits closes the connection, which ends the generation.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Self

import aiohttp

from reasongenrm.generation.chat_completions import Completion, chat_body, join_parts
from reasongenrm.generation.openai_client import (
    ContextExceededError,
    EndpointAwayError,
    EndpointBusyError,
    EndpointError,
    EndpointRefusedError,
    EndpointTimeoutError,
    FilteredError,
    ModelCard,
    OpenAIClient,
)
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, sample_seed
from reasongenrm.http_client import Retries
from reasongenrm.judge.refusals import (
    FilteredTextError,
    OverloadedError,
    PredictorRefusedError,
    PredictorTimeoutError,
    PredictorUnavailableError,
    TooFewTokensError,
)

PATIENCE_SECONDS = 5.0  # with a predictor that cannot be reached: a Service whose endpoints change is back in less
CONNECT_SECONDS = 3.0
RETRY_AFTER_SECONDS = 5  # told to the caller when the predictor is away: it loads a model
MIN_PACE_TOKENS = 8  # a shorter generation is mostly its prompt and tells nothing of the speed
PACE_WEIGHT = 0.2  # of the newest generation
DEADLINE_FACTOR = 3.0  # the slowest of many generations at once, against their mean
KEY_VARIABLE = "VLLM_API_KEY"  # the predictor's, under vLLM's own name

OnReason = Callable[[str], Awaitable[None]]


class Pace:
    """How fast a predictor writes under the load that it has: a moving mean over its generations.

    Args:
        least_seconds: of any deadline.
    """

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._seconds_per_token: float | None = None

    def add(self, num_tokens: int, seconds: float) -> None:
        """A generation of `num_tokens` output tokens took `seconds`, waiting included."""
        if num_tokens < MIN_PACE_TOKENS:
            return
        new = seconds / num_tokens
        old = new if self._seconds_per_token is None else self._seconds_per_token
        self._seconds_per_token = old + PACE_WEIGHT * (new - old)

    def deadline_seconds(self, max_tokens: int) -> float:
        """What a generation of up to `max_tokens` gets: DEADLINE_FACTOR times as long as it takes at this pace."""
        return max(self._least_seconds, DEADLINE_FACTOR * max_tokens * (self._seconds_per_token or 0.0))


class Predictor:
    """An OpenAI-compatible server. An async context manager: the connections live as long as it does.

    Args:
        url: up to and including /v1.
        model: the model to ask for; None: the only one that is listed, asked for at first use.
        key: sent as a bearer token; None: none.
        timeout_seconds: of one generation, and more where its `max_tokens` take longer at the measured speed (`Pace`).
        max_concurrency: generations under way at once; more wait here.

    Raises:
        ConfigError: the URL cannot be used, or the key cannot be sent.
    """

    def __init__(
        self, url: str, model: str | None, key: str | None, timeout_seconds: float, max_concurrency: int
    ) -> None:
        self._model, self._card = model, None if model is None else ModelCard(model, None)
        self._pace = Pace(timeout_seconds)
        self._slots = asyncio.Semaphore(max_concurrency)
        self._client = OpenAIClient(
            url,
            key=key or "",
            key_name=KEY_VARIABLE,
            timeout_seconds=timeout_seconds,
            connect_seconds=CONNECT_SECONDS,
            retries=Retries(within_seconds=PATIENCE_SECONDS, first_wait_seconds=0.1, max_wait_seconds=0.8, jitter=0.25),
            passing=(EndpointAwayError,),
        )
        self.url = self._client.base_url

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def card(self) -> ModelCard:
        """The model that is asked, looked up once.

        Raises:
            PredictorUnavailableError, PredictorRefusedError: no list of models, or none that fits.
            PredictorTimeoutError: no list in time.
        """
        if self._card is None or (self._model is not None and self._card.max_model_len is None):
            with self._as_refusals():
                cards = await self._client.models()
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
                await self._client.models()
        except (EndpointError, TimeoutError):
            return False
        return True

    async def complete(
        self,
        request: GenerationRequest,
        sample: int,
        sampling: Sampling,
        choices: Sequence[str] = (),
        on_reason: OnReason | None = None,
    ) -> Generation:
        """Have one sample of a request written.

        Args:
            choices: all that the answer may be; () leaves it free.
            on_reason: called with each piece of the reason, which is streamed then.

        Returns:
            With finish_reason "length" if the generation, or its reason, was cut off, "refused" if a content filter
            ended it.

        Raises:
            ContextExceededError: it does not fit into the model's context.
            PredictorUnavailableError: it cannot be reached for PATIENCE_SECONDS, or it broke off.
            PredictorTimeoutError, OverloadedError, FilteredTextError, PredictorRefusedError: what it answered instead.
        """
        card = await self.card()
        seed = sample_seed(sampling.seed, request.request_id, sample)
        body = chat_body(card.name, request, sampling, seed, choices=choices)
        async with self._slots:
            started = time.perf_counter()
            deadline = self._pace.deadline_seconds(sampling.max_tokens)
            with self._as_refusals():
                if on_reason is None:
                    completion = await self._client.complete(body, timeout_seconds=deadline)
                else:
                    parts: list[Completion] = []
                    body |= {"stream_options": {"include_usage": True}}
                    async with aclosing(self._client.stream(body, timeout_seconds=deadline)) as pieces:
                        async for part in pieces:
                            parts.append(part)
                            if part.reason:
                                await on_reason(part.reason)
                    completion = join_parts(parts)
        seconds = time.perf_counter() - started
        self._pace.add(completion.num_output_tokens, seconds)
        ending = completion.ending()
        content = "" if ending == "refused" else completion.content.strip()  # what a filter left is no answer
        return Generation(
            request_id=request.request_id,
            sample=sample,
            reason=None if completion.reason is None else completion.reason.strip(),
            answer=content,
            num_prompt_tokens=completion.num_prompt_tokens,
            num_output_tokens=completion.num_output_tokens,
            finish_reason=ending,
            seconds=seconds,
            p_a=completion.p_a(content) if content else None,
        )

    @asynccontextmanager
    async def forward(self, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """Hand a chat completion request on as it is; the response is the caller's to read.

        Raises:
            PredictorUnavailableError: it cannot be reached for PATIENCE_SECONDS.
        """
        async with self._slots:
            with self._as_refusals():
                response = await self._client.forward(body)
            async with response:
                yield response

    @contextmanager
    def _as_refusals(self) -> Iterator[None]:
        """What the client raises, as what the judge answers; a context that is exceeded is the caller's to cut."""
        where = f"the predictor at {self.url}"
        try:
            yield
        except ContextExceededError:
            raise
        except EndpointAwayError as error:
            message = f"{where} cannot be reached ({error.found}). It may be starting; ask again in some seconds."
            raise PredictorUnavailableError(message, retry_after_seconds=RETRY_AFTER_SECONDS) from error
        except EndpointTimeoutError as error:
            message = f"{where} did not finish: {error.found}. Ask for fewer votes or tokens, or allow a longer time."
            raise PredictorTimeoutError(message) from error
        except EndpointBusyError as error:
            seconds = RETRY_AFTER_SECONDS if error.retry_after_seconds is None else math.ceil(error.retry_after_seconds)
            message = f"{where} has too much to do. Ask again later."
            raise OverloadedError(message, retry_after_seconds=seconds) from error
        except FilteredError as error:
            message = f"{where} refuses these texts: {error.found}. Other texts may pass."
            raise FilteredTextError(message) from error
        except EndpointError as error:
            if isinstance(error, EndpointRefusedError) and error.param in ("max_tokens", "max_completion_tokens"):
                message = f"the predictor refuses this max_tokens: {error.found}"
                raise TooFewTokensError(message, param="max_tokens") from error
            raise PredictorRefusedError(
                f"{where} did not give a completion: {error.found}. Ask the judge's operator to look at the "
                f"predictor: its log, its model's name, and the key in {KEY_VARIABLE}."
            ) from error
