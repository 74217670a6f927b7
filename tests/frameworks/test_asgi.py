"""The ASGI adapter: requests, WebSockets, and what is no application."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import flask
import pytest
from fakeserver import LIMIT, Communicator, ask_asgi, http_scope, name_of, until, websocket_scope
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.core import door
from engine_bridge.frameworks.asgi import EngineMiddleware

Scope = dict[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PLAIN = [(b"content-type", b"text/plain")]


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer each request; know nothing of lifespans."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
    await send({"type": "http.response.body", "body": b"hello"})


def answering(text: Callable[[Scope], str]) -> Application:
    """Return an application that answers with what *text* makes of the scope."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = text(scope).encode()
        await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
        await send({"type": "http.response.body", "body": body})

    return app


class Held:
    """An application whose answer begins at once and ends when the test says so."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
        try:
            await self.go_on.wait()
        except BaseException as exc:
            self.error = exc
            raise
        await send({"type": "http.response.body", "body": b"held"})


@pytest.fixture
def requested(engine: Engine) -> list[str]:
    """Return the request channels that *engine* has published so far, in order."""
    channels: list[str] = []
    for channel in ("acquire_thread", "before_request", "after_request"):
        engine.subscribe(channel, lambda channel=channel: channels.append(channel))
    return channels


# Requests


def test_asgi_engine_starts_with_the_first_scope(engine: Engine, heard: list[str]) -> None:
    """With the lifespan off the first request starts the engine, the next ones do not."""

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        assert engine.state is State.STOPPED
        for _ in range(2):
            assert await ask_asgi(app) == (200, {"content-type": "text/plain"}, b"hello")
        assert engine.door == "asgi"
        assert heard == ["start"]
        await engine.exit_async()

    asyncio.run(main())
    assert heard == ["start", "drain", "stop", "exit"]


def test_asgi_many_first_scopes_start_once(engine: Engine) -> None:
    """64 first requests at once start the engine once, and all wait for it."""
    runs: list[int] = []

    @engine.subscribe("start")
    async def start() -> None:
        runs.append(1)
        await asyncio.sleep(0)

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        replies = await asyncio.gather(*(ask_asgi(app) for _ in range(64)))
        assert [reply.status for reply in replies] == [200] * 64
        await engine.exit_async()

    asyncio.run(main())
    assert runs == [1]


def test_asgi_request_is_in_flight_until_its_application_returns(engine: Engine) -> None:
    """A request counts from its arrival to the end of the application's call."""

    async def main() -> None:
        held = Held()
        app = EngineMiddleware(held, engine)
        asking = asyncio.create_task(ask_asgi(app))
        await until(lambda: engine.in_flight == 1)
        held.go_on.set()
        assert (await asking).body == b"held"
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_application_that_raises_ends_its_request(
    engine: Engine, requested: list[str]
) -> None:
    """What the application raises reaches the server as it is; after_request is published."""
    error = LookupError("in the application")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    async def main() -> None:
        with pytest.raises(LookupError) as caught:
            await EngineMiddleware(app, engine)(http_scope(), _never, _nowhere)
        assert caught.value is error
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())
    assert requested == ["before_request", "after_request"]


def test_asgi_cancelled_request_ends(engine: Engine, requested: list[str]) -> None:
    """A request that the server cancels is cancelled in the application, and counts no more."""

    async def main() -> None:
        held = Held()
        app = EngineMiddleware(held, engine)
        asking = asyncio.create_task(app(http_scope(), _never, _nowhere))
        await until(lambda: engine.in_flight == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert isinstance(held.error, asyncio.CancelledError)
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())
    assert requested == ["before_request", "after_request"]


def test_asgi_request_that_is_cancelled_while_it_starts_the_engine_rolls_back(
    engine: Engine, heard: list[str]
) -> None:
    """The first client goes away during the start: the start is undone, the next request starts."""

    async def main() -> None:
        first = asyncio.Event()
        may_start = asyncio.Event()

        @engine.subscribe("start", priority=60)
        async def start() -> None:
            first.set()
            await may_start.wait()

        app = EngineMiddleware(hello, engine)
        asking = asyncio.create_task(app(http_scope(), _never, _nowhere))
        await first.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert engine.state is State.STOPPED
        assert heard == ["start", "stop"]
        may_start.set()
        assert (await ask_asgi(app)).status == 200
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_request_channels_are_published_around_the_application(engine: Engine) -> None:
    """Sync and async listeners of the request channels run on the application's loop."""
    order: list[object] = []

    @engine.subscribe("before_request")
    def before() -> None:
        order.append("before_request")

    @engine.subscribe("before_request")
    async def before_async() -> None:
        await asyncio.sleep(0)
        order.append(asyncio.get_running_loop())

    @engine.subscribe("after_request")
    async def after_async() -> None:
        await asyncio.sleep(0)
        order.append("after_request")

    def text(scope: Scope) -> str:
        order.append("application")
        return ""

    async def main() -> None:
        app = EngineMiddleware(answering(text), engine)
        await ask_asgi(app)
        assert order == [
            "before_request",
            asyncio.get_running_loop(),
            "application",
            "after_request",
        ]
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_request_publishes_nothing_while_nobody_listens() -> None:
    """Without listeners on the request channels a request does not even call `publish_async`."""

    class Counting(Engine):
        async def publish_async(self, channel: str, *args: object, **kwargs: object) -> list[Any]:
            published.append(channel)
            return await super().publish_async(channel, *args, **kwargs)

    published: list[str] = []

    async def main() -> None:
        async with Counting() as engine:
            app = EngineMiddleware(hello, engine)
            await ask_asgi(app)
            assert published == []
            engine.subscribe("after_request", lambda: None)
            await ask_asgi(app)
            assert published == ["before_request", "after_request"]

    asyncio.run(main())


def test_asgi_failing_before_request_fails_the_request(
    engine: Engine, requested: list[str]
) -> None:
    """A before_request that fails keeps the application from being called; its end is published."""

    @engine.subscribe("before_request")
    def fail() -> None:
        raise LookupError("no database")

    def text(scope: Scope) -> str:
        raise AssertionError("not to be called")

    async def main() -> None:
        with pytest.raises(ChannelFailures, match="no database"):
            await EngineMiddleware(answering(text), engine)(http_scope(), _never, _nowhere)
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())
    assert requested == ["before_request", "after_request"]


# The engine's state decides who is answered


@pytest.mark.parametrize("end", ["stop_async", "exit_async"])
def test_asgi_stopped_engine_answers_503(engine: Engine, heard: list[str], end: str) -> None:
    """After a deliberate stop or exit requests get 503 with Retry-After, and start nothing."""

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        await ask_asgi(app)
        await getattr(engine, end)()
        heard.clear()
        reply = await ask_asgi(app)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert int(reply.headers["content-length"]) == len(reply.body) > 0
        assert heard == []
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_stopped_engine_closes_a_websocket(engine: Engine) -> None:
    """A WebSocket that comes after a stop is refused with code 1013: try again later."""

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        await engine.exit_async()
        talk = Communicator(app, websocket_scope())
        await talk.send_input({"type": "websocket.connect"})
        assert await talk.receive_output(LIMIT) == {"type": "websocket.close", "code": 1013}
        await talk.wait(LIMIT)

    asyncio.run(main())


def test_asgi_stopped_engine_answers_a_websocket_with_503_where_it_can(engine: Engine) -> None:
    """Where the server can deny a WebSocket with an answer, that is 503 with Retry-After."""

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        await engine.exit_async()
        scope = websocket_scope(extensions={"websocket.http.response": {}})
        talk = Communicator(app, scope)
        await talk.send_input({"type": "websocket.connect"})
        start = await talk.receive_output(LIMIT)
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
        assert int(dict(start["headers"])[b"retry-after"]) >= 1
        assert (await talk.receive_output(LIMIT))["type"] == "websocket.http.response.body"
        await talk.wait(LIMIT)

    asyncio.run(main())


def test_asgi_stopped_engine_says_nothing_to_scopes_it_does_not_know(engine: Engine) -> None:
    """A scope of a type that has no refusal is left unanswered."""

    async def main() -> None:
        app = EngineMiddleware(hello, engine)
        await engine.exit_async()
        await app({"type": "something"}, _never, _nowhere)

    asyncio.run(main())


@pytest.mark.parametrize("error", [LookupError("no database"), SystemExit("no database")])
def test_asgi_failed_lazy_start_is_tried_again_later(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """Requests get 503 until the next try, which the log says once; a success ends that."""
    now = 1000.0
    monkeypatch.setattr(door, "monotonic", lambda: now)
    tries: list[float] = []
    broken = True

    @engine.subscribe("start")
    async def connect() -> None:
        tries.append(now)
        if broken:
            raise error

    async def main() -> None:
        nonlocal now, broken
        app = EngineMiddleware(hello, engine)
        for _ in range(3):
            assert (await ask_asgi(app)).status == 503
        assert tries == [1000]
        now = 1001
        assert (await ask_asgi(app)).headers["retry-after"] == "2"
        assert tries == [1000, 1001]
        broken = False
        now = 1003
        assert (await ask_asgi(app)).status == 200
        await engine.exit_async()

    with caplog.at_level(logging.WARNING, "engine_bridge"):
        asyncio.run(main())
    assert len([text for text in caplog.messages if "503" in text]) == 1


# Draining


@pytest.mark.parametrize(
    ("version", "headers", "expected"),
    [
        ("1.1", PLAIN, {"content-type": "text/plain", "connection": "close"}),
        ("1.0", [], {"connection": "close"}),
        ("1.1", [(b"connection", b"x-hop")], {"connection": "x-hop, close"}),
        ("2", PLAIN, {"content-type": "text/plain"}),
        ("3", PLAIN, {"content-type": "text/plain"}),
    ],
)
def test_asgi_answer_asks_to_close_the_connection_while_draining(
    engine: Engine,
    version: str,
    headers: list[tuple[bytes, bytes]],
    expected: dict[str, str],
) -> None:
    """While draining, answers of HTTP/1 say so; HTTP/2 has no such header; others are kept."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)
        await send({"type": "http.response.body", "body": b""})

    start = {"type": "http.response.start", "status": 200, "headers": headers}
    before = list(headers)

    async def main() -> None:
        middleware = EngineMiddleware(app, engine)
        reply = await ask_asgi(middleware, http_scope(http_version=version))
        assert "close" not in reply.headers.get("connection", "")
        await engine.drain_async()
        reply = await ask_asgi(middleware, http_scope(http_version=version))
        assert reply == (200, expected, b"")
        assert start["headers"] == before
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_answer_without_headers_asks_to_close_the_connection(engine: Engine) -> None:
    """Headers are optional in a response's start; so they are for us."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def main() -> None:
        middleware = EngineMiddleware(app, engine)
        await engine.start_async()
        await engine.drain_async()
        assert await ask_asgi(middleware) == (204, {"connection": "close"}, b"")
        await engine.exit_async()

    asyncio.run(main())


def test_asgi_websocket_is_left_alone_while_draining(engine: Engine) -> None:
    """No message of a WebSocket is changed, while draining or not; it is in flight to its end."""

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.connect":
                await send({"type": "websocket.accept", "headers": []})
            else:
                await send({"type": "websocket.send", "text": message["text"]})

    async def main() -> None:
        await engine.start_async()
        await engine.drain_async()
        talk = Communicator(EngineMiddleware(echo, engine), websocket_scope())
        await talk.send_input({"type": "websocket.connect"})
        assert await talk.receive_output(LIMIT) == {"type": "websocket.accept", "headers": []}
        await talk.send_input({"type": "websocket.receive", "text": "hello"})
        assert await talk.receive_output(LIMIT) == {"type": "websocket.send", "text": "hello"}
        assert engine.in_flight == 1
        await talk.send_input({"type": "websocket.disconnect"})
        await talk.wait(LIMIT)
        assert engine.in_flight == 0
        await engine.exit_async()

    asyncio.run(main())


# The letter of the specification


@contextlib.asynccontextmanager
async def brought(engine: Engine, state: str) -> AsyncIterator[None]:
    """Bring *engine* into a state in which requests may find it."""

    def fail() -> None:
        raise LookupError("no database")

    if state == "failed":
        engine.subscribe("start", fail)
    else:
        await engine.start_async()
        if state != "started":
            await (engine.drain_async() if state == "draining" else engine.stop_async())
    yield
    await engine.exit_async()


STATES = {"started": 200, "draining": 200, "closed": 503, "failed": 503}
SERVING = [state for state, status in STATES.items() if status == 200]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("state", STATES)
def test_asgi_head_gets_no_body_in_any_state(engine: Engine, state: str, method: str) -> None:
    """Whether the application answers or we do, the answer to HEAD is that to GET less its body."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": LENGTH})
        body = b"" if scope["method"] == "HEAD" else b"all"
        await send({"type": "http.response.body", "body": body})

    async def main() -> None:
        async with brought(engine, state):
            reply = await ask_asgi(EngineMiddleware(app, engine), http_scope(method=method))
            assert reply.status == STATES[state]
            length = int(reply.headers["content-length"])
            assert length > 0
            assert len(reply.body) == (0 if method == "HEAD" else length)

    asyncio.run(main())


LENGTH = [(b"content-length", b"3")]


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "somebody listens"])
@pytest.mark.parametrize("kind", ["http", "websocket", "a type of its own"])
def test_asgi_application_gets_the_servers_own_arguments(
    engine: Engine, kind: str, listens: bool
) -> None:
    """Scopes of all types, with whatever is in them, reach the application as the very objects."""
    if listens:
        engine.subscribe("before_request", lambda: None)
    seen: list[object] = []

    async def app(*arguments: object) -> None:
        seen.extend(arguments)

    async def main() -> None:
        async with engine:
            await EngineMiddleware(app, engine)(scope, _never, _nowhere)

    scope = http_scope(type=kind, extensions={"own": {"key": 1}}, own=object(), state={"own": 2})
    before = dict(scope)
    asyncio.run(main())
    assert all(each is given for each, given in zip(seen, [scope, _never, _nowhere], strict=True))
    assert scope == before


def test_asgi_state_is_added_to_a_copy_of_the_scope(engine: Engine) -> None:
    """Where a server has no lifespan, what resources yield is in the application's scope only."""

    @engine.resource
    def database() -> Any:
        yield {"database": "connected"}

    async def main() -> None:
        app = EngineMiddleware(answering(lambda scope: repr(scope["state"])), engine)
        for own in ({}, {"state": {"own": 1}}):
            scope = {**http_scope(), **own}
            reply = await ask_asgi(app, scope)
            assert reply.body == repr({"database": "connected", **own.get("state", {})}).encode()
            assert scope == {**http_scope(), **own}
        await engine.exit_async()

    asyncio.run(main())


@pytest.mark.parametrize(
    "asgi",
    [
        None,
        {"version": "2.1"},
        {"version": "3.0"},
        *({"version": "3.0", "spec_version": f"2.{minor}"} for minor in range(6)),
    ],
    ids=str,
)
@pytest.mark.parametrize("state", STATES)
def test_asgi_any_version_of_the_specification_will_do(
    engine: Engine, state: str, asgi: dict[str, str] | None
) -> None:
    """Servers of every version are answered, one that tells as little as it may included."""
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
    }
    if asgi is not None:
        scope["asgi"] = asgi

    async def main() -> None:
        async with brought(engine, state):
            assert (await ask_asgi(EngineMiddleware(hello, engine), scope)).status == STATES[state]

    asyncio.run(main())


EXTENSIONS: list[dict[str, Any]] = [
    {"type": "http.response.debug", "info": {"template": "index"}},
    {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
    {"type": "http.response.push", "path": "/style.css", "headers": []},
    {"type": "http.response.start", "status": 200, "headers": [], "trailers": True, "own": 1},
    {"type": "http.response.zerocopysend", "file": 7, "offset": 1, "count": 2, "more_body": True},
    {"type": "http.response.pathsend", "path": "/srv/file"},
    {"type": "http.response.trailers", "headers": [(b"x-sum", b"0")], "more_trailers": False},
    {"type": "websocket.http.response.start", "status": 403, "headers": []},
    {"type": "websocket.http.response.body", "body": b"no", "more_body": False},
    {"type": "websocket.close", "code": 4000, "reason": "own"},
    {"type": "own", "key": "value"},
]


@pytest.mark.parametrize("state", SERVING)
@pytest.mark.parametrize("message", EXTENSIONS, ids=lambda message: message["type"])
def test_asgi_messages_of_extensions_reach_the_server(
    engine: Engine, state: str, message: dict[str, Any]
) -> None:
    """What the application sends is passed on with all its keys, known to us or not."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(message)

    async def take(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        async with brought(engine, state):
            await EngineMiddleware(app, engine)(http_scope(), _never, take)

    asyncio.run(main())
    is_start = message["type"] == "http.response.start"
    closing = [(b"connection", b"close")] if is_start and state == "draining" else []
    assert sent == [{**message, "headers": [*message["headers"], *closing]} if closing else message]


@pytest.mark.parametrize("state", SERVING)
def test_asgi_disconnect_reaches_the_application(engine: Engine, state: str) -> None:
    """The body's pieces and `http.disconnect` are the application's to receive, each time."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while seen[-2:] != ["http.disconnect"] * 2:
            seen.append((await receive())["type"])

    async def main() -> None:
        async with brought(engine, state):
            talk = Communicator(EngineMiddleware(app, engine), http_scope())
            for message in ({"type": "http.request", "more_body": True}, {"type": "http.request"}):
                await talk.send_input(message)
            for _ in range(2):
                await talk.send_input({"type": "http.disconnect"})
            await talk.wait(LIMIT)

    asyncio.run(main())
    assert seen == ["http.request"] * 2 + ["http.disconnect"] * 2


@pytest.mark.parametrize("state", STATES)
def test_asgi_send_to_a_client_that_is_gone_raises_as_the_server_does(
    engine: Engine, requested: list[str], state: str
) -> None:
    """An OSError of `send` reaches who sent, and the request has ended; in each state."""
    caught: list[OSError] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
        except OSError as exc:
            caught.append(exc)
            raise

    async def broken(message: Message) -> None:
        raise error

    error = ConnectionResetError("the client is gone")

    async def main() -> None:
        async with brought(engine, state):
            with pytest.raises(ConnectionResetError) as raised:
                await EngineMiddleware(app, engine)(http_scope(), _never, broken)
            assert raised.value is error
            assert engine.in_flight == 0

    asyncio.run(main())
    assert caught == ([error] if state in SERVING else [])
    assert requested == (["before_request", "after_request"] if state in SERVING else [])


@pytest.mark.parametrize("state", SERVING)
@pytest.mark.parametrize("sends", [[], ["start"], ["start", "part"]], ids=len)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_asgi_answer_that_is_not_completed_stays_so(
    engine: Engine, state: str, sends: list[str], raises: bool
) -> None:
    """Nothing is added to an answer that breaks off: the server has to see that."""
    messages: dict[str, Message] = {
        "start": {"type": "http.response.start", "status": 200},
        "part": {"type": "http.response.body", "body": b"part", "more_body": True},
    }
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for name in sends:
            await send(messages[name])
        if raises:
            raise LookupError("in the middle")

    async def take(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        async with brought(engine, state):
            with pytest.raises(LookupError) if raises else contextlib.nullcontext():
                await EngineMiddleware(app, engine)(http_scope(), _never, take)
            assert engine.in_flight == 0

    asyncio.run(main())
    assert [message["type"] for message in sent] == [messages[name]["type"] for name in sends]


@pytest.mark.parametrize("state", SERVING)
def test_asgi_application_may_reject_a_websocket(engine: Engine, state: str) -> None:
    """A WebSocket that the application closes before it accepts is closed with its own code."""

    async def rejecting(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.close", "code": 4403})

    async def main() -> None:
        async with brought(engine, state):
            talk = Communicator(EngineMiddleware(rejecting, engine), websocket_scope())
            await talk.send_input({"type": "websocket.connect"})
            assert await talk.receive_output(LIMIT) == {"type": "websocket.close", "code": 4403}
            await talk.wait(LIMIT)
            assert engine.in_flight == 0

    asyncio.run(main())


# Kinds of applications


class Asgi2:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        await hello(self.scope, receive, send)


def asgi2_function(scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
    """Be an application of ASGI 2 that is a function."""
    return Asgi2(scope)


class Asgi3:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await hello(scope, receive, send)


def forwarding(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
    """Be an application of ASGI 3 that is no coroutine function, but returns a coroutine."""
    return hello(scope, receive, send)


class Endpoint(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")


@pytest.mark.parametrize(
    "app",
    [
        hello,
        Asgi3(),
        Asgi3().__call__,
        Asgi2,
        asgi2_function,
        forwarding,
        functools.partial(hello),
        functools.partial(Asgi3()),
        Endpoint,
    ],
    ids=name_of,
)
def test_asgi_middleware_takes_every_kind_of_application(engine: Engine, app: Any) -> None:
    """Functions, objects, partials and endpoints of ASGI 3 and 2 are applications alike."""

    async def main() -> None:
        reply = await ask_asgi(EngineMiddleware(app, engine))
        assert (reply.status, reply.body) == (200, b"hello")
        await engine.exit_async()

    asyncio.run(main())


def wsgi_function(environ: Scope, start_response: object) -> list[bytes]:
    """Be a WSGI application."""
    return []


class WsgiObject:
    def __call__(self, environ: Scope, start_response: object) -> list[bytes]:
        return []


class WsgiClass:
    def __init__(self, environ: Scope, start_response: object) -> None: ...


@pytest.mark.parametrize(
    "app",
    [None, "app:app", 7, wsgi_function, WsgiObject(), WsgiClass, flask.Flask("some")],
    ids=name_of,
)
def test_asgi_middleware_refuses_in_one_sentence_what_is_no_asgi_application(app: Any) -> None:
    """What is no ASGI application, WSGI ones above all, is refused at once, in one sentence."""
    with pytest.raises(EngineError) as caught:
        EngineMiddleware(app)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(app) in text
    assert "ASGI application" in text
    if callable(app):
        assert "engine_bridge.frameworks.wsgi.EngineMiddleware" in text
    assert caught.value.__context__ is None


# Starlette


def make_starlette(engine: Engine, *, by_lifespan: bool) -> Starlette:
    """Return an application that answers with what a resource has put into the state."""

    @engine.resource
    async def database() -> Any:
        yield {"database": "connected"}

    async def show(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.database)

    return Starlette(routes=[Route("/", show)], lifespan=engine.lifespan if by_lifespan else None)


@pytest.mark.parametrize("way", ["lifespan", "middleware", "add_middleware", "both"])
def test_starlette_opened_twice_starts_twice_and_stops_twice(
    engine: Engine, heard: list[str], way: str
) -> None:
    """Each `with TestClient` is a life of its own; resources are in `request.state`."""
    app: Any = make_starlette(engine, by_lifespan=way in {"lifespan", "both"})
    if way == "add_middleware":
        app.add_middleware(EngineMiddleware, engine=engine)
    elif way != "lifespan":
        app = EngineMiddleware(app, engine)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").text == "connected"
            assert engine.wait(State.STARTED, 0)
            assert engine.door == "lifespan"
        assert engine.wait(State.EXITING, 0)
    assert heard == ["start", "drain", "stop", "exit"] * 2


def test_starlette_without_lifespan_works_under_a_test_client_that_gives_none(
    engine: Engine, heard: list[str]
) -> None:
    """A TestClient without `with` makes a loop for each request; each gets a started engine."""
    client = TestClient(EngineMiddleware(make_starlette(engine, by_lifespan=False), engine))
    for _ in range(3):
        assert client.get("/").text == "connected"
    assert engine.state is State.STOPPED
    assert heard == ["start", "drain", "stop"] * 3


def test_starlette_in_a_started_engine_neither_starts_nor_ends_it(
    engine: Engine, heard: list[str]
) -> None:
    """Who started the engine ends it: a lifespan that finds it STARTED does not even drain."""
    app = EngineMiddleware(make_starlette(engine, by_lifespan=True), engine)
    with engine:
        for _ in range(2):
            with TestClient(app) as client:
                assert client.get("/").text == "connected"
            assert engine.ready
        assert heard == ["start"]
    assert heard == ["start", "drain", "stop", "exit"]


async def _never() -> Message:
    raise AssertionError("not to be asked")


async def _nowhere(message: Message) -> None: ...
