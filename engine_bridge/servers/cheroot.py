"""
cheroot: one process, threads.

| ours | cheroot's |
|---|---|
| options | those of `cheroot.wsgi.Server`, and its attributes, such as `ssl_adapter` |
| `ssl_certificate`, `ssl_private_key` | `ssl_adapter`, by CherryPy's names |

Source:
    cheroot 11, `server.py`: SystemExit, which our handler raises on SIGTERM, has it answer what it
    has begun, and leave. Its `stop` closes idle connections, and connects to its own socket; its
    `prepare` binds one, or takes descriptor 3 where anybody has set LISTEN_PID.
    `connections.py`: an idle connection is kept for `timeout`.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from socket import AF_UNIX, IPPROTO_TCP, SHUT_RDWR, TCP_NODELAY, socket

from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import Host

from .base import Stack, by_sigterm, single, waiting
from .worker import Duplicates, Leaving, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cheroot.wsgi import Server


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if cheroot serves in it."""
    return None if stack.find("cheroot.") is None else single("cheroot", by_sigterm)


class CherootServing(Worker):
    """A server for each socket, each in a thread, since cheroot knows but one."""

    def run(self) -> None:
        """As of `Serving`."""
        self._prepared: SimpleQueue[bool] = SimpleQueue()
        self._error: BaseException | None = None
        with self.leaving as leaving, Duplicates(self.sockets) as sockets:
            servers = [_server(leaving, each, self.app, self.options) for each in sockets]
            threads = [_in_daemon_thread(self._serve, each) for each in servers]
            try:
                if sum(self._prepared.get() for _ in servers) == len(servers):
                    self.when_ready()
                while not leaving.is_told:
                    leaving.wait()
                for server in servers:
                    _accept_no_more(server)
                self.when_closed()
                while leaving.connections and not leaving.is_cut_off:
                    leaving.wait()
            finally:
                _end(leaving, servers, threads)
        if self._error is not None:
            raise self._error

    def _serve(self, server: "Server") -> None:
        """Run one *server*; have the others leave when it ends."""
        try:
            server.prepare()
            self._prepared.put(True)
            server.serve()
        except BaseException as exc:
            self._error = exc
        finally:
            self._prepared.put(False)
            if not self.leaving.is_told:
                self.leaving.tell()


def _in_daemon_thread(call: "Any", *args: object) -> threading.Thread:
    """Call *call*; the threads of cheroot that it begins are daemons as well."""
    thread = threading.Thread(target=call, args=args, name="cheroot", daemon=True)
    thread.start()
    return thread


def _accept_no_more(server: "Server") -> None:
    """Accept what waits, then close the listener."""
    if not server.ready:
        return  # it has died
    connections: Any = server._connections  # type: ignore[attr-defined]  # its types lack it
    connections._selector.unregister(server.socket.fileno())
    for _ in waiting(server.socket):
        connection = connections._from_server_socket(server.socket)
        if connection is not None:
            server.process_conn(connection)
    server.socket.close()


def _end(
    leaving: Leaving, servers: "Sequence[Server]", threads: Sequence[threading.Thread]
) -> None:
    """Close what is open, and end the threads, which may not all be done."""
    stuck = list(leaving.connections)
    for connection in stuck:
        with suppress(OSError):
            connection.socket.shutdown(SHUT_RDWR)
    stops = [_in_daemon_thread(server.stop) for server in servers]
    for thread in () if stuck else (*stops, *threads):
        thread.join()


def _server(
    leaving: Leaving, listener: socket, app: "Any", options: "Mapping[str, Any]"
) -> "Server":
    """Return cheroot's server on *listener*; it notes which connections are open."""
    from inspect import signature

    from cheroot import connections, wsgi
    from cheroot.server import HTTPConnection
    from cheroot.ssl.builtin import BuiltinSSLAdapter

    class Connection(HTTPConnection):
        def __init__(self, *args: "Any") -> None:
            super().__init__(*args)
            leaving.connections.add(self)

        def close(self) -> None:
            try:
                super().close()
            finally:
                leaving.ended(self)

    class OwnServer(wsgi.Server):
        ConnectionClass = Connection

        def prepare(self) -> None:
            self._interrupt = None
            if self.nodelay and listener.family != AF_UNIX:
                listener.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # connections inherit it
            self.software = self.software or f"{self.version} Server"
            self.socket = listener if self.ssl_adapter is None else self.ssl_adapter.bind(listener)
            self._connections = connections.ConnectionManager(self)
            self.requests.start()
            self.ready = True

        @property
        def can_add_keepalive_connection(self) -> bool:
            """Whether a connection is kept after the present answer."""
            return not leaving.is_told and bool(super().can_add_keepalive_connection)

    options = dict(options)
    if "ssl_certificate" in options:
        files = options.pop("ssl_certificate"), options.pop("ssl_private_key", None)
        options["ssl_adapter"] = BuiltinSSLAdapter(*files)
    parameters = signature(wsgi.Server.__init__).parameters
    server = OwnServer(
        OwnServer.resolve_real_bind_addr(listener),  # type: ignore[no-untyped-call]  # cheroot
        app,
        **{name: value for name, value in options.items() if name in parameters},
    )
    for name in options.keys() - parameters.keys():
        if not hasattr(server, name):
            raise EngineError(f"cheroot's server has no option {name!r}")
        setattr(server, name, options[name])
    return server
