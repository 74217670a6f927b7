"""A Flask application under test that has an engine and nothing else."""

from flask import Flask
from journal import record
from servers.apps.lifecycle import hold, instrument

from engine_bridge import engine
from engine_bridge.frameworks.flask import EngineBridge

instrument(engine)
app = Flask(__name__)
EngineBridge(app)


@app.get("/")
def index() -> str:
    """Answer."""
    record("request")
    return "ok\n"


@app.get("/restart")
def restart() -> str:
    """Begin to serve with new code."""
    engine.restart()
    return "restarting\n"


@app.get("/held")
def held() -> bytes:
    """Answer when the test allows it."""
    return hold()
