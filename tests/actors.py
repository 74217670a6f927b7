"""Those who act on an engine in tests: parts that note what was asked of them, and many threads."""

import faulthandler
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from processes import wait_until

from engine_bridge import ChannelFailures, Engine
from engine_bridge.core.flag import wait_for
from engine_bridge.core.records import Record, StateChanged
from engine_bridge.plugins import Plugin

ALL = ("start", "stop", "exit")
LIFE = [
    "STARTING", "part.start", "STARTED",
    "STOPPING", "part.stop", "STOPPED",
    "EXITING", "part.exit",
]  # fmt: skip
LIMIT = 10.0  # seconds that any one call may take; a deadlock is a failure, with all stacks


def follow(engine: Engine, notes: list[str]) -> None:
    """Note each state that *engine* enters."""

    def note(record: Record) -> None:
        if isinstance(record, StateChanged):
            notes.append(record.new)

    engine.observe(note)


def failed(call: Callable[[], object]) -> ChannelFailures:
    """Return the group that *call* raises."""
    with pytest.raises(ChannelFailures) as caught:
        call()
    return caught.value


class Part:
    """
    The owner of a listener for each of *channels*; it notes each call as `name.channel`.

    Args:
        name: Its name in the notes.
        notes: Where it notes, together with others.
        failing: What to raise, by channel, having noted the call.
    """

    def __init__(
        self, name: str, notes: list[str], failing: dict[str, BaseException] | None = None
    ) -> None:
        self.name = name
        self.notes = notes
        self.failing = failing or {}

    def __repr__(self) -> str:
        return f"<Part {self.name}>"

    def _asked(self, channel: str) -> None:
        self.notes.append(f"{self.name}.{channel}")
        if channel in self.failing:
            raise self.failing[channel]

    def start(self) -> None:
        self._asked("start")

    def stop(self) -> None:
        self._asked("stop")

    def exit(self) -> None:
        self._asked("exit")

    def drain(self) -> None:
        self._asked("drain")

    def on(self, engine: Engine, *channels: str, priority: float | None = None) -> "Part":
        """Subscribe to *channels* of *engine*; return itself."""
        for channel in channels:
            engine.subscribe(channel, getattr(self, channel), priority)
        return self


def noting(notes: list[str], word: str) -> Callable[[], None]:
    """Return a listener, a plain function, that notes *word*."""

    def listener() -> None:
        notes.append(word)

    return listener


class Call:
    """
    A call in a thread of its own.

    Attributes:
        ended: Set once it has returned or raised.
        error: What it raised, or None.
        result: What it returned, or None.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.result: Any = None
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    def _main(self) -> None:
        try:
            self.result = self.function()
        except BaseException as exc:
            self.error = exc
        finally:
            self.ended.set()

    def end(self, limit: float = LIMIT) -> "Call":
        """Wait until it has ended, and fail with the stacks of all threads if it does not."""
        if not self.ended.wait(limit):
            raise AssertionError(
                f"a deadlock? {self.function} still runs after {limit} s\n{stacks()}"
            )
        self.thread.join()
        return self

    @property
    def outcome(self) -> Any:
        """What it raised, else what it returned."""
        return self.result if self.error is None else self.error


def within(function: Callable[[], Any], limit: float = LIMIT) -> Any:
    """Call *function* in a thread; return what it returns or raise what it raises, in time."""
    call = Call(function).end(limit)
    if call.error is not None:
        raise call.error
    return call.result


def at_once(functions: Sequence[Callable[[], Any]], limit: float = LIMIT) -> list[Any]:
    """Call all *functions* at once, each in a thread of its own; return their outcomes."""
    barrier = threading.Barrier(len(functions))

    def after_barrier(function: Callable[[], Any]) -> Any:
        barrier.wait(limit)
        return function()

    calls = [Call(lambda each=each: after_barrier(each)) for each in functions]  # type: ignore[misc]  # a default binds it
    return [call.end(limit).outcome for call in calls]


def stacks() -> str:
    """Return the stacks of all threads."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def flatten(error: BaseException | None) -> list[BaseException]:
    """Return the leaves of a group, or the one error; nothing for None."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in flatten(each)]
    return [] if error is None else [error]


def names(errors: Collection[Any]) -> list[str]:
    """Return the names of the types of *errors*; `None` for what returned nothing."""
    return [type(each).__name__ if each is not None else "None" for each in errors]


def is_waiting(thread: threading.Thread) -> bool:
    """Say whether *thread* waits for an engine: for a state, or the end of a transition."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        frame = frame.f_back
    return frame is not None and frame.f_code is wait_for.__code__


def wait_blocked(call: Call, limit: float = LIMIT) -> Call:
    """Wait until *call* has ended or waits for others."""
    wait_until(lambda: call.ended.is_set() or is_waiting(call.thread), limit, "it ends or waits")
    return call


class Anything(Plugin):
    """A plugin that takes whatever options it is given."""

    def __init__(self, engine: Engine, **options: object) -> None:
        super().__init__(engine)
        self.options = options
