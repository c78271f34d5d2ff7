"""The one way to wait for a server: look at intervals, and survive an outage of bounded length.

Reads at intervals have no connection that can break, and nothing that must be resumed after it did.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from reasongenrm.kubernetes import connection
from reasongenrm.kubernetes.connection import UnavailableError

logger = logging.getLogger(__name__)

OUTAGE_SECONDS = 600.0  # how long a server may be away (an upgrade) before whatever waits for it gives up

T = TypeVar("T")


class Outage:
    """Waits between attempts while a server is away, and gives up when that takes too long."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._num_waits = 0

    def end(self) -> None:
        """The server answered."""
        self._since, self._num_waits = None, 0

    def wait(self, error: UnavailableError, deadline: float = math.inf) -> None:
        """Sleep before the next attempt, twice as long each time.

        Raises:
            UnavailableError: `error`, if nothing was answered for OUTAGE_SECONDS or the deadline (monotonic) is over.
        """
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > OUTAGE_SECONDS or now >= deadline:
            raise error
        logger.warning("%s Still waiting.", error)
        seconds = connection.FIRST_WAIT_SECONDS * 2 ** min(self._num_waits, 6)
        self._num_waits += 1
        time.sleep(min(seconds, connection.MAX_WAIT_SECONDS, deadline - now))


def poll(look: Callable[[], T], seconds: float, deadline: float = math.inf) -> Iterator[T]:
    """Yield what `look` returns, every `seconds`, for as long as the caller asks for more.

    Args:
        deadline: as time.monotonic() counts. What is there then is yielded; the caller decides what that means.

    Raises:
        UnavailableError: nothing was answered for OUTAGE_SECONDS, or until the deadline.
    """
    outage = Outage()
    while True:
        try:
            found = look()
        except UnavailableError as error:
            outage.wait(error, deadline)
            continue
        outage.end()
        yield found
        time.sleep(max(0.0, min(seconds, deadline - time.monotonic())))
