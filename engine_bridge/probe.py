"""
A tiny application that tells which host it has, to be served in place of one's own.

`gunicorn engine_bridge.probe:wsgi`, `uvicorn engine_bridge.probe:asgi`, and so on;
`python -m engine_bridge host` does it for the servers that have a command.
"""

import os

from engine_bridge.core.engine import Engine
from engine_bridge.core.host import Host, current_host
from engine_bridge.frameworks import asgi as asgi_adapter
from engine_bridge.frameworks import wsgi as wsgi_adapter
from engine_bridge.servers.base import version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

engine = Engine()
HEADERS = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]


def describe(host: Host) -> str:
    """Return what is known of *host*, a line for each fact."""
    pid = os.getpid()
    facts = {
        "server": f"{host.server} {_version(host.server)}".rstrip() or "none that we know",
        "role": host.role,
        "process": str(pid),
        "main process": "this one" if host.main_pid == pid else str(host.main_pid),
        "drain": "early, while the server still serves"
        if host.drain == "early"
        else "late, when the server has stopped to serve",
        "drain_delay": "kept" if host.keeps_drain_delay else "has no effect",
        "restart": host.restarts_by,
    }
    width = max(map(len, facts))
    return "".join(f"{name:{width}}  {fact}\n" for name, fact in facts.items())


def _version(server: str) -> str:
    package = {"runserver": "django"}.get(server, server)
    return version(package) if package else ""


def _facts() -> bytes:
    return describe(engine.host or current_host("wsgi")).encode()


def _wsgi(environ: "dict[str, Any]", start_response: "Callable[..., Any]") -> list[bytes]:
    start_response("200 OK", HEADERS)
    return [_facts()]


async def _asgi(scope: "Any", receive: "Any", send: "Any") -> None:
    if scope["type"] == "http":
        headers = [(name.encode(), value.encode()) for name, value in HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _facts()})


wsgi = wsgi_adapter.EngineMiddleware(_wsgi, engine)
asgi = asgi_adapter.EngineMiddleware(_asgi, engine)
