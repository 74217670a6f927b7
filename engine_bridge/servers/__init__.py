"""
Servers: which one runs here, in which role, and how to serve with each.

`current_host()` is the answer for the process that calls it; `python -m engine_bridge host` prints
it from inside any server. `ServerPlugin` serves from a script, and `serve` on sockets handed in.
"""

import sys

from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import Host, current_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .base import Adapter
    from .plugin import ServerPlugin
    from .serving import serve

__all__ = [
    "SERVERS",
    "Host",
    "ServerNotAvailable",
    "ServerPlugin",
    "current_host",
    "load_server",
    "serve",
]

# In the order in which they are asked: who calls another comes first.
SERVERS = {
    "uwsgi": "engine_bridge.servers.uwsgi",
    "mod_wsgi": "engine_bridge.servers.mod_wsgi",
    "gunicorn": "engine_bridge.servers.gunicorn",
    "granian": "engine_bridge.servers.granian",
    "hypercorn": "engine_bridge.servers.hypercorn",
    "daphne": "engine_bridge.servers.daphne",
    "uvicorn": "engine_bridge.servers.uvicorn",
    "django": "engine_bridge.servers.runserver",
    "werkzeug": "engine_bridge.servers.werkzeug",
    "waitress": "engine_bridge.servers.waitress",
    "cheroot": "engine_bridge.servers.cheroot",
    "wsgiref": "engine_bridge.servers.wsgiref",
}


class ServerNotAvailable(EngineError):
    """No server of that name is known, or it is not installed."""


def load_server(name: str) -> "Adapter":
    """
    Import the adapter of server *name*, and only that one.

    Raises:
        ServerNotAvailable: There is none of that name.
    """
    try:
        module = SERVERS[name]
    except KeyError:
        raise ServerNotAvailable(
            f"no server {name!r}; known: {', '.join(sorted(SERVERS))}"
        ) from None
    from importlib import import_module

    adapter: Adapter = import_module(module)
    return adapter


def find_server() -> Host | None:
    """Return the host of this process, if one of the servers runs in it."""
    loaded = [name for name in SERVERS if name in sys.modules]
    if not loaded:
        return None
    from .base import Stack

    with Stack() as stack:
        hosts = (load_server(name).detect(stack) for name in loaded)
        return next((host for host in hosts if host is not None), None)


def __getattr__(name: str) -> object:
    """Import what not every process needs when it is asked for."""
    if name == "ServerPlugin":
        from .plugin import ServerPlugin

        return ServerPlugin
    if name == "serve":
        from .serving import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
