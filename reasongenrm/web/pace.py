"""Batches many small events, so that a page is not redrawn for every token."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")
REDRAW_SECONDS = 0.1  # ten times per second reads as flowing
IDLE_SECONDS = 1.0  # gradio sees that a visitor has left when the next state comes, so one must come now and then


async def paced(
    events: AsyncIterator[T], seconds: float = REDRAW_SECONDS, idle_seconds: float = IDLE_SECONDS
) -> AsyncGenerator[list[T], None]:
    """What came since the last batch, at most once in `seconds`; nothing is held back longer than that.

    While nothing comes there is an empty batch every `idle_seconds`. A reader that stops closes the source, too.
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
            try:
                batch = [await asyncio.wait_for(queue.get(), idle_seconds)]
            except TimeoutError:
                yield []
                continue
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
