"""A recorder of channels."""

import threading
from collections.abc import Callable
from functools import partial

from engine_bridge.core.bus import describe
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.records import WARNING, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

LIFECYCLE = ("start", "drain", "stop", "exit", "graceful")


def record(engine: Engine, *channels: str) -> "Recording":
    """
    Record from now on what *engine* publishes.

    As a context manager it ends with the block, for an engine that outlives the test.

    Args:
        engine: The engine.
        channels: Further channels, besides those of the lifecycle.

    Raises:
        EngineError: *engine* is none, or a channel is no name.
    """
    return Recording(engine, channels)


class Recording(list[str]):
    """
    The names of the channels that were published, in order.

    A channel is noted before its listeners are called, whether they fail or not.

    Attributes:
        calls: The same with what was published: channel, arguments, keyword arguments.
        records: What the engine told of itself meanwhile: states, failures, warnings.
    """

    def __init__(self, engine: Engine, channels: tuple[str, ...] = ()) -> None:
        super().__init__()
        if not isinstance(engine, Engine):
            raise EngineError(f"record(…) wants an engine first, got {engine!r}")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.records: list[Record] = []
        self._engine = engine
        self._noted = threading.Condition()
        self._listeners: list[tuple[str, Callable[..., None]]] = []
        for channel in dict.fromkeys((*LIFECYCLE, *channels)):
            listener = partial(self._note, channel)
            engine.subscribe(channel, listener, float("-inf"))
            self._listeners.append((channel, listener))
        engine.observe(self._keep, everything=False)

    def _note(self, channel: str, *args: "Any", **kwargs: "Any") -> None:
        with self._noted:
            self.append(channel)
            self.calls.append((channel, args, kwargs))
            self._noted.notify_all()

    def _keep(self, told: Record) -> None:
        if getattr(told, "listener", "") != OWN_LISTENER:
            self.records.append(told)

    def end(self) -> None:
        """Record no more; what was recorded stays."""
        for channel, listener in self._listeners:
            self._engine.unsubscribe(channel, listener)
        self._engine.unobserve(self._keep)

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        traceback: "TracebackType | None",
    ) -> None:
        self.end()

    @property
    def complaints(self) -> list[str]:
        """The warnings and errors that the engine told of, as sentences."""
        return [told.message() for told in tuple(self.records) if told.level >= WARNING]

    def wait(self, channel: str, count: int = 1, timeout: float = 5.0) -> None:
        """
        Block until *channel* has been published *count* times, by another thread.

        Args:
            channel: One of those that are recorded.
            count: How many times, from the beginning of the recording on.
            timeout: Seconds to wait.

        Raises:
            AssertionError: It has not been, in that time.
        """
        with self._noted:
            if not self._noted.wait_for(lambda: self.count(channel) >= count, timeout):
                raise AssertionError(
                    f"{channel!r} was published {self.count(channel)} times within {timeout:g} s, "
                    f"not {count} times: {list(self)}"
                )

    def assert_once(self, *channels: str) -> None:
        """
        Check that each of *channels* was published exactly once, in that order.

        Raises:
            AssertionError: It was otherwise; what else was published does not matter.
        """
        found = [channel for channel in self if channel in channels]
        if found != list(channels):
            raise AssertionError(f"published: {list(self)}; wanted once each: {list(channels)}")


OWN_LISTENER = describe(Recording._note)
