"""A part on the bus: its methods listen to the channels of the same name."""

from collections.abc import Callable

from .engine import Engine
from .errors import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Plugin:
    """
    A part on the bus: `Plugin(engine).subscribe()` turns it on, `.unsubscribe()` off again.

    A subclass lists in `channels` which of its methods listen to the channel of their name; the
    priority is the method's own `priority` attribute, or 50. What a plugin subscribes by
    `self.listen`, on any channel, is undone with the rest.

    Args:
        engine: The engine to listen to.
    """

    channels: tuple[str, ...] = ("start", "stop", "exit", "graceful")

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Engine):
            raise EngineError(
                f"{type(self).__name__} wants an Engine first, got {engine!r}: "
                f"{type(self).__name__}(engine, …)"
            )
        self.engine = engine
        self._listening: list[tuple[str, Callable[..., Any]]] = []

    def subscribe(self) -> None:
        """Turn the plugin on; twice is as good as once."""
        for channel in self.channels:
            method = getattr(self, channel, None)
            if method is not None:
                self.listen(channel, method)

    def unsubscribe(self) -> None:
        """Turn the plugin off: undo all that it subscribed."""
        while self._listening:
            self.engine.unsubscribe(*self._listening.pop())

    def listen(
        self, channel: str, listener: "Callable[..., Any]", priority: float | None = None
    ) -> None:
        """Subscribe *listener* until the plugin is turned off."""
        self.engine.subscribe(channel, listener, priority)
        if (channel, listener) not in self._listening:
            self._listening.append((channel, listener))
