"""Many small events as few batches: a page is not redrawn for every token."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")
REDRAW_SECONDS = 0.1  # ten times a second reads as flowing


async def paced(events: AsyncIterator[T], seconds: float = REDRAW_SECONDS) -> AsyncGenerator[list[T], None]:
    """What came since the last batch, at most once in `seconds`; nothing is held back longer than that.

    Whoever stops reading closes the source too.
    """
    queue: asyncio.Queue[T | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for event in events:
                queue.put_nowait(event)
        finally:
            queue.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        ended = False
        while not ended:
            batch = [await queue.get()]
            while not queue.empty():
                batch.append(queue.get_nowait())
            ended = None in batch
            if found := [event for event in batch if event is not None]:
                yield found
            if not ended:
                await asyncio.sleep(seconds)
        await reader
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await reader
