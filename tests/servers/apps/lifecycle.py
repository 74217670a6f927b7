"""What the applications under test share: listeners that tell the journal, and a held request."""

import os
import signal
import threading
import time
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

from journal import record
from released import PAUSE, wait_released

from engine_bridge import Engine
from engine_bridge.core.records import Record, StateChanged
from engine_bridge.plugins import FollowMain, PIDFile, Plugin

RECORDED = ("start", "drain", "stop", "exit", "main_start", "main_exit")


def instrument(engine: Engine) -> None:
    """Have *engine* record its channels; the environment asks for failures and a PID file."""
    for channel in RECORDED:
        engine.subscribe(channel, partial(record, channel), priority=60)
    engine.observe(note_started, everything=False)
    Companion(engine).subscribe()
    engine.subscribe("start", fail_if_asked_to)
    engine.subscribe("start", wait_if_asked_to)
    if path := os.environ.get("APP_PIDFILE"):
        PIDFile(engine, path).subscribe()
    if os.environ.get("APP_FOLLOWS_MAIN"):
        FollowMain(engine).subscribe()
    if os.environ.get("APP_TERM_AT_END"):  # first thing once the target of a child has returned
        Finalize(None, os.kill, (os.getpid(), signal.SIGTERM), exitpriority=100)


def note_started(told: Record) -> None:
    """Record that the start is complete: a signal before that aborts it, without a drain."""
    if isinstance(told, StateChanged) and told.new == "STARTED":
        record("started")


class Companion(Plugin):
    """A thread that is no daemon and ends on `stop`: without a stop the process never leaves."""

    def start(self) -> None:
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._leave.wait, name="companion")
        self._thread.start()

    def stop(self) -> None:
        self._leave.set()
        self._thread.join()


def fail_if_asked_to() -> None:
    """Fail the start until the file exists that the environment names, or for good."""
    wanted = os.environ.get("APP_FAILS_UNTIL")
    if wanted is not None and not Path(wanted).exists():
        record("failed")
        raise RuntimeError("the database is down")


def wait_if_asked_to() -> None:
    """Let the start last until the file exists that the environment names."""
    wanted = os.environ.get("APP_START_WAITS")
    while wanted is not None and not Path(wanted).exists():
        time.sleep(PAUSE)


def hold() -> bytes:
    """Hold a request until the test releases it; return the answer."""
    record("held")
    wait_released()
    return note_released()


def note_released() -> bytes:
    """Answer a held request."""
    record("released")
    return b"released\n"
