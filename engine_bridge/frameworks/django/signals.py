"""
Django's signals for what the engine does; the sender is the engine.

| signal | sent |
|---|---|
| `engine_started` | as the last listener of `start`; a receiver that raises undoes the start |
| `engine_draining` | on `drain`, while requests are still answered |
| `engine_stopped` | as the last listener of `stop`, if `engine_started` was sent |

Receivers may be async. The others may use the database, also under ASGI.
"""

from django.dispatch import Signal

from engine_bridge.core.aio import running_loop
from engine_bridge.core.engine import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

engine_started = Signal()
engine_draining = Signal()
engine_stopped = Signal()

LAST = 97  # priority: behind the resources, which are left at 90


def send_for(engine: Engine) -> None:
    """Have the signals sent when *engine* does what they tell."""
    sender = SignalSender(engine)
    engine.subscribe("start", sender.start, LAST)
    engine.subscribe("drain", sender.drain)
    engine.subscribe("stop", sender.stop, LAST)


class SignalSender:
    """Sends the signals of one engine; async receivers run on the loop of its async listeners."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self) -> "Awaitable[object] | None":
        """Tell of the start; the first receiver that fails ends it."""
        if self._is_async(engine_started):
            awaitable: Awaitable[object] = engine_started.asend(self._engine)
            return awaitable
        engine_started.send(self._engine)
        return None

    def drain(self) -> "Awaitable[None] | None":
        """Tell of the drain."""
        return self._send_to_all(engine_draining)

    def stop(self) -> "Awaitable[None] | None":
        """Tell of the stop."""
        return self._send_to_all(engine_stopped)

    def _send_to_all(self, signal: "Any") -> "Awaitable[None] | None":
        if self._is_async(signal):
            return self._send_to_all_async(signal)
        _raise_failures(signal.send_robust(self._engine))
        return None

    async def _send_to_all_async(self, signal: "Any") -> None:
        _raise_failures(await signal.asend_robust(self._engine))

    def _is_async(self, signal: "Any") -> bool:
        """Whether *signal* must be awaited: a loop runs here, or a receiver wants one."""
        if running_loop() is not None:
            return True
        _, receivers = signal._live_receivers(self._engine)  # there is no public way to ask
        return bool(receivers)


def _raise_failures(responses: "list[tuple[Any, Any]]") -> None:
    """Raise what receivers failed with, once all have been called."""
    failures = [answer for _, answer in responses if isinstance(answer, Exception)]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup("receivers of a signal failed", failures)
