"""What each application of the matrix has: a database, a task that runs by itself, and a plugin."""

import os
import sqlite3
from collections.abc import Iterator
from functools import partial

from journal import record
from released import wait_released, wait_released_async

from engine_bridge import engine
from engine_bridge.core.records import Record, StateChanged
from engine_bridge.plugins import Monitor, Plugin

for channel in ("start", "drain", "stop", "exit"):
    engine.subscribe(channel, partial(record, channel))


@engine.observe
def note_started(told: Record) -> None:
    """Record that the start is complete."""
    if isinstance(told, StateChanged) and told.new == "STARTED":
        record("started")


@engine.resource
def database() -> Iterator[dict[str, sqlite3.Connection]]:
    """Open a database."""
    global connection
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    record("opened")
    yield {"database": connection}
    record("closed", running=monitor.status.started)
    connection.close()


connection: sqlite3.Connection
monitor = Monitor(engine, lambda: connection.execute("SELECT 1"), 0.05)
monitor.subscribe()


class Licence(Plugin):
    """A part that may keep the application from starting."""

    def start(self) -> None:
        """Fail if the test wants that, when all else has started."""
        if "APP_FAILS" in os.environ:
            raise RuntimeError("the licence has expired")

    start.priority = 90  # type: ignore[attr-defined]  # as `Monitor` has one


Licence(engine).subscribe()


def use() -> str:
    """Be a request: use the database, which raises once it is closed, and look at the task."""
    (version,) = connection.execute("SELECT sqlite_version()").fetchone()
    record("request", running=monitor.status.started)
    return f"SQLite {version}, {engine.in_flight} in flight"


def hold() -> str:
    """Be a request that ends when the test says so."""
    record("held")
    wait_released()
    record("released")
    return use()


async def hold_async() -> str:
    """Be one on the loop."""
    record("held")
    await wait_released_async()
    record("released")
    return use()
