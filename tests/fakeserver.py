"""
Ask WSGI and ASGI applications as a server does, in this very process.

To the letter of PEP 3333, with `wsgiref.validate` as the judge, and of the ASGI specification.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from asgiref.testing import ApplicationCommunicator

LIMIT = 5.0  # seconds for a message that is certain to come

Message = dict[str, Any]
Communicator: Any = ApplicationCommunicator  # asgiref has no types
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Reply(NamedTuple):
    """What a client gets to see."""

    status: int
    headers: dict[str, str]
    body: bytes


def make_environ(method: str = "GET", **extra: Any) -> dict[str, Any]:
    """Return the environ of a request."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "QUERY_STRING": ""}
    setup_testing_defaults(environ)
    environ["wsgi.errors"] = sys.stderr
    return environ | extra


def start_response(
    status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
) -> Callable[[bytes], object]:
    """Do what PEP 3333 asks of it, for a test that does not look at the head of the answer."""
    return len


class Answering:
    """A WSGI request whose body the test handles itself."""

    def __init__(self, app: WSGIApplication, environ: dict[str, Any] | None = None) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        self.written: list[bytes] = []
        self.body: Iterable[bytes] = app(environ or make_environ(), self.start_response)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Do what PEP 3333 asks of it, as long as nothing has been sent."""
        assert not self.status or exc_info
        self.status, self.headers = status, {name.lower(): value for name, value in headers}
        return self.written.append

    def close(self) -> None:
        """Close the body, as a server does whatever has happened."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def ask_wsgi(app: WSGIApplication, method: str = "GET", **extra: Any) -> Reply:
    """Make a request that `wsgiref.validate` watches; read and close its body."""
    answering = Answering(validator(app), make_environ(method, **extra))
    try:
        body = b"".join(answering.body)
    finally:
        answering.close()
    status = int(answering.status.split()[0])
    return Reply(status, answering.headers, b"".join(answering.written) + body)


def http_scope(path: str = "/", **extra: object) -> dict[str, Any]:
    """Return the scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        **extra,
    }


def websocket_scope(**extra: Any) -> dict[str, Any]:
    """Return the scope of a WebSocket."""
    return http_scope(**{"type": "websocket", "scheme": "ws", "subprotocols": [], **extra})


async def ask_asgi(app: Any, scope: dict[str, Any] | None = None) -> Reply:
    """Make a request without a body; return the whole answer."""
    asking = Communicator(app, scope or http_scope())
    await asking.send_input({"type": "http.request"})
    start = await asking.receive_output(LIMIT)
    assert start["type"] == "http.response.start"
    body = b""
    while True:
        message = await asking.receive_output(LIMIT)
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await asking.wait(LIMIT)
    headers: dict[str, str] = {}
    for name, value in start.get("headers", ()):
        key = name.decode()
        headers[key] = f"{headers[key]}, {value.decode()}" if key in headers else value.decode()
    return Reply(start["status"], headers, body)


class Lifespan:
    """
    A server's half of the lifespan conversation.

    Attributes:
        state: The lifespan state; None for a server that has none.
        error: What the application has raised, once it has said that it failed.
    """

    error: Exception | None = None

    def __init__(self, app: Any, *, with_state: bool = True) -> None:
        scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self.state: dict[str, Any] | None = {} if with_state else None
        if with_state:
            scope["state"] = self.state
        self.talk = Communicator(app, scope)

    async def startup(self) -> Message:
        """Ask for the startup; return what the application says to it."""
        await self.talk.send_input({"type": "lifespan.startup"})
        answer: Message = await self.talk.receive_output(LIMIT)
        if answer["type"] == "lifespan.startup.failed":
            await self._see_off(answer)
        return answer

    async def shutdown(self) -> Message:
        """Ask for the shutdown; return what the application says to it."""
        await self.talk.send_input({"type": "lifespan.shutdown"})
        answer: Message = await self.talk.receive_output(LIMIT)
        await self._see_off(answer)
        return answer

    async def _see_off(self, answer: Message) -> None:
        """Wait until the application has left; it may raise if its *answer* was that it failed."""
        try:
            await self.talk.wait(LIMIT)
        except Exception as exc:
            if not answer["type"].endswith(".failed"):
                raise
            self.error = exc


@asynccontextmanager
async def lifespan(app: Any, *, with_state: bool = True) -> AsyncIterator[Lifespan]:
    """Take *app* through a lifespan that succeeds."""
    server = Lifespan(app, with_state=with_state)
    assert await server.startup() == {"type": "lifespan.startup.complete"}
    yield server
    assert await server.shutdown() == {"type": "lifespan.shutdown.complete"}


def name_of(app: object) -> str:
    """Return a name for the id of a test; `repr` would tell an address, another in each worker."""
    return getattr(app, "__name__", type(app).__name__)


async def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(limit):
        while not condition():  # noqa: ASYNC110  # any condition: there is no event for it
            await asyncio.sleep(0)
