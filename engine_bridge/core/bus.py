"""
Channels and their listeners: subscribe, unsubscribe, publish.

A channel is a tuple of listeners, sorted when one subscribes and replaced as a whole. So a publish
goes over a snapshot, holds no lock while a listener runs, and costs little more than the calls.
"""

import threading
from collections.abc import Callable
from itertools import count

from .errors import ChannelFailures, ListenerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn, TypeVar, overload

    Function = TypeVar("Function", bound=Callable[..., Any])
else:

    def overload(function: "Any") -> "Any":  # noqa: D103  # typing's, without its import
        return function


DEFAULT_PRIORITY = 50
CO_COROUTINE = 0x80  # inspect.CO_COROUTINE; importing inspect costs 10 ms

Calls = tuple[Callable[..., "Any"], ...]


class Listener:
    """A callable on a channel, with what the engine must know to order and to run it."""

    __slots__ = ("call", "is_async", "order")

    def __init__(self, call: "Callable[..., Any]", priority: float, sequence: int) -> None:
        self.call = call
        self.order = (priority, sequence)
        self.is_async = is_async(call)

    @property
    def owner(self) -> object | None:
        """The object whose bound method this is; None for plain functions."""
        return getattr(self.call, "__self__", None) if hasattr(self.call, "__func__") else None

    @property
    def name(self) -> str:
        """A name for people: `PIDFile.start`, `myapp.db.connect`."""
        return describe(self.call)


class Bus:
    """Publish-subscribe channels with priorities."""

    def __init__(self) -> None:
        self._listeners: dict[str, tuple[Listener, ...]] = {}
        # The callables of each channel; None sends `publish` the long way (something is async,
        # or somebody observes).
        self._calls: dict[str, Calls | None] = {}
        # Reentrant: a finalizer that the garbage collector runs here may unsubscribe.
        self._subscribing = threading.RLock()
        self._sequence = count()

    @overload
    def subscribe(  # noqa: D102  # ruff does not see that overload is typing's
        self, channel: str, listener: None = None, priority: float | None = None
    ) -> "Callable[[Function], Function]": ...
    @overload
    def subscribe(  # noqa: D102, F811  # ruff does not see that overload is typing's
        self, channel: str, listener: "Function", priority: float | None = None
    ) -> "Function": ...
    def subscribe(  # noqa: F811  # as above
        self,
        channel: str,
        listener: "Function | None" = None,
        priority: float | None = None,
    ) -> "Function | Callable[[Function], Function]":
        """
        Call *listener* whenever *channel* is published; without one, return a decorator.

        Args:
            channel: Any name; `Engine` says which ones it publishes itself.
            listener: A function or an `async def` function; one that is subscribed already gets
                the new priority and keeps its place among equals.
            priority: Lower runs earlier. Default: the listener's own `priority` attribute, or 50.

        Raises:
            ListenerError: *listener* is not callable.
        """
        if not isinstance(channel, str):
            raise ListenerError(
                f"subscribe(…) wants the name of a channel first, got {channel!r}: "
                'subscribe("start", function)'
            )
        if listener is None:
            return lambda function: self.subscribe(channel, function, priority)
        if not callable(listener):
            raise ListenerError(
                f"subscribe({channel!r}, …) wants a function to call, got {listener!r}"
            )
        self._subscribe(channel, listener, priority, next(self._sequence))
        return listener

    def _subscribe(
        self, channel: str, call: "Callable[..., Any]", priority: float | None, sequence: int
    ) -> None:
        if priority is None:
            priority = getattr(call, "priority", DEFAULT_PRIORITY)
        with self._subscribing:
            others = []
            for listener in self._listeners.get(channel, ()):
                if listener.call == call:
                    sequence = listener.order[1]
                else:
                    others.append(listener)
            others.append(Listener(call, priority, sequence))
            others.sort(key=_order)
            self._set_listeners(channel, tuple(others))

    def unsubscribe(self, channel: str, listener: "Callable[..., Any]") -> None:
        """Call *listener* no longer on *channel*; nothing happens if it was not subscribed."""
        with self._subscribing:
            now = self._listeners.get(channel, ())
            kept = tuple(entry for entry in now if entry.call != listener)
            if len(kept) != len(now):
                self._set_listeners(channel, kept)

    @property
    def listeners(self) -> dict[str, tuple[Listener, ...]]:
        """The listeners of each channel that has any, in the order in which they are called."""
        return {channel: found for channel, found in tuple(self._listeners.items()) if found}

    def _set_listeners(self, channel: str, listeners: tuple[Listener, ...]) -> None:
        self._listeners[channel] = listeners
        self._calls[channel] = self._plain_calls(channel)

    def _plain_calls(self, channel: str) -> Calls | None:
        listeners = self._listeners[channel]
        if any(listener.is_async for listener in listeners):
            return None
        return tuple(listener.call for listener in listeners)

    def publish(self, channel: str, *args: "Any", **kwargs: "Any") -> "list[Any]":
        """
        Call every listener of *channel* in the order of priority, then of subscription.

        Returns:
            What they returned, in that order; nothing for a channel that nobody listens to.

        Raises:
            ChannelFailures: Listeners failed; the others have run nevertheless.
            WouldDeadlock: A listener is async and this is the loop it would run on.
        """
        calls = self._calls.get(channel, ())
        if not calls:
            return [] if calls is not None else self._publish_the_long_way(channel, args, kwargs)
        results: list[Any] = []
        try:  # one try around the loop: this method is what every request may pay for
            if kwargs:
                for call in calls:
                    results.append(call(*args, **kwargs))  # noqa: PERF401  # kept when one fails
            elif args:  # a call without kwargs copies no dict
                for call in calls:
                    results.append(call(*args))  # noqa: PERF401  # as above
            else:
                for call in calls:
                    results.append(call())  # noqa: PERF401  # as above
        except Exception as exc:
            _publish_the_rest(channel, calls[len(results) + 1 :], exc, args, kwargs)
        return results

    def _publish_the_long_way(
        self, channel: str, args: "tuple[Any, ...]", kwargs: "dict[str, Any]"
    ) -> "list[Any]":
        raise NotImplementedError


def _publish_the_rest(
    channel: str,
    calls: Calls,
    failure: Exception,
    args: "tuple[Any, ...]",
    kwargs: "dict[str, Any]",
) -> "NoReturn":
    """Call the listeners behind one that failed, then raise what failed."""
    failures = [failure]
    for call in calls:
        try:
            call(*args, **kwargs)
        except Exception as exc:
            failures.append(exc)
    raise failed(channel, failures)


def _order(listener: Listener) -> tuple[float, int]:
    return listener.order


def failed(channel: str, failures: list[Exception]) -> ChannelFailures:
    """Return the group for *failures* of listeners on *channel*."""
    first = failures[0]
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return ChannelFailures(f"{channel!r} failed: {type(first).__name__}: {first}{more}", failures)


def is_async(call: "Callable[..., Any]") -> bool:
    """Tell whether calling *call* gives a coroutine, as far as can be seen without calling it."""
    function: Any = getattr(call, "__func__", call)
    function = getattr(function, "func", function)  # functools.partial
    if not hasattr(function, "__code__"):
        function = getattr(type(function), "__call__", function)  # noqa: B004  # the method itself is wanted
    if hasattr(function, "_is_coroutine_marker") or hasattr(function, "_is_coroutine_mark"):
        return True  # inspect.markcoroutinefunction, asgiref
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


def describe(call: "Callable[..., Any]") -> str:
    """Return a name for *call* that a person recognizes."""
    owner = getattr(call, "__self__", None)
    if owner is not None and hasattr(call, "__func__"):
        return f"{getattr(owner, '__name__', type(owner).__name__)}.{call.__name__}"
    call = getattr(call, "func", call)
    name = getattr(call, "__qualname__", None)
    return f"{call.__module__}.{name}" if name else repr(call)
