"""
Notes: what signal handlers leave for the engine, and how those who read them are woken.

A handler puts its note on a `queue.SimpleQueue`, which is made for that. The thread in `block`
takes it; if there is none, the handler starts one with `_thread`, which takes no lock either.
"""

import _thread
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable

from .errors import EngineError
from .records import ERROR, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .lifecycle import Lifecycle

Note = Callable[[], object]

_bells: "set[_Bell]" = set()


class Notes:
    """What an engine was told by signals, and who reads it."""

    def __init__(self, engine: "Lifecycle") -> None:
        self._queue: queue.SimpleQueue[Note | None] = queue.SimpleQueue()
        self._readers: list[int] = []
        self._waiting: list[int] = []
        self._bell: _Bell | None = None  # wakes the main thread, if that is a reader
        self._engine = weakref.ref(engine)
        self.times_told = 0  # to leave, in this life

    @property
    def readers(self) -> list[int]:
        """The threads in `block`."""
        return self._readers

    def put(self, note: Note) -> None:
        """Leave *note* and see that somebody reads it; safe in a signal handler."""
        self._queue.put(note)
        if not self._waiting:
            self._start_reader()

    def wake(self) -> None:
        """Let those in `block` look around."""
        for _ in self._readers:
            self._queue.put(None)
        if self._bell is not None:
            self._bell.ring()

    def reading(self) -> "_Reading":
        """Return a context in which this thread is a reader."""
        return _Reading(self)

    def get(self, timeout: float | None) -> Note | None:
        """Return the next note; None when woken without one, or after *timeout* seconds."""
        self._waiting.append(0)
        try:
            if self._bell is None or not in_main_thread():
                return self._queue.get(timeout=timeout)
            if self._queue.empty():
                self._bell.wait(timeout)
            return self._queue.get_nowait()
        except queue.Empty:
            return None
        finally:
            self._waiting.pop()
            if not self._queue.empty() and not self._waiting:
                self._start_reader()  # one came between get and pop: its handler saw us waiting

    def _start_reader(self) -> None:
        try:
            _thread.start_new_thread(self._become_thread, ())
        except RuntimeError:
            pass  # the interpreter is on its way out: the exit net does what is left

    def _become_thread(self) -> None:
        """Continue, outside the handler now, in a thread that Python's tools can see."""
        try:
            threading.Thread(target=self.work_off, name="engine signals", daemon=True).start()
        except RuntimeError:
            pass

    def work_off(self) -> None:
        """Do what the notes ask for that nobody has taken yet."""
        wakes = 0
        while True:
            try:
                note = self._queue.get_nowait()
            except queue.Empty:
                break
            if note is None:
                wakes += 1  # for those in `block`
                continue
            try:
                note()
            except SystemExit:
                pass  # of a listener; the thread in `block` raises it
            except Exception as exc:
                engine = self._engine()
                if engine is not None and not isinstance(exc, EngineError):
                    text = f"a signal's work failed: {exc}"
                    engine.tell(Message(text=text, level=ERROR, error=exc))
        for _ in range(wakes):
            self._queue.put(None)


class _Reading:
    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._outer = notes._bell

    def __enter__(self) -> None:
        if in_main_thread():
            self._notes._bell = _Bell()
        self._notes._readers.append(threading.get_ident())

    def __exit__(self, *error: object) -> None:
        self._notes._readers.remove(threading.get_ident())
        if in_main_thread() and self._notes._bell is not None:
            bell, self._notes._bell = self._notes._bell, self._outer
            bell.close()


class _Bell:
    """
    Wakes the main thread, also for a signal that comes just as it falls asleep.

    Waiting for a lock it would miss that: Python's handler runs when the thread wakes, and nothing
    would wake it. The number that C's handler writes here stays to be read.
    """

    def __init__(self) -> None:
        self._open = threading.Lock()  # who rings must not write to a descriptor given anew
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # C's handler must never wait
        self._previous = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _bells.add(self)

    def wait(self, timeout: float | None) -> None:
        """Sleep until it rings, *timeout* seconds at most."""
        if timeout is not None:
            import select

            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return
        os.read(self._reader, 4096)

    def ring(self) -> None:
        """Wake the main thread; safe in any thread."""
        with self._open:
            try:
                os.write(self._writer, b"\0")
            except OSError:
                pass  # full, so it rings already; closed, so nobody sleeps

    def close(self) -> None:
        """Give signals back to who was told of them before."""
        if self in _bells:  # else we have been forked meanwhile
            _bells.discard(self)
            signal.set_wakeup_fd(self._previous)
        with self._open:
            writer, self._writer = self._writer, -1
        os.close(self._reader)
        os.close(writer)


def in_main_thread() -> bool:
    """Whether this is the thread in which Python runs signal handlers."""
    return threading.current_thread() is threading.main_thread()


def after_fork() -> None:
    """In a forked child: wake nobody of the parent's."""
    if _bells:
        signal.set_wakeup_fd(-1)
        _bells.clear()
