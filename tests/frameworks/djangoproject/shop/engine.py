"""What listens to the engine; found because of its name."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from django.db import connection
from django.utils.autoreload import file_changed
from journal import record

from engine_bridge import Engine, engine
from engine_bridge.frameworks.django import uses_database
from engine_bridge.frameworks.django.signals import (
    engine_draining,
    engine_started,
    engine_stopped,
)
from engine_bridge.plugins import Health, Plugin

LEDGER = Path("ledger.db")

for channel in ("start", "drain", "stop", "exit", "graceful"):
    engine.subscribe(channel, partial(record, channel))


@engine.resource
def ledger() -> Iterator[dict[str, str]]:
    """Open a database on start, close it on stop."""
    database = sqlite3.connect(LEDGER, check_same_thread=False)
    record("opened")
    yield {"ledger": "open"}
    database.close()
    record("closed")


class Clock(Plugin):
    """A thread from start to stop."""

    def __init__(self, engine: Engine, tick: float = 60) -> None:
        super().__init__(engine)
        self._tick = float(tick)
        self._leave = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._leave.clear()
        self._thread = threading.Thread(target=self._run, name="clock")
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._leave.set()
        self._thread.join()

    def _run(self) -> None:
        record("clock begins")
        while not self._leave.wait(self._tick):
            pass
        record("clock ends")


class Caller(Plugin):
    """Calls a function in a thread, once; a monitor as far as this app has one."""

    def __init__(self, engine: Engine, callback: object) -> None:
        super().__init__(engine)
        assert callable(callback)
        self.callback = callback

    def start(self) -> None:
        """Call it."""
        thread = threading.Thread(target=self._run, name="caller")
        thread.start()
        thread.join()

    def _run(self) -> None:
        self.callback()
        record("called", connected=connection.connection is not None)


probes = Health(engine)
clock = Clock(engine)
clock.subscribe()


def count_sales() -> None:
    """Ask the database."""
    from shop.models import Sale

    record("counted", sales=Sale.objects.count(), thread=threading.current_thread().name)


if "PROJECT_COUNTS" in os.environ:
    engine.subscribe("start", uses_database(count_sales), 60)
    engine.subscribe("stop", uses_database(count_sales), 60)

if "PROJECT_FAILS" in os.environ:

    @engine.subscribe("start", priority=80)
    def connect() -> None:
        """Fail, until somebody repairs it."""
        if not Path("repaired").exists():
            raise RuntimeError("the database is down")


if "PROJECT_STOPS_SLOWLY" in os.environ:

    @engine.subscribe("stop", priority=60)
    def save() -> None:
        """Take as long as the test wants."""
        record("saving")
        while not Path("release").exists():
            time.sleep(0.005)
        record("saved")


def hear(sender: Engine, signal: object, **kwargs: object) -> None:
    """Record the signals."""
    names = {engine_started: "signal started", engine_draining: "signal draining"}
    record(names.get(signal, "signal stopped"), own=sender is engine)


for each in (engine_started, engine_draining, engine_stopped):
    each.connect(hear)


def see_change(**kwargs: object) -> None:
    """Record that the reloader has seen a file change."""
    record("file changed")


file_changed.connect(see_change)
