"""A Bottle application under test."""

from collections.abc import Iterator

from bottle import Bottle, request, response
from servers.apps.generic import STREAMS, answer_in_thread

from engine_bridge.frameworks.wsgi import EngineMiddleware

app = Bottle()
app.wsgi = EngineMiddleware(app.wsgi)


def stream() -> Iterator[bytes]:
    """Send server-sent events until the engine drains."""
    response.content_type = "text/event-stream"
    return STREAMS[request.path]()


def respond() -> bytes:
    """Answer, each path in its way."""
    return answer_in_thread(request.path)


app.route(list(STREAMS), callback=stream)
app.route(["/", "/held"], callback=respond)
