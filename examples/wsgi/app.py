"""A guest book with no framework: who waits for news is told when the server is to go."""

import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator
from html import escape
from json import dumps
from socketserver import ThreadingMixIn
from time import monotonic
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from engine_bridge import Engine, engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import Health, Monitor, PIDFile, Plugin, SignalHandler

DATABASE = os.environ.get("BOOK_DATABASE", "book.db")
PIDFILE = os.environ.get("BOOK_PIDFILE", "book.pid")
KEEP = int(os.environ.get("BOOK_KEEP", "1000"))  # entries
TIDY_EVERY = 1.0  # seconds
LOOK_EVERY = 0.5  # seconds between two looks of a long poll at the database
PATIENCE = 25.0  # seconds that a long poll waits
LONGEST = 1000  # bytes of an entry

engine.drain_delay = float(os.environ.get("BOOK_DRAIN_DELAY", "0"))

PAGE = """<!doctype html>
<title>Guest book</title>
<h1>Guest book</h1>
<form method=post><input name=text size=60 required autofocus> <button>Write</button></form>
<ol id=entries>{entries}</ol>
<script>
let last = {last};
const poll = async () => {{
  try {{
    const answer = await fetch('/news?after=' + last);
    if (answer.status == 200)
      for (const [number, text] of await answer.json()) {{
        last = number;
        entries.append(Object.assign(document.createElement('li'), {{textContent: text}}));
      }}
  }} catch {{}}
  setTimeout(poll, 1000);
}};
poll();
</script>
"""

WRITTEN = "303 See Other"
NOTHING_NEW = "204 No Content"

Entry = tuple[int, str]


class Book:
    """What has been written; all threads of a process share one connection to the database."""

    def opened(self) -> Iterator[None]:
        """Open the database on start, and close it when all who use it have stopped."""
        self._database = sqlite3.connect(DATABASE, isolation_level=None, check_same_thread=False)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, text TEXT NOT NULL)"
        )
        yield
        self._database.close()

    def write(self, text: str) -> None:
        """Add an entry."""
        self._database.execute("INSERT INTO entries (text) VALUES (?)", [text])

    def newer_than(self, number: int) -> list[Entry]:
        """Return the entries after that number."""
        query = "SELECT number, text FROM entries WHERE number > ? ORDER BY number"
        return self._database.execute(query, [number]).fetchall()

    def tidy(self) -> None:
        """Forget old entries."""
        self._database.execute(
            "DELETE FROM entries WHERE number <= (SELECT max(number) FROM entries) - ?", [KEEP]
        )


book = Book()
engine.resource(book.opened)
Monitor(engine, book.tidy, frequency=TIDY_EVERY).subscribe()
PIDFile(engine, PIDFILE).subscribe()
health = Health(engine)
health.subscribe()


def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request."""
    match environ["REQUEST_METHOD"], environ.get("PATH_INFO") or "/":
        case "GET", "/":
            status, kind, body = "200 OK", "text/html; charset=utf-8", show()
        case "POST", "/":
            status, kind, body = write(environ)
        case "GET", "/news":
            status, kind, body = wait_for_news(environ.get("QUERY_STRING", ""))
        case _:
            status, kind, body = "404 Not Found", "text/plain", "there is / and /news\n"
    content = body.encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(content)))]
    if status == WRITTEN:
        headers.append(("Location", "/"))
    start_response(status, headers if content else [])
    return [content]


def show() -> str:
    """Return the page."""
    entries = book.newer_than(0)
    items = "".join(f"<li>{escape(text)}" for _, text in entries)
    return PAGE.format(entries=items, last=entries[-1][0] if entries else 0)


def write(environ: WSGIEnvironment) -> tuple[str, str, str]:
    """Add what was posted."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    form = parse_qs(environ["wsgi.input"].read(min(length, LONGEST)).decode(errors="replace"))
    if "text" not in form:
        return "400 Bad Request", "text/plain", "Post `text`.\n"
    book.write(form["text"][0])
    return WRITTEN, "text/plain", "written\n"


def wait_for_news(query: str) -> tuple[str, str, str]:
    """Long poll: answer as soon as there is news; with none when the engine drains."""
    after = parse_qs(query).get("after", ["0"])[0]
    if not after.isdecimal():
        return "400 Bad Request", "text/plain", "`after` is the number of an entry.\n"
    give_up = monotonic() + PATIENCE
    while not (entries := book.newer_than(int(after))):
        if monotonic() > give_up or engine.draining.wait(LOOK_EVERY):
            return NOTHING_NEW, "text/plain", ""
    return "200 OK", "application/json", dumps(entries) + "\n"


app = health.wsgi_before(EngineMiddleware(answer), "/-")


class ThreadingServer(ThreadingMixIn, WSGIServer):
    """The standard library's server, with a thread for each request."""

    daemon_threads = True  # one that never gets its request keeps nobody


class Server(Plugin):
    """Serves in this very process, where no server runs the application."""

    def __init__(self, engine: Engine, app: WSGIApplication, port: int) -> None:
        super().__init__(engine)
        self.app = app
        self.port = port

    def start(self) -> None:
        """Begin to serve, when all else has started."""
        self._server = make_server("127.0.0.1", self.port, self.app, ThreadingServer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="server")
        self._thread.start()

    start.priority = 75

    def stop(self) -> None:
        """Stop to serve, before all else stops; the requests have been answered by then."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    stop.priority = 25


if __name__ == "__main__":
    SignalHandler(engine).subscribe()
    Server(engine, app, int(sys.argv[1])).subscribe()
    engine.start()
    engine.block()
