"""
What serves with granian; imported where that is asked for.

granian has no way to hand in a socket but a private class, and makes its workers by
multiprocessing; so this is what the body of its workers does, in this process, with its parts.

Its shutdown hangs up on connections that were accepted and have not been read from. So it hears of
ours last thing, when all have ended. Until then it must not accept: its descriptor of the socket is
made to lead to another one, to which nobody connects. Nothing else keeps it from accepting, and the
socket itself, which others share, stays as it is.

Source:
    granian 2.8: `server/mp.py`, `_spawn_asgi_lifespan_worker` and `_spawn_wsgi_worker`;
    hyper, `server/dispatch`, `disable_keep_alive`.
"""

import asyncio
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from granian._futures import _future_watcher_wrapper, _new_cbscheduler
from granian._granian import ASGIWorker, SocketHolder, WorkerSignal, WSGIWorker
from granian._loops import loops
from granian.asgi import LifespanProtocol
from granian.asgi import _callback_wrapper as asgi_callback
from granian.constants import Interfaces, TaskImpl
from granian.server.mp import MPServer
from granian.wsgi import _callback_wrapper as wsgi_callback

from engine_bridge.core.errors import EngineError
from engine_bridge.core.interface import interface_of

from . import ServerNotAvailable
from .base import nothing, taking_options, waiting
from .closing import asking_to_close
from .listener import PAUSE, is_open

FILES = ("ssl_cert", "ssl_key", "ssl_ca")
DESCRIPTORS = "/dev/fd"
BACKLOG = 1024  # granian's own
TAKEN_SOON = 0.001  # seconds between two looks at whether granian has accepted what waits


class GranianServing:
    """
    One worker of granian, see `base.Serving`; it takes one socket.

    `drain_timeout` is `workers_kill_timeout` in granian's words.
    """

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket.socket],
        options: Mapping[str, Any],
        drain_timeout: float,
    ) -> None:
        if len(sockets) != 1:
            raise ServerNotAvailable(f"granian serves on one socket, not on {len(sockets)}")
        self._app = app
        self._socket = sockets[0]
        self._settings = _settings(self._app, options)
        self._drain_timeout = drain_timeout
        self._signal = WorkerSignal()
        self._told: SimpleQueue[None] = SimpleQueue()  # may be put to amid a signal handler
        self._stops = 0
        self.when_ready: Callable[[], object] = nothing
        self.when_closed: Callable[[], object] = nothing

    def run(self) -> None:
        """Serve until `stop`."""
        loop = loops.get(self._settings.loop)
        try:
            if self._settings.interface == Interfaces.WSGI:
                self._run_wsgi(loop)
            else:
                loop.run_until_complete(self._run_asgi(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def stop(self) -> None:
        """Have it leave; the second time, at once."""
        self._stops += 1
        self._told.put(None)

    def _run_wsgi(self, loop: asyncio.AbstractEventLoop) -> None:
        app, told, busy = self._app, self, _Busy()

        def answer(environ: Any, start_response: Any) -> Any:
            def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
                if told._stops:
                    headers = [*headers, ("connection", "close")]
                return start_response(status, headers, *exc_info)

            with busy:
                body = app(environ, start)
            return body if isinstance(body, list) else _Body(body, busy)

        settings = self._settings
        callback = wsgi_callback(answer, _scope(settings), _log_format(settings))
        ended: SimpleQueue[None] = SimpleQueue()
        self._begin(WSGIWorker, callback, loop, lambda: ended.put(None))
        ended.get()
        busy.wait()

    async def _run_asgi(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self._settings
        lifespan = LifespanProtocol(self._app)
        if settings.interface == Interfaces.ASGI:
            await lifespan.startup()
            if lifespan.interrupt:
                raise EngineError("the application's startup failed") from lifespan.exc
        app = asking_to_close(self._app, lambda: self._stops)
        callback = asgi_callback(app, _scope(settings), lifespan.state, _log_format(settings))
        ended = asyncio.Event()

        def end() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        self._begin(ASGIWorker, _future_watcher_wrapper(callback), loop, end)
        await ended.wait()
        if settings.interface == Interfaces.ASGI:
            await lifespan.shutdown()

    def _begin(
        self,
        kind: Any,
        callback: Any,
        loop: asyncio.AbstractEventLoop,
        end: Callable[[], object],
    ) -> None:
        """Have granian's threads serve; *end* is called when they are done, or given up."""
        settings = self._settings
        descriptor = os.dup(self._socket.fileno())  # granian closes it
        is_unix = self._socket.family == socket.AF_UNIX
        websockets = () if kind is WSGIWorker else (settings.websockets,)
        worker = kind(
            1,
            (None, SocketHolder(descriptor, is_unix, BACKLOG)),  # type: ignore[call-arg]  # its stub tells no arguments
            None,
            settings.runtime_threads,
            settings.runtime_blocking_threads,
            settings.blocking_threads,
            settings.blocking_threads_idle_timeout,
            settings.backpressure,
            settings.http,
            settings.http1_settings,
            settings.http2_settings,
            *websockets,
            settings.static_path,
            *settings.ssl_ctx,
            (None, None),
        )
        self._signal.add_cb(end)
        serve = worker.serve_mtr_uds if is_unix else worker.serve_mtr
        by_asyncio = settings.task_impl == TaskImpl.asyncio
        serve(_new_cbscheduler(loop, callback, impl_asyncio=by_asyncio), loop, self._signal)
        threading.Thread(target=self._drain, args=(descriptor, end), daemon=True).start()
        self.when_ready()

    def _drain(self, descriptor: int, end: Callable[[], object]) -> None:
        """Wait to be told; end when all is answered, or when it is to wait no longer."""
        self._told.get()
        try:
            self._accept_no_more(descriptor)
            self._wait_answered(end)
        finally:
            self._signal.set()

    def _accept_no_more(self, descriptor: int) -> None:
        self._place = _place(self._socket)  # whose owner may close it hereafter
        for _ in waiting(self._socket):
            time.sleep(TAKEN_SOON)
        with socket.socket(socket.AF_UNIX) as nobodys:
            nobodys.bind("")  # unix(7): a name that no file has
            nobodys.listen()
            nobodys.setblocking(False)
            os.dup2(nobodys.fileno(), descriptor, inheritable=False)
        self.when_closed()

    def _wait_answered(self, end: Callable[[], object]) -> None:
        deadline = time.monotonic() + self._drain_timeout
        while any(is_open(connection) for connection in _accepted(self._place)):
            if self._stops > 1 or time.monotonic() > deadline:
                end()  # granian itself would wait for ever
                break
            time.sleep(PAUSE)


class _Busy:
    """
    Counts the calls that granian's threads make into Python.

    A thread that comes back from one while the interpreter ends is ended by it, which Rust does not
    bear: the process aborts.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._calls += 1

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when there are none, however long that takes."""
        with self._changed:
            if self._calls:
                logging.getLogger("engine_bridge").warning(
                    "granian: waiting for requests, which nothing can cut off in a thread: %d",
                    self._calls,
                )
            self._changed.wait_for(lambda: not self._calls)


class _Body:
    """What a WSGI application has returned, while it is sent."""

    def __init__(self, body: Any, busy: _Busy) -> None:
        self._body = body
        self._parts = iter(body)
        self._busy = busy

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._busy:
            return cast(bytes, next(self._parts))

    def close(self) -> None:
        if hasattr(self._body, "close"):
            with self._busy:
                self._body.close()


def _settings(app: Any, options: Mapping[str, Any]) -> Any:
    """Return granian's reading of *options*."""
    given = {name: Path(path) for name in FILES if (path := options.get(name)) is not None}
    interface = Interfaces(options.get("interface", interface_of(app)))
    if interface == Interfaces.RSGI:
        raise ServerNotAvailable("granian serves RSGI by its own command only")
    with taking_options("granian"):
        return MPServer("", **{**options, **given, "interface": interface})


def _scope(settings: Any) -> dict[str, Any]:
    return {"url_path_prefix": settings.url_path_prefix}


def _log_format(settings: Any) -> str | None:
    return settings.log_access_format if settings.log_access else None


def _accepted(place: object) -> Iterator[socket.socket]:
    """Yield the connections of this process that came by the one port: granian tells of none."""
    for name in os.listdir(DESCRIPTORS):
        try:
            duplicate = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        if not stat.S_ISSOCK(os.fstat(duplicate).st_mode):
            os.close(duplicate)
            continue
        with socket.socket(fileno=duplicate) as connection:
            if _place(connection) == place and _is_connected(connection):
                yield connection


def _place(sock: socket.socket) -> object:
    """Return the port, or the path, on which *sock* is: one that listens may have any address."""
    address = sock.getsockname()
    return address[1] if isinstance(address, tuple) else address


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
