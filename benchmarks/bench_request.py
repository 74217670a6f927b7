"""What a request pays, in process: the application called as a server calls it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import thread_time
from typing import TYPE_CHECKING, Any

from starlette.middleware.base import BaseHTTPMiddleware
from werkzeug.wsgi import ClosingIterator

from engine_bridge import Engine
from engine_bridge.frameworks import asgi, wsgi

from .measure import (
    FLOOR,
    OURS,
    Budget,
    Row,
    Samples,
    Table,
    Timed,
    differences,
    in_rounds,
    own_code,
    peers,
    ratios,
    spread,
    statement,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

    Application = Callable[[Any, Any, Any], Awaitable[None]]

WSGI = Budget(1000e-9, "<= 1000 ns added")
ASGI = Budget(700e-9, "<= 700 ns added")
ROUNDS, CALM = 1000, 0.1  # budgets in nanoseconds mean a machine that does nothing else
BARE = "bare"
LISTENED = "ours, one listener on before_request and after_request"


def run() -> list[Table]:
    return [
        Table("a WSGI request: CPU time added to the bare application", "ns", _wsgi_rows()),
        Table("an ASGI request: CPU time added to the bare application", "ns", _asgi_rows()),
    ]


def _added_rows(samples: Samples, budget: Budget) -> list[Row]:
    """Return a row for each engine: with nobody listening, and with listeners."""
    added = {name: differences(samples, name, BARE) for name in samples if name != BARE}
    listened = added.pop(LISTENED)
    return [
        Row("the bare application, in all", "", spread(samples[BARE], 1e-9)),
        Row(
            "nobody listens",
            ours=spread(added[OURS], 1e-9),
            floor=spread(added[FLOOR], 1e-9),
            peers=peers(added, 1e-9),
            ratio=spread(ratios(added), digits=2),
            budget=budget.text,
            verdict=budget.verdict(added[OURS]),
        ),
        Row("one listener before, one after", ours=spread(listened, 1e-9)),
    ]


def started_engine(listeners: int = 0) -> Engine:
    """Return an engine that answers requests, with *listeners* on each request channel."""
    engine = Engine()
    engine.start()
    for _ in range(listeners):
        engine.subscribe("before_request", lambda: None)
        engine.subscribe("after_request", lambda: None)
    return engine


# -- WSGI ---------------------------------------------------------------------------------------


# What a server does with an application.
SERVE = """
body = app(environ, start_response)
try:
    for _ in body:
        pass
finally:
    if hasattr(body, "close"):
        body.close()
"""


def wsgi_app(environ: object, start_response: "StartResponse") -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def start_response(status: str, headers: object, exc_info: object = None) -> Any:
    """Write nothing."""


class FloorWSGI:
    """The least that hears of the begin and the end of a request."""

    def __init__(self, app: "WSGIApplication") -> None:
        self.app = app

    def __call__(
        self, environ: "dict[str, Any]", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        nothing()
        return ClosingBody(self.app(environ, start_response), nothing)


class ClosingBody:
    """A body that tells of its end."""

    def __init__(self, body: Iterable[bytes], close: Callable[[], object]) -> None:
        self.body = body
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)


class WerkzeugWSGI(FloorWSGI):
    """The same with werkzeug's ClosingIterator."""

    def __call__(
        self, environ: "dict[str, Any]", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request."""
        nothing()
        return ClosingIterator(self.app(environ, start_response), nothing)


def nothing() -> None:
    """Do nothing."""


def _wsgi_rows() -> list[Row]:
    applications: dict[str, Any] = {
        BARE: wsgi_app,
        FLOOR: FloorWSGI(wsgi_app),
        OURS: wsgi.EngineMiddleware(wsgi_app, started_engine()),
        LISTENED: wsgi.EngineMiddleware(wsgi_app, started_engine(listeners=1)),
        "werkzeug's ClosingIterator": WerkzeugWSGI(wsgi_app),
    }
    samples = in_rounds(
        {
            name: statement(SERVE, app=app, environ={}, start_response=start_response)
            for name, app in applications.items()
        },
        ROUNDS,
        CALM,
    )
    return _added_rows(samples, WSGI)


# -- ASGI ---------------------------------------------------------------------------------------

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": {}}
RESPONSE_START = {"type": "http.response.start", "status": 200, "headers": []}
RESPONSE_BODY = {"type": "http.response.body", "body": b"hello"}


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send(RESPONSE_START)
    await send(RESPONSE_BODY)


async def receive() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    """Write nothing."""


class FloorASGI:
    """The least that hears of the begin and the end of a request, and of each message."""

    def __init__(self, app: "Application") -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        def hear(message: Any) -> Any:
            return send(message)

        nothing()
        try:
            await self.app(scope, receive, hear)
        finally:
            nothing()


async def _dispatch(request: Any, call_next: Any) -> Any:
    return await call_next(request)


def _asgi_rows() -> list[Row]:
    applications: dict[str, Application] = {
        BARE: own_code(asgi_app),
        FLOOR: FloorASGI(own_code(asgi_app)),
        OURS: asgi.EngineMiddleware(own_code(asgi_app), started_engine()),
        LISTENED: asgi.EngineMiddleware(own_code(asgi_app), started_engine(listeners=1)),
        "Starlette's BaseHTTPMiddleware": BaseHTTPMiddleware(own_code(asgi_app), _dispatch),
    }
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        samples = in_rounds(
            {name: _awaited(app, loop) for name, app in applications.items()}, ROUNDS, CALM
        )
    return _added_rows(samples, ASGI)


def _awaited(app: "Application", loop: asyncio.AbstractEventLoop) -> Timed:
    """Time requests to *app*, one after the other in a task on *loop*."""
    answer = own_code(_answer)
    return lambda number: loop.run_until_complete(answer(app, number))


async def _answer(app: "Application", number: int) -> float:
    since = thread_time()
    for _ in range(number):
        await app(SCOPE, receive, send)
    return thread_time() - since
