"""
The applications of `wsgi.py` and `asgi.py` without an engine, for what a server does by itself.

They start and stop as is usual without one: by lifespan, or where there is none when they are
imported and at exit.
"""

import atexit
import os

from journal import record
from released import wait_released, wait_released_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any
    from wsgiref.types import StartResponse, WSGIEnvironment


def start() -> None:
    """Open what the application needs."""
    if "APP_FAILS_UNTIL" in os.environ:
        raise RuntimeError("the database is down")
    record("start")


def stop() -> None:
    """Close it."""
    record("stop")


if "APP_HAS_LIFESPAN" not in os.environ:
    start()
    atexit.register(stop)


def wsgi(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Answer, or hold the request until the test releases it."""
    if environ["PATH_INFO"] == "/held":
        record("held")
        wait_released()
        record("released")
    else:
        record("request")
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]


async def asgi(
    scope: "dict[str, Any]",
    receive: "Callable[[], Awaitable[dict[str, Any]]]",
    send: "Callable[[dict[str, Any]], Awaitable[None]]",
) -> None:
    """Do the same."""
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["path"] == "/held":
        record("held")
        await wait_released_async()
        record("released")
    else:
        record("request")
    headers = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok\n"})


async def live(
    receive: "Callable[[], Awaitable[dict[str, Any]]]",
    send: "Callable[[dict[str, Any]], Awaitable[None]]",
) -> None:
    """Start and stop with the server."""
    await receive()
    try:
        start()
    except RuntimeError as exc:
        await send({"type": "lifespan.startup.failed", "message": f"RuntimeError: {exc}"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    stop()
    await send({"type": "lifespan.shutdown.complete"})
