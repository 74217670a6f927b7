"""Serve with any server, on sockets that were handed in, and leave without losing a connection."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module

from engine_bridge.core import nets, signals
from engine_bridge.core.errors import EngineError

from . import ServerNotAvailable, load_server
from .application import load
from .base import version
from .waking import Waker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

    from .base import Serving

__all__ = ["check_server", "make_serving", "serve"]

SERVINGS = {
    "uvicorn": "engine_bridge.servers._uvicorn:UvicornServing",
    "hypercorn": "engine_bridge.servers._hypercorn:HypercornServing",
    "granian": "engine_bridge.servers._granian:GranianServing",
    "gunicorn": "engine_bridge.servers.arbiter:GunicornServing",
    "waitress": "engine_bridge.servers.waitress:WaitressServing",
    "cheroot": "engine_bridge.servers.cheroot:CherootServing",
    "werkzeug": "engine_bridge.servers.werkzeug:WerkzeugServing",
}  # each takes what `make_serving` takes, by place; those in modules of their own import theirs


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
        app: An ASGI or WSGI application, or its name, `module:attribute`.
        sockets: Bound sockets, TCP or Unix. They may be shared with other processes, and stay open.
        options: The server's own, by its own names.
        server: Its name.
        drain_timeout: Seconds to wait for connections to end. One that stays idle ends when the
            server's keep-alive time-out passes, if that is sooner.

    Raises:
        ServerNotAvailable: There is no such server, or it cannot serve like that.
        EngineError: Something is no application, or none for this server, no socket that can
            listen, or no option.
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
    make = _find(server)
    if not callable(app) and not isinstance(app, str):
        raise EngineError(f"serve wants an application, or its name, got {app!r}")
    _prepare(sockets)
    if server != "gunicorn":  # whose worker imports it, anew each time
        app = load(app, server)
    serving: Serving = make(app, sockets, options or {}, drain_timeout)
    return serving


def _prepare(sockets: Sequence[socket.socket]) -> None:
    if isinstance(sockets, socket.socket) or not sockets:
        raise EngineError(f"serve wants a list of one socket at least, got {sockets!r}")
    for sock in sockets:
        try:
            sock.listen(socket.SOMAXCONN)
            sock.setblocking(False)  # another process may take the connection that woke this one
        except (AttributeError, OSError) as exc:
            raise EngineError(f"cannot serve on {sock!r}: {exc}") from exc


def check_server(server: str) -> None:
    """
    See whether we can serve with *server*.

    Raises:
        ServerNotAvailable: There is none of that name, or it takes no sockets.
    """
    load_server(server)
    if server not in SERVINGS:
        raise ServerNotAvailable(
            f"{server} cannot serve on sockets that are handed in; these can: {', '.join(SERVINGS)}"
        )


def _find(server: str) -> "Any":
    """Return the class of what serves with *server*."""
    check_server(server)
    try:
        import_module(server)
    except ModuleNotFoundError as exc:
        if exc.name != server:
            raise  # its own imports are at fault
        raise ServerNotAvailable(
            f"{server} is not installed: pip install 'engine-bridge[{server}]'"
        ) from exc
    module, _, name = SERVINGS[server].partition(":")
    try:
        return getattr(import_module(module), name)
    except ImportError as exc:
        raise ServerNotAvailable(
            f"{server} {version(server)} has not what we serve with: {exc}; "
            f"pip install 'engine-bridge[{server}]' takes one that has"
        ) from exc


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
        with Waker():
            yield
    finally:
        for number, found in earlier.items():
            signal.signal(number, found)
