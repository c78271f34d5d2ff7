"""Several awaitables at once: all results, or the first error once all the others have ended."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_or_cancel(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Like `asyncio.gather`, but nothing goes on behind the caller's back: at an error, or when the caller is
    cancelled, the others are cancelled and waited for.

    Returns:
        Results in the order of `works`.

    Raises:
        Exception: the first that a work raised, as it was.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
