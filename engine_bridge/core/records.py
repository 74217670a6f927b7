"""
What the engine tells of itself: small records, handed to whoever observes.

The engine formats no message. It hands over a record; the log is one reader of it, and so are
metrics and tests. Handwritten instead of dataclasses, whose import costs 12 ms.
"""

import sys

from .errors import EngineError, StartAborted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40


class Record:
    """Something that happened; fields are its `__slots__`, equal when all of them are."""

    __slots__: tuple[str, ...] = ()
    level = INFO

    def __init__(self, **values: "Any") -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, values[name])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is a record; its fields cannot be set")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"

    def _values(self) -> "tuple[Any, ...]":
        return tuple(getattr(self, name) for name in self.__slots__)

    def message(self) -> str:
        """Say it in a sentence for a person."""
        return self._text()

    def _text(self) -> str:
        raise NotImplementedError


class StateChanged(Record):
    """The engine moved from one state to the next."""

    __slots__ = ("new", "old")
    old: str
    new: str

    def _text(self) -> str:
        return f"Engine {self.new}"


class Draining(Record):
    """The engine was told to go and still answers."""

    __slots__ = ("in_flight",)
    in_flight: int

    def _text(self) -> str:
        return f"Engine draining, {self.in_flight} in flight"


class DrainExpired(Record):
    """Requests were still in flight when the drain had to end."""

    __slots__ = ("in_flight", "seconds")
    in_flight: int
    seconds: float
    level = WARNING

    def _text(self) -> str:
        return f"drain ended after {self.seconds:.1f} s with {self.in_flight} still in flight"


class ListenerFinished(Record):
    """A listener returned, or raised `error`."""

    __slots__ = ("channel", "error", "listener", "seconds")
    channel: str
    listener: str
    seconds: float
    error: BaseException | None

    @property
    def level(self) -> int:  # type: ignore[override]  # the class default is a constant
        """An error for a failure."""
        return DEBUG if self.error is None or isinstance(self.error, StartAborted) else ERROR

    def _text(self) -> str:
        if self.error is None:
            return f"{self.listener} finished {self.channel!r} in {self.seconds:.3f} s"
        if isinstance(self.error, StartAborted):
            return f"{self.listener} was cancelled on {self.channel!r} after {self.seconds:.3f} s"
        return f"{self.listener} failed on {self.channel!r}: {_line(self.error)}"


class ListenerSlow(Record):
    """A listener has been running for longer than `slow_after`, or its budget is spent."""

    __slots__ = ("channel", "left_behind", "listener", "seconds", "stack")
    channel: str
    listener: str
    seconds: float
    stack: str
    left_behind: bool
    level = WARNING

    def _text(self) -> str:
        what = "left behind, still running" if self.left_behind else "still running"
        return (
            f"{self.listener} on {self.channel!r}: {what} after {self.seconds:.1f} s\n{self.stack}"
        )


class SignalCaught(Record):
    """A signal came."""

    __slots__ = ("name",)
    name: str

    def _text(self) -> str:
        return f"Caught {self.name}"


class Message(Record):
    """What `Engine.log` was given, and what the library itself has to say."""

    __slots__ = ("error", "level", "text")
    text: str
    level: int
    error: BaseException | None

    def _text(self) -> str:
        return self.text


class RecordText(str):
    """
    What a record says, on its way over the `log` channel.

    Who observes has had the record itself, and can tell such a text from one that was published
    by somebody else.
    """

    __slots__ = ("record",)
    record: Record

    def __new__(cls, record: Record) -> "RecordText":
        """Return the text of *record*."""
        text = super().__new__(cls, record.message())
        text.record = record
        return text


def _line(error: BaseException) -> str:
    """Return *error* as one line, type first."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def to_logging(record: Record) -> None:
    """Hand warnings and errors to `logging`; the reader that every engine has from the start."""
    if record.level < WARNING:
        return
    import logging

    logging.getLogger("engine_bridge").log(
        record.level, "%s", record.message(), exc_info=worth_a_traceback(record)
    )


def worth_a_traceback(record: Record) -> BaseException | None:
    """Return the error of *record*, unless it is one of ours: their sentence says it all."""
    error = getattr(record, "error", None)
    return None if isinstance(error, EngineError) else error


def last_resort(what: str) -> None:
    """Print the current exception: for faults of those who would have to log it."""
    import traceback

    try:
        if sys.stderr is not None:
            sys.stderr.write(f"engine_bridge: {what} failed\n")
            traceback.print_exc()
    except (OSError, ValueError):
        pass  # closed, or its disk is full: nobody is left to tell
