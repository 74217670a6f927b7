"""A WSGI application under test, wrapped in the engine's middleware."""

import os

from journal import record
from servers.apps.lifecycle import hold, instrument

from engine_bridge import engine
from engine_bridge.frameworks.wsgi import EngineMiddleware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

instrument(engine)


def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Answer, each path in its way."""
    match environ["PATH_INFO"]:
        case "/held":
            body = hold()
        case "/exit":
            engine.exit()
            body = b"exited\n"
        case "/restart":
            record("asked")
            engine.restart()
            body = b"restarting\n"
        case "/pid":  # many of these would make a long journal
            body = f"{os.getpid()}\n".encode()
        case _:
            record("request")
            body = f"{os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


app = EngineMiddleware(respond)


def counted(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Tell of each request before the engine hears of it."""
    record("arrived")
    return app(environ, start_response)
