"""A judgment as server-sent events: bytes in, events out.

An event ends at an empty line; a line ends with LF or CRLF and with nothing else: JSON may hold U+2028 and other
characters at which `str.splitlines` (and httpx's `aiter_lines`) would break it.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from collections.abc import AsyncIterator
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from reasongenrm.judge.api import Order


class ReasonDelta(BaseModel):
    """A piece of a reason: which order's, which vote's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order
    vote: int
    delta: str


class ServerEvent(NamedTuple):
    """One event: its name ("message" if it has none) and its data."""

    name: str
    data: str


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The events in a stream of bytes. One that the stream ends within is dropped, as the standard wants it."""
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
