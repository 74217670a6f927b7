"""
Database connections in threads that no request uses: `uses_database`.

Django keeps a connection for each thread and drops one that is broken, or too old, at the beginning
and end of each request. A thread in the background has none. Its connection goes stale when the
database closes it, after which all that the thread asks of it fails.
"""

from collections.abc import Callable
from functools import wraps
from inspect import isasyncgenfunction, isgeneratorfunction

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from engine_bridge.core.aio import running_loop
from engine_bridge.core.bus import is_async
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ListenerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any, TypeVar

    Function = TypeVar("Function", bound=Callable[..., Any])

FIRST, LAST = 0, 98  # priorities: around all other listeners, and the signals but just
CHANNELS = ("start", "drain", "stop", "exit", "graceful")


def uses_database(function: "Function") -> "Function":
    """
    Let *function*, run in the background, use the database as a view does.

    Stale connections are closed before it and after it. Where an event loop runs in the thread, as
    for listeners under ASGI, a function that is not async runs in the thread that Django has for
    such code, and what the call returns is to be awaited; the engine does so.

    For listeners, callbacks of monitors and whatever else runs outside of requests. Those that
    `ENGINE_BRIDGE` names have it already.

    Raises:
        ListenerError: *function* is no function, or a generator function.

    Source:
        Django, "Databases", "Persistent connections", and "Asynchronous support", "Async safety".
    """
    given: Any = function  # by whom no type checker has looked
    if isgeneratorfunction(given) or isasyncgenfunction(given) or not callable(given):
        raise ListenerError(
            f"uses_database wants a function that returns, got {function!r}; "
            "of a resource, decorate the functions that it calls"
        )

    @wraps(function)
    async def call_async(*args: "Any", **kwargs: "Any") -> "Any":
        await _close_async()
        try:
            return await function(*args, **kwargs)
        finally:
            await _close_async()

    def call_here(*args: "Any", **kwargs: "Any") -> "Any":
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    @wraps(function)
    def call(*args: "Any", **kwargs: "Any") -> "Any":
        if running_loop() is None:
            return call_here(*args, **kwargs)
        return sync_to_async(call_here, thread_sensitive=True)(*args, **kwargs)

    return call_async if is_async(function) else call  # type: ignore[return-value]  # as it was


def keep_fresh(engine: Engine) -> None:
    """Have stale connections closed around the listeners of the engine's own channels."""
    for channel in CHANNELS:
        engine.subscribe(channel, close_before, FIRST)
        engine.subscribe(channel, close_after, LAST)


def close_before() -> "Awaitable[None] | None":
    """Close stale connections before the listeners that may use them."""
    return _close()


def close_after() -> "Awaitable[None] | None":
    """Close stale connections that listeners have left."""
    return _close()


def _close() -> "Awaitable[None] | None":
    if running_loop() is not None:
        return _close_async()
    close_old_connections()
    return None


async def _close_async() -> None:
    """Close them in the thread that Django has for code that is not async."""
    await sync_to_async(close_old_connections, thread_sensitive=True)()
