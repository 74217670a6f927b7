"""A bus that tells what happens on it, and on which async functions may listen."""

from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from .aio import LoopGone, running_loop
from .bus import Bus, Calls, Listener, failed
from .errors import ListenerError, WouldDeadlock
from .records import (
    INFO,
    WARNING,
    ListenerFinished,
    Message,
    Record,
    RecordText,
    last_resort,
    to_logging,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .life import Life

    Function = TypeVar("Function", bound=Callable[..., Any])

Observers = tuple[Callable[[Record], object], ...]

KEPT_RECORDS = 50


class ObservedBus(Bus):
    """A `Bus` with observers, a log, and async listeners."""

    def __init__(self) -> None:
        super().__init__()
        self._observers: Observers = (to_logging,)
        self._call_observers: Observers = ()  # those of them who want to hear of every call
        self.last_records: deque[Record] = deque(maxlen=KEPT_RECORDS)

    def _the_life(self) -> "Life":
        """Return what knows the loop that async listeners run on."""
        raise NotImplementedError

    async def publish_async(self, channel: str, *args: "Any", **kwargs: "Any") -> "list[Any]":
        """Do what `publish` does, awaiting async listeners on this loop."""
        if self._calls.get(channel) is not None:  # nothing to await, and nobody to tell
            return self.publish(channel, *args, **kwargs)
        results, failures = [], []
        for listener in self._listeners.get(channel, ()):
            since = monotonic()
            error: Exception | None = None
            try:
                result = listener.call(*args, **kwargs)
                results.append(await result if listener.is_async else result)
            except Exception as exc:
                error = exc
                failures.append(exc)
            self._tell_of_call(channel, listener, since, error)
        if failures:
            raise failed(channel, failures)
        return results

    def _publish_the_long_way(
        self, channel: str, args: "tuple[Any, ...]", kwargs: "dict[str, Any]"
    ) -> "list[Any]":
        listeners = self._listeners.get(channel, ())
        life = self._the_life()
        loop = life.usable_loop()
        for listener in listeners:
            if listener.is_async and loop is not None and loop is running_loop():
                raise WouldDeadlock(
                    f"engine.publish({channel!r}) with the async listener {listener.name}",
                    f"engine.publish_async({channel!r})",
                )
        results: list[Any] = []
        failures: list[Exception] = []
        for listener in listeners:
            since = monotonic()
            error: Exception | None = None
            try:
                if listener.is_async:
                    results.append(self.result_of(partial(listener.call, *args, **kwargs)))
                else:
                    results.append(listener.call(*args, **kwargs))
            except Exception as exc:
                error = exc
                failures.append(exc)
            self._tell_of_call(channel, listener, since, error)
        if failures:
            raise failed(channel, failures)
        return results

    def result_of(self, call: "Callable[[], Any]") -> "Any":
        """
        Return what the async *call* returns, run where async listeners run; block until it has.

        Raises:
            WouldDeadlock: This thread runs the loop that it would wait for.
        """
        loop = self._the_life().usable_loop()
        if loop is not None and loop is running_loop():
            raise WouldDeadlock("engine.result_of(…)", "the call itself")
        while True:
            try:
                return self._the_life().result_of(call)
            except LoopGone:  # that life has just ended: on with the next
                continue

    @property
    def observers(self) -> Observers:
        """Those to whom records are handed."""
        return self._observers

    def observe(self, function: "Function", *, everything: bool = True) -> "Function":
        """
        Hand records to *function*; return it.

        Args:
            function: What to call with each record.
            everything: Whether to make records of the calls on all channels too, which makes each
                publish dearer, those of requests included. Else only the lifecycle is told.

        Raises:
            ListenerError: *function* is not callable.
        """
        if not callable(function):
            raise ListenerError(f"observe(…) wants a function to call, got {function!r}")
        with self._subscribing:
            self._observers = (*self._observers, function)
            if everything:
                self._call_observers = (*self._call_observers, function)
            self._refresh_calls()
        return function

    def unobserve(self, function: "Callable[[Record], object]") -> None:
        """Undo `observe`."""
        with self._subscribing:
            self._observers = _without(function, self._observers)
            self._call_observers = _without(function, self._call_observers)
            self._refresh_calls()

    def _refresh_calls(self) -> None:
        for channel in self._listeners:
            self._calls[channel] = self._plain_calls(channel)

    def _plain_calls(self, channel: str) -> Calls | None:
        return None if self._is_observed(channel) else super()._plain_calls(channel)

    def _is_observed(self, channel: str) -> bool:
        return channel != "log" and bool(self._call_observers)

    def _tell_of_call(
        self, channel: str, listener: Listener, since: float, error: Exception | None
    ) -> None:
        if self._is_observed(channel):
            record = ListenerFinished(
                channel=channel,
                listener=listener.name,
                seconds=monotonic() - since,
                error=error,
            )
            _hand_out(record, self._call_observers)

    def log(self, msg: str = "", level: int = INFO, traceback: bool = False) -> None:
        """
        Say *msg* on the `log` channel and to whoever observes.

        Args:
            msg: The sentence.
            level: As in `logging`: 20 informs, 30 warns, 40 is an error.
            traceback: Whether to append the exception that is being handled.
        """
        import sys

        if traceback:
            import traceback as formatter

            msg += "\n" + "".join(formatter.format_exception(sys.exception()))
        self.tell(Message(text=msg, level=level, error=None))

    def _warn(self, text: str) -> None:
        self.log(text, WARNING)

    def tell(self, record: Record) -> None:
        """Hand *record* to the observers and the `log` channel; none of them can break anything."""
        self.last_records.append(record)
        _hand_out(record, self._observers)
        if self._listeners.get("log") and (record.level >= INFO):
            try:
                self.publish("log", RecordText(record), record.level)
            except Exception:
                last_resort("a listener of channel 'log'")


def _hand_out(record: Record, observers: Observers) -> None:
    for observer in observers:
        try:
            observer(record)
        except Exception:
            last_resort(f"observer {observer!r}")


def _without(function: Callable[[Record], object], observers: Observers) -> Observers:
    return tuple(entry for entry in observers if entry != function)
