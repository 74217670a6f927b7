"""ASGI and WSGI applications without an engine: what a server does by itself."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from journal import record

RELEASE = Path("release")  # in the working directory; the test makes it
PAUSE = 0.01  # between two looks at it


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
        while not RELEASE.exists():  # noqa: ASYNC110  # a test in another process
            await asyncio.sleep(PAUSE)
    body = f"{os.getpid()}\n".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the pid; `/held` when released."""
    if environ["PATH_INFO"] == "/held":
        record("held")
        while not RELEASE.exists():
            time.sleep(PAUSE)
    body = f"{os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
