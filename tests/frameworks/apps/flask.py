"""Flask."""

from flask import Flask
from frameworks.apps.lifecycle import hold, use

from engine_bridge.frameworks.flask import EngineBridge

app = Flask(__name__)
EngineBridge(app)
app.get("/")(use)
app.get("/held")(hold)
