"""
granian: ASGI, WSGI and RSGI; its workers are made by multiprocessing, one at least.

Source:
    granian 2.8, `server/mp.py`, `server/common.py`: SIGHUP replaces the workers.
"""

import signal
import sys

from engine_bridge.core import nets, signals
from engine_bridge.core.host import Host, worker_of

from .base import Roll, ServerHost, Stack, by_sigterm, single
from .waking import Waker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

END = (signal.SIGINT, signal.SIGTERM)
SERVED = "engine_bridge.servers._granian"  # loaded where `serve` runs it


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if granian runs in it."""
    if stack.find("granian.") is None and stack.find(SERVED) is None:
        return None
    if SERVED in sys.modules:  # no Python code of ours need be on the stack of granian's threads
        return single("granian", by_sigterm)
    parent = worker_of()
    return ServerHost("granian", Roll, "main" if parent is None else "worker", parent)


def mend_signals() -> None:
    """
    Have the workers of this process hear of their end, and be told of it once.

    On Ctrl-C a worker gets SIGINT from the terminal and SIGTERM from the main process. Of two
    signals at a time the kernel may hand both to a thread of granian's own; Python notes them then,
    but its main thread, which waits for a lock, sleeps on. And told a second time while the first
    is worked on, an ASGI worker's main thread keeps the GIL and waits for a lock, whose owner waits
    for the GIL. Either way it never leaves: without an engine in 9 of 40 trials with WSGI, and in 1
    of 40 with ASGI.

    A WSGI application's engine is started by a thread that can set no handler, so ours follow here.

    To be called while the application is loaded; after that a worker sets its handlers.

    Source:
        granian 2.8, `_signals.py`, `server/mp.py`; CPython, `trip_signal` in signalmodule.c.
    """
    granian: Any = sys.modules["granian._signals"]
    set_loop_signals = getattr(granian, "set_loop_signals", None)
    set_sync_signals = getattr(granian, "set_sync_signals", None)
    if set_loop_signals is None or set_sync_signals is None:
        return  # another granian

    def set_loop_signals_once(loop: "Any") -> "Any":
        event = set_loop_signals(loop)
        tell = _once(event.set)

        def tell_soon(*args: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell)

        for signum in END:
            loop.add_signal_handler(signum, tell)
            signal.signal(signum, tell_soon)  # between start-up and serving the loop hears of none
            signal.siginterrupt(signum, False)
        return event

    def set_sync_signals_once() -> "Any":
        event = set_sync_signals()
        tell = _once(event.set)
        for signum in END:
            signal.signal(signum, tell)
        for gate in nets.gates("wsgi"):
            signals.chain(gate.engine)
        Waker().start()
        return event

    granian.set_loop_signals = set_loop_signals_once
    granian.set_sync_signals = set_sync_signals_once


def _once(call: "Callable[[], object]") -> "Callable[..., None]":
    calls = [call]

    def call_once(*args: object) -> None:
        if calls:
            calls.pop()()

    return call_once
