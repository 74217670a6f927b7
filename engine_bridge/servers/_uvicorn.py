"""What serves with uvicorn; imported where that is asked for."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn

from engine_bridge.core.interface import interface_of

from .base import nothing, taking_options
from .listener import Listener, all_closed

CLOSE = (b"connection", b"close")


def _interface(app: Any) -> dict[str, Any]:
    """Return what uvicorn does not see by itself: it tells versions of ASGI apart."""
    return {"interface": "wsgi"} if interface_of(app) == "wsgi" else {}


class UvicornServing(uvicorn.Server):
    """
    One worker of uvicorn, see `base.Serving`.

    uvicorn's own shutdown hangs up on connections that were accepted and have not been read from.

    | ours | uvicorn's |
    |---|---|
    | `stop` | `should_exit` |
    | `drain_timeout` | `timeout_graceful_shutdown`, which begins when ours has passed |
    """

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket.socket],
        options: Mapping[str, Any],
        drain_timeout: float,
    ) -> None:
        with taking_options("uvicorn"):
            config = uvicorn.Config(app, **{**_interface(app), **options})
        super().__init__(config)
        self._sockets = sockets
        self._drain_timeout = drain_timeout
        self._listeners: list[Listener] = []
        self._cut_off = False
        self.when_ready: Callable[[], object] = nothing
        self.when_closed: Callable[[], object] = nothing

    def stop(self) -> None:
        """Have it leave; the second time, at once."""
        self._cut_off = self.should_exit
        self.should_exit = True

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]  # theirs is a generator, used as this is
        """Leave signals to the caller."""
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the lifespan's startup, then accept."""
        await super().startup(sockets=[])
        self._listeners = [
            Listener(sock, self._make_protocol, ssl=self.config.ssl) for sock in self._sockets
        ]
        self.when_ready()

    def _make_protocol(self) -> Any:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as in their `startup`
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, then run the lifespan's shutdown."""
        for listener in self._listeners:
            listener.close()
        self.when_closed()
        self._ask_to_close()
        state = self.server_state
        if not await all_closed(
            self._listeners, self._drain_timeout, lambda: self._cut_off, lambda: state.tasks
        ):
            self.config.timeout_graceful_shutdown = 0
        await super().shutdown()

    def _ask_to_close(self) -> None:
        """Have answers say that the connection closes; WebSockets and HTTP/2 have words for it."""
        self.server_state.default_headers.append(CLOSE)
        for connection in list(self.server_state.connections):
            if not hasattr(connection, "cycle"):
                connection.shutdown()
            elif connection.cycle is not None and CLOSE not in connection.cycle.default_headers:
                connection.cycle.default_headers.append(CLOSE)  # those of an earlier second
        loop = asyncio.get_running_loop()
        loop.call_later(self.config.timeout_keep_alive, self._close_silent)

    def _close_silent(self) -> None:
        """Hang up on who never said a word; uvicorn's own time-out begins with the first answer."""
        for connection in list(self.server_state.connections):
            if getattr(connection, "cycle", self) is None:
                connection.shutdown()
