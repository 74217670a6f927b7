"""What serves with hypercorn; imported where that is asked for."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, cast

from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config, Sockets
from hypercorn.typing import AppWrapper
from hypercorn.utils import wrap_app

from engine_bridge.core.errors import EngineError

from . import ServerNotAvailable
from .base import nothing
from .closing import asking_to_close
from .listener import Listener, all_closed


def _config(options: Mapping[str, Any]) -> Config:
    """Return hypercorn's configuration, which would take any name."""
    known = Config()
    for name in options:
        if not hasattr(known, name):
            raise EngineError(f"hypercorn does not take these options: it has no {name!r}")
    return Config.from_mapping(options)


class HypercornServing:
    """
    One worker of hypercorn, see `base.Serving`.

    hypercorn's own shutdown begins when its trigger returns: ours returns when all connections have
    ended, so nothing is left for it but the lifespan.

    | ours | hypercorn's |
    |---|---|
    | `stop` | `shutdown_trigger` |
    | `drain_timeout` | `graceful_timeout`, which begins when ours has passed |
    """

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket.socket],
        options: Mapping[str, Any],
        drain_timeout: float,
    ) -> None:
        self._config = _config(options)
        wrapped = wrap_app(app, self._config.wsgi_max_body_size, None)
        self._app = cast(AppWrapper, asking_to_close(wrapped, lambda: self._stops))
        self._sockets = list(sockets)
        self._drain_timeout = drain_timeout
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = asyncio.Event()
        self._stops = 0
        self.when_ready: Callable[[], object] = nothing
        self.when_closed: Callable[[], object] = nothing

    def run(self) -> None:
        """Serve until `stop`."""
        with asyncio.Runner(loop_factory=_loop_factory(self._config)) as runner:
            runner.run(self._serve())

    def stop(self) -> None:
        """Have it leave; the second time, at once."""
        self._stops += 1
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._told.set)
            except RuntimeError:
                pass  # it has left already

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        if self._stops:
            self._told.set()
        loop.create_server = self._listen  # type: ignore[assignment, method-assign]  # what accepts is ours
        secure = self._sockets if self._config.ssl_enabled else []
        insecure = [] if self._config.ssl_enabled else self._sockets
        await worker_serve(
            self._app,
            self._config,
            sockets=Sockets(secure, insecure, []),
            shutdown_trigger=self._drain,
        )

    async def _listen(
        self,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        *address: None,
        sock: socket.socket,
        backlog: int,
        **tls: Any,
    ) -> Listener:
        self._listeners.append(Listener(sock, make_protocol, **tls))
        if len(self._listeners) == len(self._sockets):
            self.when_ready()
        return self._listeners[-1]

    async def _drain(self) -> None:
        """Return when told to stop and all is answered; also when `max_requests` cancels it."""
        try:
            await self._told.wait()
        finally:
            self._stops = self._stops or 1
            for listener in self._listeners:
                listener.close()
            self.when_closed()
            if not await all_closed(self._listeners, self._drain_timeout, lambda: self._stops > 1):
                self._config.graceful_timeout = 0


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    if config.worker_class not in {"asyncio", "uvloop"}:
        raise ServerNotAvailable(f"hypercorn on {config.worker_class} cannot serve like this")
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module(
        config.worker_class
    ).new_event_loop
    return factory
