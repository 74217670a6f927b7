"""No framework, under WSGI."""

import time
from typing import TYPE_CHECKING

from frameworks.apps.lifecycle import hold, use
from journal import record
from released import PAUSE

from engine_bridge.frameworks.wsgi import EngineMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment


def ticks() -> "Iterator[bytes]":
    """Send something for as long as somebody listens."""
    record("streams")
    try:
        while True:
            yield b"tick\n"
            time.sleep(PAUSE)
    finally:
        record("parted")


def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Answer."""
    if environ["PATH_INFO"] == "/ticks":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return ticks()
    text = hold() if environ["PATH_INFO"] == "/held" else use()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


app = EngineMiddleware(respond)
