"""All results in order, or the first error with nothing left running."""

import asyncio

import pytest

from reasongenrm.processes.gathering import gather_or_cancel


async def later(value: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return value


def test_results_come_in_the_order_asked() -> None:
    assert asyncio.run(gather_or_cancel([later(1, 0.02), later(2, 0)])) == [1, 2]


def test_first_error_ends_the_others_before_it_is_raised() -> None:
    ended: list[str] = []

    async def waits() -> int:
        try:
            return await later(1, 60)
        finally:
            ended.append("waits")

    async def fails() -> int:
        try:
            raise KeyError("why")
        except KeyError as error:
            raise ValueError("no") from error

    with pytest.raises(ValueError, match="no") as caught:
        asyncio.run(gather_or_cancel([waits(), fails()]))
    assert ended == ["waits"]
    assert isinstance(caught.value.__cause__, KeyError)
