"""Waiting for a server: every look is yielded, an outage is survived, and no longer than it may last."""

import math
import time
from collections.abc import Callable

import pytest

from reasongenrm.kubernetes import connection, waiting
from reasongenrm.kubernetes.connection import ForbiddenError, UnavailableError
from reasongenrm.kubernetes.waiting import poll


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)


def looks(*results: int | Exception) -> Callable[[], int]:
    """A look that gives these results one after the other, and the last one forever."""
    left = list(results)

    def look() -> int:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    return look


def test_every_look_is_yielded_and_an_outage_between_two_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    away = UnavailableError("the server is away.")
    found = []
    for number in poll(looks(1, away, away, 2, 3), 0.001):
        found.append(number)
        if number == 3:
            break
    assert found == [1, 2, 3]
    assert caplog.messages == ["the server is away. Still waiting."] * 2


@pytest.mark.parametrize(("outage", "deadline"), [(0.05, math.inf), (600.0, 0.05)])
def test_outage_that_lasts_too_long_is_an_error(
    monkeypatch: pytest.MonkeyPatch, outage: float, deadline: float
) -> None:
    monkeypatch.setattr(waiting, "OUTAGE_SECONDS", outage)
    with pytest.raises(UnavailableError, match="away"):
        list(poll(looks(UnavailableError("away")), 0.001, time.monotonic() + deadline))


def test_what_does_not_pass_is_raised_at_once() -> None:
    with pytest.raises(ForbiddenError, match="may not"):
        next(poll(looks(ForbiddenError("may not"), 1), 0.001))
