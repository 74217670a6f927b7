"""What lasts, as one writes it for an event loop."""

import asyncio
from collections.abc import AsyncIterator

from frameworks.patterns.life import PATIENCE, TICK
from journal import record
from released import wait_released_async

from engine_bridge import engine

jobs: asyncio.Queue[str | None] = asyncio.Queue()


async def events() -> AsyncIterator[bytes]:
    """Yield an event, and nothing more for ever."""
    yield TICK
    await asyncio.Event().wait()


async def wait_for_news() -> bool:
    """Return whether there is news, which there never is; False when the engine drains."""
    record("polling")
    return not await engine.draining.wait_async(PATIENCE)


async def pieces() -> AsyncIterator[bytes]:
    """Yield a download, whose end gives the worker something to do."""
    yield b"begun\n"
    await wait_released_async()
    jobs.put_nowait("downloaded")
    yield b"ended\n"


@engine.resource
async def worker() -> AsyncIterator[None]:
    """Work in the background, in a task group; on `stop` finish what is left."""

    async def work() -> None:
        while (job := await jobs.get()) is not None:
            record(job)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        yield
        jobs.put_nowait(None)
    record("worked")
