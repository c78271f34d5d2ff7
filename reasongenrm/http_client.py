"""What our HTTP clients do alike: addresses, a key as a header, waits between attempts, server-sent events.

An event ends at an empty line; a line ends with LF or CRLF and with nothing else: JSON may hold U+2028 and other
characters at which `str.splitlines` would break it.

Sources: RFC 3986 (URLs); RFC 7617 (a user and a password as a header); RFC 9110, section 10.2.3 (Retry-After);
WHATWG HTML, section 9.2 "Server-sent events".
"""

import base64
import email.utils
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_after_delay

from reasongenrm.errors import ConfigError

MAX_WAIT_SECONDS = 60.0  # also of a server's Retry-After
MAX_LINE_BYTES = 4 * 2**20  # of a streamed event


class AttemptError(Exception):
    """A request that got no answer.

    Attributes:
        brief: where and what was found, for the line that says that it is sent again.
        retry_after_seconds: when the server wants to be asked again, if it said so.
    """

    brief = ""
    retry_after_seconds: float | None = None


class LongLineError(ValueError):
    """A line of a stream has more than MAX_LINE_BYTES."""


class ServerEvent(NamedTuple):
    """One event: its name ("message" if it has none) and its data."""

    name: str
    data: str


@dataclass(frozen=True)
class Address:
    """An http(s):// URL in its parts. Make it with `parse_address`.

    Attributes:
        root: scheme, host, port and path, without a slash at its end, a query, a user or a password.
        query: such as "api-version=2024-10-21"; "" if there is none.
        headers: the user and the password of the URL as a header; none if it has neither.
    """

    root: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """The URL for logs, records and messages: no user, no password."""
        return self.at("")

    def at(self, path: str) -> str:
        """The URL of what lies below, with the query; `path` begins with a slash."""
        return f"{self.root}{path}?{self.query}" if self.query else f"{self.root}{path}"


def parse_address(text: str, example: str = "http://127.0.0.1:8000/v1") -> Address:
    """Take a server's URL apart.

    Args:
        example: what is expected, for messages.

    Raises:
        ConfigError: no URL of a server; the message has no user and no password.
    """
    found = None
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        # urllib's own words quote what it takes for a port, which may be half a password.
        port_is_bad = "port" in str(error).lower()
        found = "its port is no number from 1 to 65535" if port_is_bad else "it cannot be read as a URL"
    else:
        if not text.isprintable() or " " in text:
            found = "it holds a space or a line break"
        elif parts.scheme not in ("http", "https"):
            found = "it does not begin with http:// or https://"
        elif not host:
            found = "it has no host"
        elif port == 0:
            found = "its port is no number from 1 to 65535"
        elif parts.fragment:
            found = "it has a part after #, which no server gets to see"
    if found is not None:
        raise ConfigError(f"{without_login(text)!r}: {found}; expected a URL such as {example}. Correct it.")
    login, _, place = parts.netloc.rpartition("@")
    headers = {}
    if login:
        pair = ":".join(unquote(part) for part in login.partition(":")[::2]).encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return Address(f"{parts.scheme}://{place}{parts.path.rstrip('/')}", parts.query, headers)


def without_login(text: str) -> str:
    """A URL, or what was meant as one, without all that may be a user and a password."""
    return re.sub(r"^\s*([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1", text, flags=re.DOTALL)


def words_of(text: str) -> str:
    """What a reply says for people: the innermost message of JSON in one of the servers' shapes, else the text as it
    is; on one line, without the full stop at its end."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    while isinstance(found, dict | list) and found:
        if isinstance(found, list):  # FastAPI's list of mistakes
            found = found[0]
            continue
        found = next((found[name] for name in ("error", "message", "detail", "msg") if found.get(name)), None)
        if isinstance(found, str):
            return words_of(found)
    return " ".join(text.split()).rstrip(".")


def bearer(key: str, name: str) -> dict[str, str]:
    """The header that carries a key; none for "".

    Args:
        name: where the key comes from, such as the environment variable: the key itself is never printed.

    Raises:
        ConfigError: no header can carry the key.
    """
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{name}: holds a line break or another character that no HTTP header can carry; expected a key. "
            "Set it again without what was copied along with it."
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def retry_after_seconds(value: str | None) -> float | None:
    """A Retry-After header, which is a number of seconds or a date; None if it is neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


@dataclass(frozen=True)
class Retries:
    """When a request that failed is sent again.

    The wait doubles at every attempt; it is as long as the server asks if that is longer, and never longer than
    MAX_WAIT_SECONDS.
    """

    num: int | None = None  # further attempts; None: as many as begin within `within_seconds`
    within_seconds: float = 0.0  # counted from the first attempt
    first_wait_seconds: float = 0.5  # before the second attempt
    max_wait_seconds: float = MAX_WAIT_SECONDS  # of the waits that the server did not ask for
    # The fraction of a wait that is added at random: clients that were refused together do not come back together.
    jitter: float = 0.0
    log_level: int = logging.INFO  # of the line that says what is tried again

    def retrying(
        self, passing: type[AttemptError] | tuple[type[AttemptError], ...], logger: logging.Logger
    ) -> AsyncRetrying:
        """What calls a coroutine function until it succeeds, and raises its last error.

        Args:
            passing: errors that may pass.
        """
        return AsyncRetrying(
            retry=retry_if_exception_type(passing),
            stop=stop_after_delay(self.within_seconds) if self.num is None else stop_after_attempt(self.num + 1),
            wait=self._wait_seconds,
            before_sleep=self._log(logger),
            reraise=True,
        )

    def _wait_seconds(self, state: RetryCallState) -> float:
        growing = min(self.max_wait_seconds, self.first_wait_seconds * 2 ** (state.attempt_number - 1))
        asked = _error_of(state).retry_after_seconds or 0.0
        return min(MAX_WAIT_SECONDS, max(growing, asked)) * random.uniform(1.0, 1.0 + self.jitter)

    def _log(self, logger: logging.Logger) -> Callable[[RetryCallState], None]:
        of_all = "" if self.num is None else f" of {self.num + 1}"

        def log(state: RetryCallState) -> None:
            assert state.next_action is not None
            brief, next_one = _error_of(state).brief, state.attempt_number + 1
            logger.log(self.log_level, "%s; attempt %d%s in %.1f s", brief, next_one, of_all, state.next_action.sleep)

        return log


def _error_of(state: RetryCallState) -> AttemptError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, AttemptError)
    return error


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The events in a stream of bytes. One that the stream ends within is dropped, as the standard wants it.

    Raises:
        LongLineError: a line is too long to be read whole.
    """
    rest = b""
    name = "message"
    data: list[str] = []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode("utf-8", "replace")
            if not text:
                if data:
                    yield ServerEvent(name, "\n".join(data))
                name, data = "message", []
                continue
            field, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
        if len(rest) > MAX_LINE_BYTES:
            raise LongLineError(f"a line has more than {MAX_LINE_BYTES} bytes")
