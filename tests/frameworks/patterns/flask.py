"""Patterns of the drain with Flask, and Flask-Sock for WebSockets."""

from flask import Flask, Response
from flask_sock import Sock
from frameworks.patterns.life import health
from frameworks.patterns.threads import events, pieces, wait_for_news

from engine_bridge.frameworks.flask import EngineBridge, current_engine, health_blueprint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from simple_websocket import Server

app = Flask(__name__)
EngineBridge(app)
app.register_blueprint(health_blueprint(health))
sock = Sock(app)


@app.get("/")
def index() -> str:
    """Answer."""
    return "hello\n"


@app.get("/events")
def stream() -> Response:
    """Send events until the engine drains."""
    return Response(events(), mimetype="text/event-stream")


@app.get("/poll")
def poll() -> tuple[str, int]:
    """Wait for news, or until the engine drains."""
    return ("news\n", 200) if wait_for_news() else ("", 204)


@app.get("/download")
def download() -> Response:
    """Send what takes a while; a drain waits for its end."""
    return Response(pieces(), mimetype="application/octet-stream")


@sock.route("/talk")  # type: ignore[untyped-decorator]  # the package carries no types
def talk(websocket: "Server") -> None:
    """Echo what is said until the engine drains; 1012 tells to come again."""
    while not current_engine.draining.is_set():
        text = websocket.receive(timeout=0.1)
        if text is not None:
            websocket.send(text)
    websocket.close(1012)
