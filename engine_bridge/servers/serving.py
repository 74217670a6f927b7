"""Serve with any server, on sockets that were handed in, and leave without losing a connection."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from engine_bridge.core import nets, signals

from . import ServerNotAvailable, load_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from .base import Serving

__all__ = ["make_serving", "serve"]


def serve(
    app: "Any",
    sockets: Sequence[socket.socket],
    options: "Mapping[str, Any] | None" = None,
    *,
    server: str,
    drain_timeout: float = 30.0,
) -> None:
    """
    Serve *app* with one worker of *server* until this process is told to go.

    On SIGTERM or SIGINT it accepts no more, answers what it has accepted, asks clients that stay to
    close, and returns when the last connection has ended. A second signal cuts off. In another
    thread than the main one nothing comes of signals.

    Args:
        app: An ASGI or WSGI application, as the server takes it.
        sockets: Bound sockets, TCP or Unix. They may be shared with other processes, and stay open.
        options: The server's own, by its own names.
        server: Its name.
        drain_timeout: Seconds to wait for connections to end. One that stays idle ends when the
            server's keep-alive time-out passes, if that is sooner.

    Raises:
        ServerNotAvailable: There is no such server, or it cannot serve like that.
    """
    serving = make_serving(app, sockets, options, server=server, drain_timeout=drain_timeout)
    with _told_by_signals(serving.stop):
        serving.run()


def make_serving(
    app: "Any",
    sockets: Sequence[socket.socket],
    options: "Mapping[str, Any] | None" = None,
    *,
    server: str,
    drain_timeout: float = 30.0,
) -> "Serving":
    """Return what serves when it is run, and leaves when it is told to. Arguments as of `serve`."""
    make = getattr(load_server(server), "serving", None)
    if make is None:
        raise ServerNotAvailable(f"{server} cannot serve on sockets that are handed in")
    for sock in sockets:
        sock.listen(socket.SOMAXCONN)
        sock.setblocking(False)  # another process may take the connection that woke this one
    serving: Serving = make(app, sockets, options or {}, drain_timeout)
    return serving


@contextmanager
def _told_by_signals(stop: Callable[[], object]) -> "Iterator[None]":
    """Have SIGTERM and SIGINT call *stop*, and the engines hear of them first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: "FrameType | None") -> None:
        stop()

    earlier = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    for gate in nets.gates("wsgi") + nets.gates("asgi"):
        signals.chain(gate.engine)
    try:
        yield
    finally:
        for number, found in earlier.items():
            signal.signal(number, found)
