"""
ThreadManager: tells of each thread that answers requests, when it first does and when it ends.

A thread is known by an object that it keeps in a `threading.local`. The interpreter drops that in
the ending thread itself, as one of its last acts; so that is where `stop_thread` is published, and
neither the number that the system gives a thread, which the next one may get, nor a look through
all threads is needed. All that can happen to a thread takes its id out of one dict, which is an
atomic act: so whoever does it publishes, once.
"""

import os
import sys
import threading
import weakref
from itertools import count

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures
from engine_bridge.core.records import ERROR, Message
from engine_bridge.plugins.base import Plugin


class ThreadManager(Plugin):
    """
    Publish `start_thread` with a number in each thread that answers requests, later `stop_thread`.

    A thread is seen when `acquire_thread` is published in it, which the WSGI middleware does for
    each request. Its number is never given to another one of this process. `stop_thread` follows,
    once: in the thread itself when it ends, or when `release_thread` is published in it; and for
    all that are left when the engine stops, or on `graceful`, in the thread that does that. Who
    answers another request after that is started anew, by a new number.

    A listener of `start_thread` that fails fails the request; the thread is stopped, and tried
    again at its next one.
    """

    channels = ("acquire_thread", "release_thread", "stop", "graceful", "fork")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._crew = Crew()
        self._numbers = count(1)

    @property
    def threads(self) -> dict[int, int]:
        """The numbers of the threads that are started, by `threading.get_ident()`."""
        return {ident: number for number, ident in tuple(self._crew.started.items())}

    def acquire_thread(self) -> None:
        """See this thread; publish `start_thread` if it is new."""
        crew = self._crew
        try:
            crew.local.member  # noqa: B018  # there it is: the common case, and all it costs
        except AttributeError:
            self._start(crew)

    def _start(self, crew: "Crew") -> None:
        member = Member(self, crew, next(self._numbers))
        try:
            self.engine.publish("start_thread", member.number)
        except BaseException:
            self.engine.publish("stop_thread", member.number)
            raise
        crew.started[member.number] = threading.get_ident()
        crew.local.member = member

    def release_thread(self) -> None:
        """Publish `stop_thread` for this thread; nothing happens if it was not seen."""
        member = getattr(self._crew.local, "member", None)
        if member is not None:
            del self._crew.local.member
            if member.leave():
                self.engine.publish("stop_thread", member.number)

    def stop(self) -> None:
        """
        Publish `stop_thread` for all threads that are left.

        Raises:
            ChannelFailures: Listeners failed; they have been told of all threads nevertheless.
        """
        crew, self._crew = self._crew, Crew()
        failures: list[Exception] = []
        while True:
            try:
                number, _ = crew.started.popitem()
            except KeyError:
                break  # none is left, for others end meanwhile
            try:
                self.engine.publish("stop_thread", number)
            except ChannelFailures as exc:
                failures += exc.exceptions
        if failures:
            raise ChannelFailures("'stop_thread' failed", failures)

    def graceful(self) -> None:
        """Do what `stop` does: each thread starts anew with its next request."""
        self.stop()

    def fork(self) -> None:
        """In a forked child: none of the parent's threads is here, so none of them ends here."""
        self._crew.started.clear()
        self._crew = Crew()
        self._numbers = count(1)

    def unsubscribe(self) -> None:
        """Turn the plugin off; threads that are left are stopped."""
        super().unsubscribe()
        self.stop()


class Crew:
    """The threads that have started since the engine did: their numbers, and their objects."""

    def __init__(self) -> None:
        self.started: dict[int, int] = {}
        self.local = threading.local()


class Member:
    """One thread that has started; it is dropped when the thread ends."""

    __slots__ = ("_manager", "_pid", "_started", "number")

    def __init__(self, manager: ThreadManager, crew: Crew, number: int) -> None:
        self._manager = weakref.ref(manager)  # not for a listener's sake: an engine may be garbage
        self._started = crew.started
        self._pid = os.getpid()
        self.number = number

    def leave(self) -> bool:
        """
        Be started no more; return whether it was.

        A forked child drops the objects of all threads but its own, ahead of any hook; they did not
        end, they are not there.
        """
        was_started = self._started.pop(self.number, None) is not None
        return was_started and self._pid == os.getpid()

    def __del__(self) -> None:
        manager = self._manager()
        if manager is None or sys.is_finalizing() or not self.leave():
            return
        try:
            manager.engine.publish("stop_thread", self.number)
        except Exception as exc:  # nobody is left to raise it to
            text = f"stop_thread of thread {self.number} failed: {exc}"
            manager.engine.tell(Message(text=text, level=ERROR, error=exc))
        _forget_dummy()


def _forget_dummy() -> None:
    """
    Undo what `threading.current_thread()`, which logging calls, leaves behind in an ending thread.

    The thread is not listed any more, so it gets a stand-in that nobody would remove.

    Source:
        threading.py, `_DummyThread`, as of 3.11; from 3.13 on they go by themselves.
    """
    active = getattr(threading, "_active", {})
    ident = threading.get_ident()
    if type(active.get(ident)).__name__ == "_DummyThread":
        active.pop(ident, None)
