"""
Have the main thread hear of a signal while it waits for a lock, or for a socket.

Python's handlers run in the main thread, between two of its steps. Where the kernel hands a signal
to another thread, or to the main one just as that falls asleep, it sleeps on: the server has been
told to go, and stays. What C's handler writes at that moment wakes a thread of ours, and that wakes
the main one, until it has heard.

Source:
    CPython, `trip_signal` in signalmodule.c; signal(7), SIGURG, which does nothing by default.
"""

import os
import signal
import socket
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Self

AGAIN = 0.01  # seconds between two calls to a main thread that has not heard the first

_wakers: "set[Waker]" = set()


class Waker:
    """
    Wakes the main thread, in which alone it can be made, whenever a signal has come.

    It does nothing where SIGURG, by which it does that, is somebody's.
    """

    def __init__(self) -> None:
        self._heard: SimpleQueue[None] = SimpleQueue()
        self._bell: socket.socket | None = None  # what C's handler writes to
        self._earlier = -1
        self._main = threading.get_ident()

    def start(self) -> None:
        """Begin."""
        if not hasattr(signal, "SIGURG") or signal.getsignal(signal.SIGURG) is not signal.SIG_DFL:
            return
        ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)  # C's handler must never wait
        signal.signal(signal.SIGURG, lambda *_: self._heard.put(None))
        self._earlier = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        _wakers.add(self)
        threading.Thread(
            target=self._wake, args=(ear,), name="engine wakes main thread", daemon=True
        ).start()

    def stop(self) -> None:
        """End, and put back what was there."""
        bell, self._bell = self._bell, None
        if bell is None:
            return
        _wakers.discard(self)
        present = signal.set_wakeup_fd(-1)
        with suppress(ValueError, OSError):  # it has been closed
            signal.set_wakeup_fd(self._earlier if present == bell.fileno() else present)
        signal.signal(signal.SIGURG, signal.SIG_DFL)
        bell.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _wake(self, ear: socket.socket) -> None:
        with ear:
            while number := ear.recv(1):
                if number[0] != signal.SIGURG:
                    self._wake_until_heard()

    def _wake_until_heard(self) -> None:
        """Send SIGURG until its handler has run, and so has, before it, that of what has come."""
        while not self._heard.empty():
            self._heard.get()  # the word of an earlier time, which came late
        while self._bell is not None:
            signal.pthread_kill(self._main, signal.SIGURG)
            with suppress(Empty):
                self._heard.get(timeout=AGAIN)
                return


def _after_fork() -> None:
    """In a forked child: signals are none of the parent's business."""
    if _wakers:
        signal.set_wakeup_fd(-1)
        _wakers.clear()


os.register_at_fork(after_in_child=_after_fork)
