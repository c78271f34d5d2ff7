"""Waiting for what another thread or process does. Its time-out is for hangs alone: no test asks how fast a machine
is."""

import time
from collections.abc import Callable

HANG_SECONDS = 600.0


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when something holds; fail when it still does not after HANG_SECONDS."""
    deadline = time.monotonic() + HANG_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.005)
