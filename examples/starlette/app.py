"""A message board whose streams and WebSockets end when the server is told to go."""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator

import click
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from engine_bridge import engine
from engine_bridge.frameworks.starlette import health_routes
from engine_bridge.plugins import Health, Monitor, PIDFile

DATABASE = os.environ.get("BOARD_DATABASE", "board.db")
PIDFILE = os.environ.get("BOARD_PIDFILE", "board.pid")
KEEP = 1000  # messages
TICK = 1.0  # seconds

engine.drain_delay = float(os.environ.get("BOARD_DRAIN_DELAY", "0"))

PAGE = """<!doctype html>
<title>Board</title>
<h1>Board</h1>
<form id=form><input id=text size=60 required autofocus> <button>Say</button></form>
<p id=now></p>
<ul id=messages></ul>
<script>
const show = text => {
  messages.prepend(Object.assign(document.createElement('li'), {textContent: text}));
};
form.addEventListener('submit', event => {
  event.preventDefault();
  fetch('/messages', {method: 'POST', body: text.value});
  text.value = '';
});
fetch('/messages').then(answer => answer.json()).then(texts => texts.forEach(show));
const events = new EventSource('/events');
events.addEventListener('message', event => show(event.data));
events.addEventListener('tick', event => { now.textContent = event.data; });
</script>
"""


@engine.resource
async def database() -> AsyncIterator[dict[str, sqlite3.Connection]]:
    """Open the database on start, and close it when all who use it have stopped."""
    connection = sqlite3.connect(DATABASE, isolation_level=None)
    connection.execute("CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY, text TEXT)")
    yield {"database": connection}  # request.state.database
    connection.execute(
        "DELETE FROM messages WHERE id <= (SELECT max(id) FROM messages) - ?", [KEEP]
    )
    connection.close()


class Watchers:
    """Tells all who watch what happens in this process."""

    def __init__(self) -> None:
        self._inboxes: set[asyncio.Queue[str]] = set()

    def tell(self, event: str, data: str) -> None:
        """Send *data* to all who watch."""
        lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
        for inbox in self._inboxes:
            inbox.put_nowait(f"event: {event}\n{lines}\n")

    async def watch(self) -> AsyncIterator[str]:
        """Yield what is told from now on."""
        inbox: asyncio.Queue[str] = asyncio.Queue()
        self._inboxes.add(inbox)
        try:
            while True:
                yield await inbox.get()
        finally:
            self._inboxes.discard(inbox)

    async def tick(self) -> None:
        """Tell the time."""
        self.tell("tick", f"{time.strftime('%H:%M:%S')}, {len(self._inboxes)} watching")


watchers = Watchers()
Monitor(engine, watchers.tick, frequency=TICK).subscribe()  # on the application's own loop
PIDFile(engine, PIDFILE).subscribe()
health = Health(engine)
health.subscribe()


@engine.subscribe("start", priority=99)
def say_where() -> None:
    """Tell a person where to look."""
    # uvicorn binds after this and tells nobody where; its command line knows.
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("port"):
        return  # a worker of several, or not started from the command line
    base = f"http://{context.params['host']}:{context.params['port']}"
    print(
        "",
        f"    look    {base}/",
        f"    follow  curl -N {base}/events",
        f"    say     curl -d hello {base}/messages",
        f"    probe   curl -i {base}/-/readyz",
        "    leave   Ctrl-C",
        "",
        sep="\n",
        flush=True,
    )


async def index(request: Request) -> HTMLResponse:
    """Show the board."""
    return HTMLResponse(PAGE)


async def list_messages(request: Request) -> JSONResponse:
    """List the messages, oldest first."""
    rows = request.state.database.execute("SELECT text FROM messages ORDER BY id")
    return JSONResponse([text for (text,) in rows])


async def say(request: Request) -> PlainTextResponse:
    """Add a message, and tell all who watch."""
    add(request.state.database, (await request.body()).decode(errors="replace"))
    return PlainTextResponse("said\n", status_code=201)


async def talk(websocket: WebSocket) -> None:
    """Add each message that comes, until the engine drains; 1012 tells to come again."""
    await websocket.accept()
    async for text in engine.until_drain(websocket.iter_text()):
        add(websocket.state.database, text)
        await websocket.send_text("said")
    if engine.draining.is_set():
        await websocket.close(1012)


def add(database: sqlite3.Connection, text: str) -> None:
    """Add a message, and tell all who watch."""
    database.execute("INSERT INTO messages (text) VALUES (?)", [text])
    watchers.tell("message", text)


async def events(request: Request) -> StreamingResponse:
    """Send what happens as server-sent events, until the engine drains."""
    stream = engine.until_drain(watchers.watch())
    return StreamingResponse(stream, media_type="text/event-stream")


app = Starlette(
    routes=[
        Route("/", index),
        Route("/messages", list_messages, methods=["GET"]),
        Route("/messages", say, methods=["POST"]),
        Route("/events", events),
        WebSocketRoute("/talk", talk),
        Mount("/-", routes=health_routes(health)),
    ],
    lifespan=engine.lifespan,
)
