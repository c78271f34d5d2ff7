"""A judge service from Python: `Judge` in ordinary code, `AsyncJudge` in coroutines.

    with Judge("http://127.0.0.1:8080") as judge:
        judge.compare("Name a prime.", "7", "9").preferred  # "A"

`AsyncJudge` does the work; `Judge` runs it in a loop of its own (a notebook has one running already), so that both do
the same. Records are those of `api`; neither torch nor kserve is needed.
"""

import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic import BaseModel, ValidationError

from reasongenrm.errors import mistake_in
from reasongenrm.judge.api import (
    ListwiseRequest,
    ListwiseResponse,
    OrderJudgment,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
    QuestionTurn,
    ReasonDelta,
)
from reasongenrm.judge.client.client_errors import JudgeClientError, JudgeRequestError
from reasongenrm.judge.client.client_http import JudgeHttp

__all__ = ["AsyncJudge", "Judge", "Options"]

DEFAULT_TIMEOUT_SECONDS = 300.0  # of one attempt; a list of 32 answers is some 130 comparisons
DEFAULT_CONCURRENCY = 16

Question = str | Sequence[QuestionTurn | Mapping[str, str]]
Request = PairwiseRequest | ListwiseRequest | PointwiseRequest
JudgeAnswer = PairwiseResponse | ListwiseResponse | PointwiseResponse
AnswerTexts = PairwiseRequest | tuple[Question, str, str]
StreamEvent = ReasonDelta | OrderJudgment | PairwiseResponse
ErrorsToReturn = bool | type[JudgeClientError]
OnDone = Callable[[int, JudgeAnswer | JudgeClientError], None]
_Record = TypeVar("_Record", bound=BaseModel)
_Result = TypeVar("_Result")
_P = ParamSpec("_P")

_ROUTES: dict[type[Request], tuple[str, type[JudgeAnswer]]] = {
    PairwiseRequest: ("/v1/pairwise", PairwiseResponse),
    ListwiseRequest: ("/v1/listwise", ListwiseResponse),
    PointwiseRequest: ("/v1/pointwise", PointwiseResponse),
}


class Options(TypedDict, total=False):
    """What every judgment takes in addition to question and answers; `api.JudgeOptions` says what each one means."""

    rubric: str | None
    votes: int
    temperature: float
    both_orders: bool
    max_tokens: int | None
    seed: int
    when_too_long: Literal["refuse", "truncate"]


class AsyncJudge:
    """A judge service, asked from coroutines. One object is one pool of connections: keep it, close it at the end.

    Args:
        url: the service's root, such as "http://127.0.0.1:8080", without "/v1".
        api_key: the judge's key; None reads the environment variable JUDGE_API_KEY, which may be unset.
        timeout: seconds that one attempt may take; of a stream: between two of its parts.
        max_retries: further attempts after a 429, a 503 or a lost connection; they wait as long as the server asks.

    Raises:
        ConfigError: the URL or the key cannot be used.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_SECONDS, max_retries: int = 6
    ) -> None:
        self._http = JudgeHttp(url, api_key, timeout, max_retries)
        self.url = self._http.url

    async def compare(
        self, question: Question, answer_a: str, answer_b: str, **options: Unpack[Options]
    ) -> PairwiseResponse:
        """Which of two answers is better.

        Args:
            question: a text, or a conversation that the answers are the next turn of: `QuestionTurn`s or {"role",
                "content"}.

        Raises:
            JudgeClientError: no judgment; its subclasses say why (see `client_errors`).
        """
        return await self.ask(_pair(question, answer_a, answer_b, options))

    async def rank(
        self,
        question: Question,
        answers: Sequence[str],
        *,
        max_comparisons: int | None = None,
        **options: Unpack[Options],
    ) -> ListwiseResponse:
        """Rank 2 to 32 answers by a tournament of pairs (see `compare`)."""
        fields = {"answers": list(answers), "max_comparisons": max_comparisons}
        return await self.ask(_checked(ListwiseRequest, question, fields, options))

    async def score(
        self, question: Question, answer: str, reference: str | None = None, **options: Unpack[Options]
    ) -> PointwiseResponse:
        """Score one answer in [0, 1] against a reference answer, or against the server's anchor (see `compare`)."""
        return await self.ask(_checked(PointwiseRequest, question, {"answer": answer, "reference": reference}, options))

    @overload
    async def ask(self, request: PairwiseRequest, request_id: str | None = None) -> PairwiseResponse: ...
    @overload
    async def ask(self, request: ListwiseRequest, request_id: str | None = None) -> ListwiseResponse: ...
    @overload
    async def ask(self, request: PointwiseRequest, request_id: str | None = None) -> PointwiseResponse: ...
    async def ask(self, request: Request, request_id: str | None = None) -> JudgeAnswer:
        """Send a request of `api` as it is; `request_id` comes back as the answer's id and stands in the server's
        log."""
        path, record = _ROUTES[type(request)]
        if isinstance(request, PairwiseRequest) and request.stream:
            message = "stream is true; expected false. Use `stream` for a stream of events."
            raise JudgeRequestError(message, code="invalid")
        return await self._http.post(path, request, record, request_id)

    async def ask_many(
        self,
        requests: Iterable[Request],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        return_errors: ErrorsToReturn = False,
        on_done: OnDone | None = None,
    ) -> list[Any]:
        """Ask many requests, at most `concurrency` at a time; answers come in the order of the requests.

        Args:
            return_errors: which errors stand in the place of an answer: all, none, or those of one class. Another one
                is raised, and what is under way is given up.
            on_done: called with the request's number and its answer or error, when that is there.
        """
        kept = JudgeClientError if return_errors is True else return_errors or ()
        waiting = enumerate(requests)
        found: dict[int, JudgeAnswer | JudgeClientError] = {}
        failed: list[JudgeClientError] = []

        async def work() -> None:
            for number, request in waiting:  # one iterator, shared: each worker takes the next request
                try:
                    answer: JudgeAnswer | JudgeClientError = await self.ask(request)
                except JudgeClientError as error:
                    if not isinstance(error, kept):
                        failed.append(error)
                        group.cancel_scope.cancel()
                        return
                    answer = error
                found[number] = answer
                if on_done is not None:
                    on_done(number, answer)

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(work)
        if failed:
            raise failed[0]
        return [found[number] for number in range(len(found))]

    async def compare_many(
        self,
        pairs: Iterable[AnswerTexts],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        return_errors: ErrorsToReturn = False,
        on_done: OnDone | None = None,
        **options: Unpack[Options],
    ) -> list[Any]:
        """Compare many pairs, (question, answer_a, answer_b) or `PairwiseRequest`s; see `ask_many`.

        `options` are for the pairs that are tuples.
        """
        requests = (pair if isinstance(pair, PairwiseRequest) else _pair(*pair, options) for pair in pairs)
        return await self.ask_many(requests, concurrency=concurrency, return_errors=return_errors, on_done=on_done)

    async def stream(
        self, question: Question, answer_a: str, answer_b: str, **options: Unpack[Options]
    ) -> AsyncIterator[StreamEvent]:
        """Compare two answers and see the reasons as they are written.

        Yields:
            `ReasonDelta`s and, as each generation ends, its `OrderJudgment`; the `PairwiseResponse` last.

        Raises:
            JudgeClientError: also in the middle, if the judge gives up or the connection is lost.
        """
        request = _pair(question, answer_a, answer_b, options).model_copy(update={"stream": True})
        async for event in self._http.stream("/v1/pairwise", request):
            yield event

    async def ready(self) -> bool:
        """Whether the judge and the predictor behind it can answer now. False too if nothing listens at the URL."""
        return await self._http.ready()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _blocking(
    method: Callable[Concatenate[AsyncJudge, _P], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate["Judge", _P], _Result]:
    """A method of `AsyncJudge` as one of `Judge`, with the same arguments and documentation."""

    @wraps(method)
    def call(self: "Judge", *args: _P.args, **options: _P.kwargs) -> _Result:
        return self._run(lambda: method(self._judge, *args, **options))

    return call


class Judge:
    """A judge service, asked from ordinary code and from any thread; arguments and methods as in `AsyncJudge`.

    Without `with` or `close` the connections stay open until the program ends.
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout: float = DEFAULT_TIMEOUT_SECONDS, max_retries: int = 6
    ) -> None:
        self._judge = AsyncJudge(url, api_key, timeout=timeout, max_retries=max_retries)
        self.url = self._judge.url
        self._lock = threading.Lock()
        self._context: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None

    compare = _blocking(AsyncJudge.compare)
    rank = _blocking(AsyncJudge.rank)
    score = _blocking(AsyncJudge.score)
    ready = _blocking(AsyncJudge.ready)
    # What these are given runs in the judge's own thread: the requests' or pairs' iterator, and `on_done`.
    ask_many = _blocking(AsyncJudge.ask_many)
    compare_many = _blocking(AsyncJudge.compare_many)

    @overload
    def ask(self, request: PairwiseRequest, request_id: str | None = None) -> PairwiseResponse: ...
    @overload
    def ask(self, request: ListwiseRequest, request_id: str | None = None) -> ListwiseResponse: ...
    @overload
    def ask(self, request: PointwiseRequest, request_id: str | None = None) -> PointwiseResponse: ...
    def ask(self, request: Request, request_id: str | None = None) -> JudgeAnswer:
        """See `AsyncJudge.ask`."""
        return self._run(lambda: self._judge.ask(request, request_id))

    def stream(
        self, question: Question, answer_a: str, answer_b: str, **options: Unpack[Options]
    ) -> Iterator[StreamEvent]:
        """See `AsyncJudge.stream`. Leaving the loop over it early tells the judge to stop."""
        events = self._judge.stream(question, answer_a, answer_b, **options)
        try:
            while (event := self._run(lambda: anext(events, None))) is not None:
                yield event
        finally:
            self._run(events.aclose)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the connections and end the thread. A closed judge can be asked again; it then reopens both."""
        with self._lock:
            portal, context, self._portal, self._context = self._portal, self._context, None, None
        if portal is not None and context is not None:
            portal.call(self._judge.aclose)
            context.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Callable[[], Any]) -> Any:
        with self._lock:
            if self._portal is None:
                self._context = start_blocking_portal()
                self._portal = self._context.__enter__()
            portal = self._portal

        async def run() -> Any:
            return await call()

        future = portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting: the request goes with it
            raise


def _checked(
    record: type[_Record], question: Question, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> _Record:
    """A request; what it may not hold is refused here, in the words of the client's other errors."""
    try:
        return record(question=question if isinstance(question, str) else list(question), **fields, **options)
    except ValidationError as error:
        mistake = mistake_in(error)
        message = f"the request cannot be sent: {mistake}. See reasongenrm.judge.api for what it may hold."
        raise JudgeRequestError(message, code="invalid", param=mistake.field) from error


def _pair(question: Question, answer_a: str, answer_b: str, options: Mapping[str, Any]) -> PairwiseRequest:
    return _checked(PairwiseRequest, question, {"answer_a": answer_a, "answer_b": answer_b}, options)
