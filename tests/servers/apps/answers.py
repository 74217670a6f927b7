"""What the ASGI applications under test answer, each path in its way."""

import asyncio
import os
from collections.abc import AsyncIterator

from journal import record
from released import wait_released_async
from servers.apps.lifecycle import note_released

from engine_bridge import engine


async def ticks() -> AsyncIterator[bytes]:
    """Yield events for ever."""
    while True:
        yield b"data: tick\n\n"
        await asyncio.sleep(0.05)


async def silence() -> AsyncIterator[bytes]:
    """Yield one event, and then nothing for ever."""
    yield b"data: tick\n\n"
    await asyncio.Event().wait()


STREAMS = {"/events": ticks, "/silence": silence}


async def answer(path: str) -> bytes:
    """Return the body of the answer."""
    match path:
        case "/held":
            record("held")
            await wait_released_async()
            return note_released()
        case "/exit":
            await engine.exit_async()
            return b"exited\n"
        case "/restart":
            engine.restart()
            return b"restarting\n"
        case "/pid":  # many of these would make a long journal
            return f"{os.getpid()}\n".encode()
        case _:
            record("request")
            return f"{os.getpid()}\n".encode()
