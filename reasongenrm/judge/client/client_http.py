"""The client's HTTP: one connection pool, retries, responses turned into JSON or errors."""

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import httpx
from pydantic import BaseModel, ValidationError

from reasongenrm.errors import ConfigError, mistake_in
from reasongenrm.http_client import (
    Address,
    AttemptError,
    LongLineError,
    Retries,
    bearer,
    parse_address,
    read_events,
    retry_after_seconds,
)
from reasongenrm.judge.api import ErrorDetail, OrderJudgment, PairwiseResponse, ReasonDelta
from reasongenrm.judge.client.client_errors import (
    JudgeClientError,
    JudgeUnavailableError,
    NotAJudgeError,
    error_of_detail,
    error_of_reply,
)

logger = logging.getLogger(__name__)

KEY_VARIABLE = "JUDGE_API_KEY"
FIRST_WAIT_SECONDS = 0.25  # doubled at every retry: six retries wait 16 s in all, as long as a predictor restarts
JITTER = 0.25  # of a wait: clients that were refused together do not come back together
CONNECT_SECONDS = 10.0
MAX_CONNECTIONS = 512

_Record = TypeVar("_Record", bound=BaseModel)
_EVENTS: dict[str, type[BaseModel]] = {
    "reason": ReasonDelta,
    "judgment": OrderJudgment,
    "result": PairwiseResponse,
    "error": ErrorDetail,
}


class _Transient(AttemptError):
    """A failure that may pass; `error` is what it becomes if it does not."""

    def __init__(self, error: JudgeClientError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.brief, self.retry_after_seconds = error, str(error), after


class JudgeHttp:
    """Requests to one judge (see `AsyncJudge` for the arguments)."""

    def __init__(self, url: str, api_key: str | None, timeout: float, max_retries: int) -> None:
        address = _root(url)
        self.url = str(address)
        self._timeout = timeout
        retries = Retries(max_retries, first_wait_seconds=FIRST_WAIT_SECONDS, jitter=JITTER)
        self._retry = retries.retrying(_Transient, logger)
        key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
        self._headers = {**bearer(key, f"the judge's key (api_key or {KEY_VARIABLE})"), **address.headers}
        self._client: httpx.AsyncClient | None = None

    async def post(self, path: str, request: BaseModel, kind: type[_Record], request_id: str | None) -> _Record:
        """POST with retries; the record that the reply is."""
        reply: bytes = await self._retrying(self._post, path, _json(request), request_id)
        try:
            return kind.model_validate_json(reply)
        except ValidationError as error:
            raise _not_a_judge(self.url + path, f"the reply is no {kind.__name__}: {mistake_in(error)}") from error

    async def stream(self, path: str, request: BaseModel) -> AsyncIterator[Any]:
        """POST, retried until the stream begins; the records of its events, up to and including the result."""
        response = await self._retrying(self._open_stream, path, _json(request))
        where = self.url + path
        request_id = response.headers.get("x-request-id")
        try:
            async for event in read_events(response.aiter_bytes()):
                if event.name not in _EVENTS:
                    continue
                try:
                    record = _EVENTS[event.name].model_validate_json(event.data)
                except ValidationError as error:
                    raise _not_a_judge(where, f"its event {event.name!r} is wrong: {mistake_in(error)}") from error
                if isinstance(record, ErrorDetail):
                    raise error_of_detail(where, record, None, record.request_id or request_id)
                yield record
                if isinstance(record, PairwiseResponse):
                    return
        except (httpx.RequestError, LongLineError) as error:
            raise _unavailable(where, f"the stream broke off ({type(error).__name__}: {error})", request_id) from error
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
        raise _unavailable(where, "the stream ended without a result", request_id)

    async def ready(self) -> bool:
        """GET /readyz, once."""
        try:
            return (await self._opened().get("/readyz")).status_code == 200
        except httpx.RequestError:
            return False

    async def aclose(self) -> None:
        """Close the connections; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                # Waiting for a free connection is no failure: as many requests as the caller wants.
                timeout=httpx.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout), pool=None),
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            )
        return self._client

    async def _retrying(self, attempt: Any, path: str, *rest: Any) -> Any:
        try:
            return await self._retry(attempt, path, *rest)
        except _Transient as failure:
            raise failure.error from failure.__cause__

    async def _post(self, path: str, body: Mapping[str, Any], request_id: str | None) -> bytes:
        where = self.url + path
        headers = {"X-Request-ID": request_id} if request_id else None
        try:
            with anyio.fail_after(self._timeout), _lost_connections(where):
                response = await self._opened().post(path, json=body, headers=headers)
        except TimeoutError:
            raise _unavailable(where, f"no reply within {self._timeout:g} s", request_id) from None
        _raise_for_status(where, response)
        return response.content

    async def _open_stream(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        where = self.url + path
        client = self._opened()
        with _lost_connections(where):
            response = await client.send(client.build_request("POST", path, json=body), stream=True)
            kind = response.headers.get("content-type", "")
            if response.status_code != 200 or not kind.startswith("text/event-stream"):
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        _raise_for_status(where, response)
        if response.is_closed:
            raise _not_a_judge(where, "the reply is no stream of events")
        return response


def _json(request: BaseModel) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude_unset=True)


@contextmanager
def _lost_connections(where: str) -> Iterator[None]:
    """What httpx raises, sorted: what may pass, what is the URL's fault, what took too long."""
    try:
        yield
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise _not_a_judge(where, str(error)) from error
    except httpx.ConnectTimeout as error:
        raise _Transient(_unavailable(where, "no connection in time")) from error
    except httpx.TimeoutException as error:
        raise _unavailable(where, f"no reply in time ({type(error).__name__})") from error
    except httpx.RequestError as error:
        raise _Transient(_unavailable(where, f"{type(error).__name__}: {error}")) from error


def _raise_for_status(where: str, response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    error = error_of_reply(where, response)
    if response.status_code in (429, 503):
        raise _Transient(error, retry_after_seconds(response.headers.get("retry-after")))
    raise error


def _unavailable(where: str, what: str, request_id: str | None = None) -> JudgeUnavailableError:
    message = f"{where}: {what}. Is the judge running (`reasongenrm serve --judge`), and is this its address?"
    return JudgeUnavailableError(message, code="unavailable", request_id=request_id)


def _not_a_judge(where: str, what: str) -> NotAJudgeError:
    message = f"{where}: {what}; expected a judge of this version of reasongenrm. Check the URL and its version."
    return NotAJudgeError(message, code="not_a_judge")


def _root(url: str) -> Address:
    address = parse_address(url, "http://127.0.0.1:8080")
    if address.root.endswith("/v1") or address.query:
        raise ConfigError(
            f"'{address}' is no judge's address; expected its root, such as http://127.0.0.1:8080, without /v1 and "
            "without a query. Correct it."
        )
    return address
