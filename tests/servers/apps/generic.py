"""What the applications of the generic adapters answer, each from a database that is a resource."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator

from journal import record
from released import wait_released
from servers.apps.answers import STREAMS as ASYNC_STREAMS
from servers.apps.answers import answer as answer_async
from servers.apps.lifecycle import instrument, note_released

from engine_bridge import engine

TICK = b"data: tick\n\n"

instrument(engine)


@engine.resource
def database() -> Iterator[dict[str, sqlite3.Connection]]:
    """Open a connection before the first request, and close it after the last."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    record("opened")
    yield {"database": connection}
    connection.close()
    record("closed")


def query() -> None:
    """Fail if the database is not open."""
    engine.lifespan_state["database"].execute("SELECT 1").fetchone()


async def answer(path: str) -> bytes:
    """Return the body of an answer, on a loop."""
    body = await answer_async(path)
    query()
    return body


def answer_in_thread(path: str) -> bytes:
    """Return the body of an answer."""
    if path == "/held":
        record("held")
        wait_released()
        body = note_released()
    else:
        record("request")
        body = b"answered\n"
    query()
    return body


def events(path: str) -> AsyncIterator[bytes]:
    """Return what the stream at *path* sends until the engine drains."""
    return engine.until_drain(ASYNC_STREAMS[path]())


def ticks() -> Iterator[bytes]:
    """Yield events until the engine drains."""
    yield TICK
    while not engine.draining.wait(0.05):
        yield TICK


def silence() -> Iterator[bytes]:
    """Yield one event, and end when the engine drains."""
    yield TICK
    engine.draining.wait()


STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {"/events": ticks, "/silence": silence}
