"""A link shortener: hits are shown as they come, and none is lost when the server is told to go."""

import secrets
import sqlite3
from collections import deque
from collections.abc import Iterator
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, render_template_string, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from engine_bridge import engine
from engine_bridge.frameworks.flask import EngineBridge, health_blueprint
from engine_bridge.plugins import Health, Monitor, PIDFile

SAVE_EVERY = 1.0  # seconds between two writes of the hits that were counted meanwhile
LOOK_EVERY = 0.5  # seconds between two looks of a stream at what has changed

PAGE = """<!doctype html>
<title>Links</title>
<h1>Links</h1>
<form method=post>
<input name=url type=url size=60 required autofocus> <button>Shorten</button>
</form>
<table>
{% for code, url, hits in links %}
<tr><td><a href="{{ url_for('follow', code=code) }}">{{ code }}</a>
<td id="{{ code }}">{{ hits }}<td>{{ url }}
{% endfor %}
</table>
<script>
new EventSource('/events').addEventListener('message', event => {
  const [code, hits] = event.data.split(' ');
  const cell = document.getElementById(code);
  if (cell) cell.textContent = hits;
});
</script>
"""

app = Flask(__name__)
app.config.update(DATABASE="links.db", PIDFILE="links.pid", VERBOSE=False)
app.config.from_prefixed_env("LINKS")
bridge = EngineBridge(app)
hits: deque[str] = deque()  # codes that were followed and are not saved yet

health = Health(engine, verbose=app.config["VERBOSE"])
health.subscribe()
app.register_blueprint(health_blueprint(health), url_prefix="/-")
PIDFile(engine, app.config["PIDFILE"]).subscribe()


@bridge.resource
def database() -> Iterator[None]:
    """Open the database on start, and close it when all who use it have stopped."""
    connection = sqlite3.connect(
        app.config["DATABASE"], isolation_level=None, check_same_thread=False
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS links"
        " (code TEXT PRIMARY KEY, url TEXT NOT NULL, hits INTEGER NOT NULL DEFAULT 0)"
    )
    app.extensions["database"] = connection
    yield
    connection.close()


@bridge.subscribe("stop", priority=60)  # after the Monitor, which is stopped at 50
def save_hits() -> None:
    """Save the hits; none leaves the queue before it is saved."""
    while hits:
        execute("UPDATE links SET hits = hits + 1 WHERE code = ?", hits[0])
        hits.popleft()


Monitor(engine, save_hits, frequency=SAVE_EVERY).subscribe()  # so that no visitor waits for a write


def execute(statement: str, *values: str) -> list[tuple[str, ...]]:
    """Execute a statement of SQL; return the rows."""
    rows: list[tuple[str, ...]] = app.extensions["database"].execute(statement, values).fetchall()
    return rows


@app.get("/")
def index() -> str:
    """List all links."""
    links = execute("SELECT code, url, hits FROM links ORDER BY code")
    return render_template_string(PAGE, links=links)


@app.post("/")
def shorten() -> Response:
    """Make a link to the posted URL."""
    url = request.form.get("url", "")
    if urlsplit(url).scheme not in {"http", "https"}:
        abort(400, "Post an http or https address as `url`.")
    code = secrets.token_urlsafe(5)
    execute("INSERT INTO links (code, url) VALUES (?, ?)", code, url)
    short = url_for("follow", code=code, _external=True)
    return Response(f"{short}\n", status=201, mimetype="text/plain")


@app.get("/<code>")
def follow(code: str) -> AnyResponse:
    """Lead to where a link points."""
    rows = execute("SELECT url FROM links WHERE code = ?", code)
    if not rows:
        abort(404)
    hits.append(code)
    return redirect(rows[0][0])


@app.get("/events")
def events() -> Response:
    """Send the hits of each link, and again whenever they change, until the engine drains."""

    def changes() -> Iterator[str]:
        yield "retry: 1000\n\n"
        told: set[tuple[str, ...]] = set()
        while not engine.draining.wait(LOOK_EVERY):
            rows = set(execute("SELECT code, hits FROM links"))
            for code, count in sorted(rows - told):
                yield f"data: {code} {count}\n\n"
            told = rows

    return Response(changes(), mimetype="text/event-stream")
