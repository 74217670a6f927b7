"""A Flask application under test, with what users write for the drain."""

import threading
from collections.abc import Iterator
from functools import partial

from flask import Flask, Response, current_app, stream_with_context
from journal import record
from released import PAUSE, wait_released
from servers.apps.lifecycle import hold, instrument

from engine_bridge import engine
from engine_bridge.frameworks.flask import EngineBridge, current_engine
from engine_bridge.plugins import SignalHandler

instrument(engine)
SignalHandler(engine).subscribe()
engine.subscribe("graceful", partial(record, "graceful"))

app = Flask(__name__)
app.config.from_prefixed_env()
bridge = EngineBridge(app)


@bridge.subscribe("start", priority=20)
def note_application() -> None:
    """Record which application the context is for, and later whether the start is aborted."""
    current_engine.aborting.tell(partial(record, "aborting"))
    record("context", app=current_app.name)


@app.get("/")
def index() -> str:
    """Answer."""
    record("request")
    return f"{current_engine.state}\n"


@app.get("/restart")
def restart() -> str:
    """Ask the host for a new process."""
    current_engine.restart()
    return "restarting\n"


@app.get("/held")
def held() -> bytes:
    """Answer when the test allows it."""
    return hold()


@app.get("/events")
def events() -> Response:
    """Send events until the engine drains."""

    def generate() -> Iterator[str]:
        yield "data: tick\n\n"
        while not current_engine.draining.wait(0.05):
            yield "data: tick\n\n"

    return Response(stream_with_context(generate()), mimetype="text/event-stream")


@app.get("/silence")
def silence() -> Response:
    """Send one event, and end when the engine drains."""

    def generate() -> Iterator[str]:
        yield "data: tick\n\n"
        current_engine.draining.wait()

    return Response(stream_with_context(generate()), mimetype="text/event-stream")


@app.get("/news")
def news() -> tuple[str, int]:
    """Wait for news as long as a client may, or until the engine drains."""
    record("polled")
    if current_engine.draining.wait(30):
        return "", 204
    return "nothing new\n", 200


@app.get("/download")
def download() -> Response:
    """Send what takes a while; a drain waits for its end."""

    def pieces() -> Iterator[bytes]:
        yield b"begun\n"
        wait_released()
        yield b"ended\n"

    return Response(pieces(), mimetype="application/octet-stream")


@bridge.resource
def work() -> Iterator[None]:
    """Work in the background from the start to the stop, and finish what is in hand."""
    leave = threading.Event()

    def run() -> None:
        while not leave.wait(PAUSE):
            pass
        record("worked")

    thread = threading.Thread(target=run, name="work")
    thread.start()
    yield
    leave.set()
    thread.join()
