"""
werkzeug's development server: `flask run`, `run_simple`, `app.run()`; alone or with its reloader.

Source:
    werkzeug 3.1, `serving.py`; `_reloader.py`: the child serves in a thread, and its main thread
    leaves on Ctrl-C. The parent has bound the socket, whose number is in WERKZEUG_SERVER_FD.
    It closes each connection after one answer.

| ours | werkzeug's |
|---|---|
| options | `request_handler`, `passthrough_errors`, `ssl_context`, as of `run_simple` |
| `certfile`, `keyfile` | `ssl_context`, for who cannot give one |
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from socket import AF_UNIX, SHUT_RDWR, socket

from engine_bridge.core.host import Host

from .base import (
    Anew,
    ServerHost,
    Stack,
    by_ctrl_c,
    single,
    waiting,
)
from .worker import Duplicates, Leaving, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from werkzeug.serving import BaseWSGIServer


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if werkzeug serves in it."""
    if stack.find("werkzeug.serving") is None:
        return None
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        return ServerHost("werkzeug", lambda: Anew(_leave_the_socket))
    if stack.find("werkzeug._reloader") is not None:
        return ServerHost("werkzeug", lambda: Anew(by_ctrl_c), "reloader")
    return single("werkzeug", by_ctrl_c)


def _leave_the_socket() -> None:
    """Have the server go, but keep its socket, which it would close, for the next program."""
    descriptor = os.dup(int(os.environ["WERKZEUG_SERVER_FD"]))
    os.set_inheritable(descriptor, True)
    os.environ["WERKZEUG_SERVER_FD"] = str(descriptor)
    by_ctrl_c()


class WerkzeugServing(Worker):
    """One worker of werkzeug, a thread for each request, see `base.Serving`."""

    def run(self) -> None:
        """As of `Serving`."""
        with self.leaving as leaving, Duplicates(self.sockets) as sockets, ExitStack() as stack:
            servers = {}
            for each in sockets:
                server = _server(leaving, each, self.app, self.options)
                stack.callback(server.server_close)
                servers[server.fileno()] = server
            self.when_ready()
            while not leaving.is_told:
                for descriptor in leaving.wait(servers):
                    servers[descriptor].handle_request()
            for server in servers.values():
                for _ in waiting(server.socket):
                    server.handle_request()
                server.server_close()
            for each in sockets:
                each.close()
            self.when_closed()
            while leaving.connections and not leaving.is_cut_off:
                leaving.wait()
            for connection in list(leaving.connections):
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)


def _server(
    leaving: Leaving, listener: socket, app: "Any", options: "Mapping[str, Any]"
) -> "BaseWSGIServer":
    """Return werkzeug's server on *listener*; it notes which connections are open."""
    from werkzeug.serving import ThreadedWSGIServer

    class Server(ThreadedWSGIServer):
        def process_request(self, request: "Any", client_address: "Any") -> None:
            leaving.connections.add(request)
            super().process_request(request, client_address)

        def shutdown_request(self, request: "Any") -> None:
            try:
                super().shutdown_request(request)
            finally:
                leaving.ended(request)

    theirs = {"handler" if name == "request_handler" else name: options[name] for name in options}
    if "certfile" in theirs:
        theirs["ssl_context"] = (theirs.pop("certfile"), theirs.pop("keyfile", None))
    name = listener.getsockname()
    host, port = (f"unix://{name}", 0) if listener.family == AF_UNIX else name[:2]
    server = Server(host, port, app, fd=listener.fileno(), **theirs)
    server.socket.setblocking(False)
    if server.ssl_context is not None:  # the handshake is for who reads, in a thread of its own
        vars(server.socket)["do_handshake_on_connect"] = False
    return server
