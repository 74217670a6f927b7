"""Patterns of the drain with no framework, under WSGI."""

from collections.abc import Iterable

from frameworks.patterns.life import health
from frameworks.patterns.threads import events, pieces, wait_for_news

from engine_bridge.frameworks.wsgi import EngineMiddleware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """Answer, each path in its way."""
    match environ["PATH_INFO"]:
        case "/events":
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            return events()
        case "/download":
            start_response("200 OK", [("Content-Type", "application/octet-stream")])
            return pieces()
        case "/poll":
            status, body = ("200 OK", b"news\n") if wait_for_news() else ("204 No Content", b"")
        case _:
            status, body = "200 OK", b"hello\n"
    start_response(status, [("Content-Length", str(len(body)))] if body else [])
    return [body]


app = health.wsgi_before(EngineMiddleware(answer))
