"""No framework, under WSGI."""

from typing import TYPE_CHECKING

from frameworks.apps.lifecycle import hold, use

from engine_bridge.frameworks.wsgi import EngineMiddleware

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """Answer."""
    text = hold() if environ["PATH_INFO"] == "/held" else use()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]


app = EngineMiddleware(respond)
