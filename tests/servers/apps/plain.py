"""ASGI and WSGI applications without an engine: what a server does by itself."""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from journal import record
from released import wait_released, wait_released_async


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer with the pid; `/held` when released."""
    if scope["type"] != "http":
        raise ValueError(f"no scope for me: {scope['type']}")
    if scope["path"] == "/held":
        record("held")
        await wait_released_async()
    body = f"{os.getpid()}\n".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the pid; `/held` when released."""
    if environ["PATH_INFO"] == "/held":
        record("held")
        wait_released()
    body = f"{os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
