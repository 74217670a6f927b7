"""A link shortener: what it opens on `start` it closes on `stop`, and no hit is lost."""

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from flask import Flask, Response, abort, redirect, render_template_string, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from engine_bridge import Engine, engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import PIDFile, Plugin

DATABASE = os.environ.get("LINKS_DATABASE", "links.db")
PIDFILE = os.environ.get("LINKS_PIDFILE", "links.pid")
SAVE_EVERY = 1.0  # seconds between two writes of the hits that were counted meanwhile

PAGE = """<!doctype html>
<title>Links</title>
<h1>Links</h1>
<form method=post>
<input name=url type=url size=60 required autofocus> <button>Shorten</button>
</form>
<table>
{% for code, url, hits in links %}
<tr><td><a href="{{ url_for('follow', code=code) }}">{{ code }}</a><td>{{ hits }}<td>{{ url }}
{% endfor %}
</table>
"""

app = Flask(__name__)


@engine.resource
def database() -> Iterator[None]:
    """Open the database on start, and close it when all who use it have stopped."""
    connection = sqlite3.connect(DATABASE, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")  # several workers share the file
    connection.execute(
        "CREATE TABLE IF NOT EXISTS links"
        " (code TEXT PRIMARY KEY, url TEXT NOT NULL, hits INTEGER NOT NULL DEFAULT 0)"
    )
    app.extensions["database"] = connection
    yield
    connection.close()


class HitCounter(Plugin):
    """Counts hits in a thread of its own, so that no visitor waits for a write."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._hits: SimpleQueue[str] = SimpleQueue()
        self._leave = threading.Event()

    def start(self) -> None:
        """Begin to count."""
        self._leave.clear()
        self._thread = threading.Thread(target=self._run, name="hit counter")
        self._thread.start()

    def stop(self) -> None:
        """Save what has been counted, and end the thread."""
        self._leave.set()
        self._thread.join()

    def add(self, code: str) -> None:
        """Count a hit."""
        self._hits.put(code)

    def _run(self) -> None:
        while not self._leave.wait(SAVE_EVERY):
            self._save()
        self._save()

    def _save(self) -> None:
        for code in self._counted():
            app.extensions["database"].execute(
                "UPDATE links SET hits = hits + 1 WHERE code = ?", [code]
            )

    def _counted(self) -> Iterator[str]:
        try:
            while True:
                yield self._hits.get_nowait()
        except Empty:
            return


hits = HitCounter(engine)
hits.subscribe()
PIDFile(engine, PIDFILE).subscribe()


@app.get("/")
def index() -> str:
    """List all links."""
    rows = app.extensions["database"].execute("SELECT code, url, hits FROM links ORDER BY code")
    return render_template_string(PAGE, links=rows.fetchall())


@app.post("/")
def shorten() -> Response:
    """Make a link to the posted URL."""
    url = request.form.get("url", "")
    if urlsplit(url).scheme not in {"http", "https"}:
        abort(400, "Post an http or https address as `url`.")
    code = secrets.token_urlsafe(4)
    app.extensions["database"].execute("INSERT INTO links (code, url) VALUES (?, ?)", [code, url])
    short = url_for("follow", code=code, _external=True)
    return Response(f"{short}\n", status=201, mimetype="text/plain")


@app.get("/<code>")
def follow(code: str) -> AnyResponse:
    """Lead to where a link points."""
    rows = app.extensions["database"].execute("SELECT url FROM links WHERE code = ?", [code])
    row = rows.fetchone()
    if row is None:
        abort(404)
    hits.add(code)
    return redirect(row[0])


app.wsgi_app = EngineMiddleware(app.wsgi_app, engine)  # type: ignore[method-assign]  # Flask's way
