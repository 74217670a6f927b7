"""The WSGI adapter, to the letter of PEP 3333."""

import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.types import StartResponse, WSGIApplication
from wsgiref.util import FileWrapper, is_hop_by_hop
from wsgiref.validate import validator

import gunicorn.http.wsgi
import pytest
import waitress.buffers
import werkzeug.wsgi
from fakeserver import Answering, ask_wsgi, make_environ, name_of
from fakeserver import start_response as ignore
from processes import get, run_server
from werkzeug.middleware.lint import LintMiddleware

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.core import door, signals
from engine_bridge.frameworks.wsgi import EngineMiddleware

Environ = dict[str, Any]
PLAIN = [("Content-Type", "text/plain")]
REQUEST_CHANNELS = ("acquire_thread", "before_request", "after_request")


def returning(body: Iterable[bytes]) -> WSGIApplication:
    """Return an application that answers with *body*, that very object."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN])  # the server's to change: PEP 3333
        return body

    return app


class Body:
    """An iterable that is its own iterator and notes what is done to it."""

    def __init__(self, *pieces: bytes, fails: str = "") -> None:
        self._pieces = list(pieces)
        self._fails = fails
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._fails == "next":
            raise LookupError("in the middle")
        raise StopIteration

    def close(self) -> None:
        self.closed += 1
        if self._fails == "close":
            raise LookupError("in close")


def generate() -> Iterator[bytes]:
    """Be a body in two pieces."""
    yield b"one, "
    yield b"two"


BODIES: dict[str, Callable[[], Iterable[bytes]]] = {
    "list": lambda: [b"one, ", b"two"],
    "empty list": list,
    "tuple": lambda: (b"one, ", b"two"),
    "generator": generate,
    "iterator": lambda: iter([b"one, ", b"two"]),
    "with close": lambda: Body(b"one, ", b"two"),
}


@pytest.fixture(params=sorted(BODIES))
def body(request: pytest.FixtureRequest) -> Iterable[bytes]:
    """Return each kind of body that an application may answer with."""
    return BODIES[request.param]()


@pytest.fixture
def requested(engine: Engine) -> list[str]:
    """Return the request channels that *engine* has published so far, in order."""
    channels: list[str] = []
    for channel in REQUEST_CHANNELS:
        engine.subscribe(channel, lambda channel=channel: channels.append(channel))
    return channels


# The letter of the specification


@pytest.mark.parametrize("channels", [False, True], ids=["nobody listens", "somebody listens"])
def test_wsgi_middleware_passes_the_validator_on_both_sides(
    engine: Engine, body: Iterable[bytes], channels: bool
) -> None:
    """wsgiref.validate objects neither to what the server nor to what the application sees."""
    if channels:
        engine.subscribe("before_request", lambda: None)
    expected = b"" if body == [] else b"one, two"
    reply = ask_wsgi(EngineMiddleware(validator(returning(body)), engine))
    assert (reply.status, reply.body) == (200, expected)
    assert engine.in_flight == 0


def test_wsgi_middleware_passes_lint_on_both_sides(engine: Engine, body: Iterable[bytes]) -> None:
    """Werkzeug's LintMiddleware warns neither outside nor inside; a warning fails the test."""
    app = LintMiddleware(EngineMiddleware(LintMiddleware(returning(body)), engine))
    expected = b"".join(body) if isinstance(body, list | tuple) else b"one, two"
    answering = Answering(app)
    assert b"".join(answering.body) == expected
    answering.close()
    assert engine.in_flight == 0


STATES = {"started": 200, "draining": 200, "closed": 503, "failed": 503}


def bring(engine: Engine, state: str) -> None:
    """Bring *engine* into a state in which requests may find it."""

    def fail() -> None:
        raise LookupError("no database")

    if state == "failed":
        engine.subscribe("start", fail)
        return
    engine.start()
    if state != "started":
        getattr(engine, "drain" if state == "draining" else "stop")()


@pytest.mark.parametrize(
    ("judge", "method"),
    [
        pytest.param(validator, "GET", id="validator-GET"),
        pytest.param(validator, "HEAD", id="validator-HEAD"),
        pytest.param(LintMiddleware, "GET", id="lint-GET"),  # of HEAD it wants Content-Length 0
    ],
)
@pytest.mark.parametrize("state", STATES)
def test_wsgi_middleware_is_approved_in_every_state(
    engine: Engine, state: str, method: str, judge: Callable[[WSGIApplication], WSGIApplication]
) -> None:
    """Whether the application answers or we do, no judge objects on either side; HEAD included."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        body = b"all"
        start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    bring(engine, state)
    judged = judge(EngineMiddleware(judge(app), engine))
    answering = Answering(judged, make_environ(method))
    body = b"".join(answering.body)
    answering.close()
    assert answering.status.startswith(str(STATES[state]))
    assert not any(is_hop_by_hop(name) for name in answering.headers)
    length = int(answering.headers["content-length"])
    assert length > 0
    assert len(body) == (0 if method == "HEAD" else length)
    assert engine.in_flight == 0


def test_wsgi_application_gets_the_servers_own_arguments(engine: Engine) -> None:
    """Environ and start_response reach the application untouched: the very same objects."""
    seen: list[object] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        seen.extend([environ, start_response])
        start_response("200 OK", PLAIN)
        return []

    environ = make_environ()
    before = dict(environ)
    EngineMiddleware(app, engine)(environ, ignore)
    assert seen[0] is environ
    assert environ == before
    assert seen[1] is ignore


@pytest.mark.parametrize("kind", [list, tuple])
def test_wsgi_body_keeps_its_length(
    engine: Engine, kind: Callable[[Iterable[bytes]], Iterable[bytes]]
) -> None:
    """A server can tell the Content-Length of a list or tuple of one element, as without us."""
    answering = Answering(EngineMiddleware(returning(kind([b"all"])), engine))
    assert len(answering.body) == 1  # type: ignore[arg-type]  # that is what the test is about
    assert list(answering.body) == [b"all"]
    answering.close()


def test_wsgi_list_stays_a_list(engine: Engine) -> None:
    """A list is still one, for servers that look at its type; the application's is untouched."""
    theirs = [b"one", b"two"]
    answering = Answering(EngineMiddleware(returning(theirs), engine))
    assert isinstance(answering.body, list)
    assert answering.body == theirs == [b"one", b"two"]
    assert answering.body is not theirs
    answering.close()


def test_wsgi_list_subclass_with_a_close_is_closed(engine: Engine) -> None:
    """A list that has a `close` of its own gets it called."""

    class Closing(list[bytes]):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    theirs = Closing([b"all"])
    answering = Answering(EngineMiddleware(returning(theirs), engine))
    assert len(answering.body) == 1  # type: ignore[arg-type]  # as above
    answering.close()
    assert theirs.closed == 1


@pytest.mark.parametrize("kind", ["generator", "iterator", "with close"])
def test_wsgi_stream_has_no_length(engine: Engine, kind: str) -> None:
    """A body that is produced bit by bit does not pretend to a length."""
    answering = Answering(EngineMiddleware(returning(BODIES[kind]()), engine))
    assert not hasattr(answering.body, "__len__")
    answering.close()


def test_wsgi_body_is_produced_bit_by_bit(engine: Engine) -> None:
    """No piece of a body is asked for before the server asks, none is held back."""
    asked: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield b"piece"

    answering = Answering(EngineMiddleware(returning(pieces()), engine))
    iterator = iter(answering.body)
    assert asked == []
    for number in range(3):
        assert next(iterator) == b"piece"
        assert asked == list(range(number + 1))
    answering.close()


def test_wsgi_write_callable_works(engine: Engine) -> None:
    """An application may use the old `write` callable; the request is in flight meanwhile."""
    counts: list[int] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"written, ")
        counts.append(engine.in_flight)
        return [b"returned"]

    assert ask_wsgi(EngineMiddleware(app, engine)).body == b"written, returned"
    assert counts == [1]
    assert engine.in_flight == 0


def test_wsgi_answer_to_head_is_left_alone(engine: Engine) -> None:
    """A HEAD request gets the headers that the application gives, and no body."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [*PLAIN, ("Content-Length", "1000")])
        return []

    reply = ask_wsgi(EngineMiddleware(validator(app), engine), "HEAD")
    assert reply == (200, {"content-type": "text/plain", "content-length": "1000"}, b"")


def test_wsgi_application_may_start_its_response_again_with_exc_info(engine: Engine) -> None:
    """An application that fails before anything is sent may replace its headers."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        try:
            raise LookupError
        except LookupError:
            start_response("500 Oh", PLAIN, sys.exc_info())
        return [b"failed"]

    assert ask_wsgi(EngineMiddleware(validator(app), engine))[::2] == (500, b"failed")


@pytest.mark.parametrize("is_sent", [False, True], ids=["not sent", "sent"])
def test_wsgi_failure_after_the_headers_is_the_servers_to_decide(
    engine: Engine, requested: list[str], is_sent: bool
) -> None:
    """`start_response` with exc_info, in the midst of a body, replaces the headers or raises."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN])
        try:
            if is_sent:
                yield b"one"
            raise LookupError("in the middle")
        except LookupError:
            start_response("500 Oh", [*PLAIN], sys.exc_info())
        yield b"failed"

    handler, output = reference_server()
    handler.run(EngineMiddleware(app, engine))
    assert (b"failed" in output.getvalue()) == (not is_sent)
    assert output.getvalue().startswith(b"HTTP/1.1 200 OK" if is_sent else b"HTTP/1.1 500 Oh")
    assert ("in the middle" in handler.get_stderr().getvalue()) == is_sent  # type: ignore[attr-defined]  # a StringIO
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("state", STATES)
def test_wsgi_reference_server_knows_the_length(
    engine: Engine, state: str, kind: Callable[[Iterable[bytes]], Iterable[bytes]]
) -> None:
    """The standard library's server, told no length, takes that of a single block."""
    bring(engine, state)
    handler, output = reference_server()
    handler.run(EngineMiddleware(returning(kind([b"all"])), engine))
    head, _, body = output.getvalue().partition(b"\r\n\r\n")
    assert head.count(b"Content-Length: %d" % len(body)) == 1


def reference_server() -> tuple[SimpleHandler, BytesIO]:
    """Return the standard library's half of one request, and what it sends."""
    output = BytesIO()
    handler = SimpleHandler(BytesIO(), output, StringIO(), make_environ())
    handler.http_version = "1.1"
    return handler, output


@pytest.mark.parametrize("channels", [False, True], ids=["nobody listens", "somebody listens"])
def test_wsgi_generator_may_be_the_application(engine: Engine, channels: bool) -> None:
    """A generator function calls `start_response` when its first block is asked for."""
    if channels:
        engine.subscribe("before_request", lambda: None)
    begun: list[int] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        begun.append(engine.in_flight)
        start_response("200 OK", [*PLAIN])
        yield b"one, "
        yield b"two"

    assert ask_wsgi(EngineMiddleware(validator(app), engine))[::2] == (200, b"one, two")
    answering = Answering(EngineMiddleware(app, engine))
    assert (answering.status, begun) == ("", [1])
    assert next(iter(answering.body)) == b"one, "
    assert (answering.status, begun) == ("200 OK", [1, 1])
    answering.close()
    assert engine.in_flight == 0


def test_wsgi_generator_that_fails_at_once_ends_its_request(
    engine: Engine, requested: list[str]
) -> None:
    """One that raises before it has called `start_response` has the server answer with 500."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        raise LookupError("at once")
        yield b""

    handler, output = reference_server()
    handler.run(EngineMiddleware(app, engine))
    assert output.getvalue().startswith(b"HTTP/1.1 500 ")
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


def test_wsgi_input_is_left_to_the_application(engine: Engine) -> None:
    """The body of a request is read by nobody but the application, piece by piece."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [environ["wsgi.input"].read(3), environ["wsgi.input"].readline()]

    given = {"wsgi.input": BytesIO(b"onetwo\nthree"), "CONTENT_LENGTH": "12"}
    assert ask_wsgi(EngineMiddleware(validator(app), engine), "POST", **given).body == b"onetwo\n"
    assert given["wsgi.input"].read() == b"three"  # type: ignore[attr-defined]  # the BytesIO


# File wrappers


FILE_WRAPPERS: dict[str, Any] = {
    "wsgiref": FileWrapper,
    "gunicorn": gunicorn.http.wsgi.FileWrapper,
    "waitress": waitress.buffers.ReadOnlyFileBasedBuffer,
    "werkzeug": werkzeug.wsgi.FileWrapper,
    # uWSGI's is a function: it notes the file, gives it back, and compares what comes out
    "function": lambda file, size=8192: file,
}


def sending(path: Path, opened: list[object]) -> WSGIApplication:
    """Return an application that answers with a file in the server's wrapper."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        file = path.open("rb")
        opened.extend([file, environ["wsgi.file_wrapper"](file, 4)])
        return opened[1]  # type: ignore[return-value]  # the wrappers have no types

    return app


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    """Return a file with some text."""
    path = tmp_path / "file"
    path.write_bytes(b"some text")
    return path


@pytest.mark.parametrize("name", sorted(FILE_WRAPPERS))
def test_wsgi_file_wrapper_stays_the_same_object(
    engine: Engine, some_file: Path, name: str, requested: list[str]
) -> None:
    """A server finds its own file wrapper again; the request lasts until that is closed."""
    opened: list[Any] = []
    environ = make_environ(**{"wsgi.file_wrapper": FILE_WRAPPERS[name]})
    answering = Answering(EngineMiddleware(sending(some_file, opened), engine), environ)
    file, wrapped = opened
    assert answering.body is wrapped
    assert engine.in_flight == 1
    assert b"".join(answering.body) == b"some text"
    assert requested == ["acquire_thread", "before_request"]
    answering.close()
    assert file.closed
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


@pytest.mark.parametrize("name", ["wsgiref", "gunicorn"])
def test_wsgi_file_wrapper_that_is_dropped_ends_its_request(
    engine: Engine, some_file: Path, name: str
) -> None:
    """A server that forgets to close a file wrapper does not hold up the drain for ever."""
    opened: list[Any] = []
    environ = make_environ(**{"wsgi.file_wrapper": FILE_WRAPPERS[name]})
    answering = Answering(EngineMiddleware(sending(some_file, opened), engine), environ)
    assert engine.in_flight == 1
    opened.pop(0).close()
    opened.clear()
    del answering
    assert engine.in_flight == 0


def test_wsgi_file_wrapper_that_cannot_be_hooked_is_wrapped(
    engine: Engine, some_file: Path
) -> None:
    """A wrapper made in C, whose `close` cannot be replaced, still ends its request."""

    class Sealed(FileWrapper):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            if name == "close" and hasattr(self, "close"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    opened: list[Any] = []
    environ = make_environ("GET", **{"wsgi.file_wrapper": Sealed})
    answering = Answering(EngineMiddleware(sending(some_file, opened), engine), environ)
    assert b"".join(answering.body) == b"some text"
    assert engine.in_flight == 1
    answering.close()
    assert opened[0].closed
    assert engine.in_flight == 0


def test_wsgi_file_wrapper_without_a_close_gets_one_that_ends_the_request(engine: Engine) -> None:
    """Where the file cannot be closed, neither could the wrapper; the request ends all the same."""

    class Reader:
        def read(self, size: int = -1) -> bytes:
            return b""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](Reader())
        return wrapped

    environ = make_environ("GET", **{"wsgi.file_wrapper": FILE_WRAPPERS["gunicorn"]})
    answering = Answering(EngineMiddleware(app, engine), environ)
    assert engine.in_flight == 1
    answering.close()
    assert engine.in_flight == 0


# Failures, and clients that go away


@pytest.mark.parametrize("started", [False, True], ids=["before", "after"])
def test_wsgi_application_that_raises_ends_its_request(
    engine: Engine, requested: list[str], started: bool
) -> None:
    """What the application raises, before or after start_response, reaches the server as it is."""
    error = LookupError("in the application")

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        if started:
            start_response("200 OK", PLAIN)
        raise error

    with pytest.raises(LookupError) as caught:
        Answering(EngineMiddleware(app, engine))
    assert caught.value is error
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


def test_wsgi_body_that_raises_ends_its_request_when_closed(
    engine: Engine, requested: list[str]
) -> None:
    """A failure in the midst of a body reaches the server; closing the body ends the request."""
    body = Body(b"one", fails="next")
    with pytest.raises(LookupError, match="in the middle"):
        ask_wsgi(EngineMiddleware(returning(body), engine))
    assert body.closed == 1
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


def test_wsgi_close_that_raises_ends_its_request(engine: Engine, requested: list[str]) -> None:
    """A failure in the body's `close` reaches the server, and the request has ended."""
    with pytest.raises(LookupError, match="in close"):
        ask_wsgi(EngineMiddleware(returning(Body(b"one", fails="close")), engine))
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


def test_wsgi_request_ends_with_close_and_only_once(
    engine: Engine, body: Iterable[bytes], requested: list[str]
) -> None:
    """A request is in flight until its body is closed; a second close counts nothing twice."""
    app = EngineMiddleware(returning(body), engine)
    other = Answering(app)
    answering = Answering(app)
    assert engine.in_flight == 2
    list(answering.body)
    assert engine.in_flight == 2
    requested.clear()
    answering.close()
    answering.close()
    assert engine.in_flight == 1
    assert requested == ["after_request"]
    other.close()


def test_wsgi_body_that_is_only_closed_ends_its_request(
    engine: Engine, body: Iterable[bytes]
) -> None:
    """The client went away before the first byte: the body is closed without being read."""
    Answering(EngineMiddleware(returning(body), engine)).close()
    assert engine.in_flight == 0
    if isinstance(body, Body):
        assert body.closed == 1


def test_wsgi_body_is_closed_once_when_the_client_goes_away(engine: Engine) -> None:
    """The client went away in the midst of a body: the application's `close` runs once."""
    body = Body(b"one", b"two")
    answering = Answering(EngineMiddleware(returning(body), engine))
    iterator = iter(answering.body)
    assert next(iterator) == b"one"
    del iterator
    assert body.closed == 0
    assert engine.in_flight == 1
    answering.close()
    assert body.closed == 1
    assert engine.in_flight == 0


def test_wsgi_generator_is_ended_when_the_client_goes_away(engine: Engine) -> None:
    """A generator that has begun runs its `finally` in the `close` of the body."""
    ended: list[int] = []

    def pieces() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append(engine.in_flight)

    answering = Answering(EngineMiddleware(returning(pieces()), engine))
    next(iter(answering.body))
    answering.close()
    assert ended == [1]
    assert engine.in_flight == 0


def test_wsgi_body_that_is_dropped_ends_its_request(
    engine: Engine, body: Iterable[bytes], requested: list[str]
) -> None:
    """A server that never closes bodies, as uvicorn's WSGI interface, holds up no drain."""
    app = EngineMiddleware(returning(body), engine)
    for _ in app(make_environ(), ignore):
        assert engine.in_flight == 1
    assert engine.in_flight == 0
    assert requested == [*REQUEST_CHANNELS]


def test_uvicorns_wsgi_interface_leaves_no_request_in_flight(tmp_path: Path) -> None:
    """Under a real server that closes no body the count of requests in flight returns to zero."""
    (tmp_path / "app.py").write_text(DROPPED)
    command = [sys.executable, "-m", "uvicorn", "--interface=wsgi", "--port={port}", "app:app"]
    with run_server(command, cwd=tmp_path) as server:
        for _ in range(3):
            assert get(server.port).body == b"in flight: 1"
        server.signal(15)
        server.wait_published("stop")
    assert [entry.facts for entry in server.journal()] == [{"in_flight": 0}]


DROPPED = """
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.wsgi import EngineMiddleware

@engine.subscribe("stop")
def stop():
    record("stop", in_flight=engine.in_flight)

def pieces():
    yield f"in flight: {engine.in_flight}".encode()

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return pieces()

app = EngineMiddleware(app)
"""


# The request channels


def test_wsgi_request_channels_are_published_around_the_application(
    engine: Engine, requested: list[str]
) -> None:
    """acquire_thread and before_request precede the application, after_request follows `close`."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        requested.append("application")
        start_response("200 OK", PLAIN)
        return pieces()

    def pieces() -> Iterator[bytes]:
        try:
            requested.append("body")
            yield b"all"
        finally:
            requested.append("end of the body")

    assert ask_wsgi(EngineMiddleware(app, engine)).status == 200
    assert requested == [
        "acquire_thread",
        "before_request",
        "application",
        "body",
        "end of the body",
        "after_request",
    ]


def test_wsgi_request_publishes_nothing_while_nobody_listens(heard: list[str]) -> None:
    """Without listeners on the request channels a request does not even call `publish`."""

    class Counting(Engine):
        def publish(self, channel: str, *args: object, **kwargs: object) -> list[Any]:
            published.append(channel)
            return super().publish(channel, *args, **kwargs)

    published: list[str] = []
    engine = Counting()
    app = EngineMiddleware(returning([b"all"]), engine)
    try:
        engine.start()
        published.clear()
        assert ask_wsgi(app).status == 200
        assert published == []
        engine.subscribe("before_request", lambda: None)
        assert ask_wsgi(app).status == 200
        assert published == [*REQUEST_CHANNELS]
    finally:
        engine.exit()


def test_wsgi_listener_that_comes_during_a_request_hears_of_the_next(engine: Engine) -> None:
    """after_request is published for those requests only whose before_request was."""
    heard: list[str] = []
    app = EngineMiddleware(returning([b"all"]), engine)
    answering = Answering(app)
    engine.subscribe("after_request", lambda: heard.append("after_request"))
    answering.close()
    assert heard == []
    ask_wsgi(app)
    assert heard == ["after_request"]


def test_wsgi_failing_before_request_fails_the_request(
    engine: Engine, requested: list[str]
) -> None:
    """A before_request that fails keeps the application from being called; its end is published."""

    @engine.subscribe("before_request")
    def fail() -> None:
        raise LookupError("no database")

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        raise AssertionError("not to be called")

    with pytest.raises(ChannelFailures, match="no database"):
        Answering(EngineMiddleware(app, engine))
    assert requested == [*REQUEST_CHANNELS]
    assert engine.in_flight == 0


def test_wsgi_failing_after_request_is_told_and_the_request_has_ended(engine: Engine) -> None:
    """An after_request that fails is the server's to log; the request counts no more."""

    @engine.subscribe("after_request")
    def fail() -> None:
        raise LookupError("cannot tidy up")

    answering = Answering(EngineMiddleware(returning([b"all"]), engine))
    with pytest.raises(ChannelFailures, match="cannot tidy up"):
        answering.close()
    answering.close()
    assert engine.in_flight == 0


# The engine's state decides who is answered


def test_wsgi_engine_starts_with_the_first_request(engine: Engine, heard: list[str]) -> None:
    """Construction does not start the engine; the first request does, the next ones do not."""
    app = EngineMiddleware(returning([b"all"]), engine)
    assert engine.wait(State.STOPPED, 0)
    ask_wsgi(app)
    ask_wsgi(app)
    assert engine.wait(State.STARTED, 0)
    assert engine.door == "wsgi"
    assert heard == ["start"]


def test_wsgi_first_requests_of_64_threads_start_once(engine: Engine) -> None:
    """64 threads with the first request at once run each start listener once; all are served."""
    threads = 64
    barrier, begun, may_go_on = threading.Barrier(threads), threading.Event(), threading.Event()
    runs: list[str] = []

    @engine.subscribe("start")
    def slow() -> None:
        runs.append("slow")
        begun.set()
        assert may_go_on.wait(5)

    engine.subscribe("start", lambda: runs.append("second"), priority=60)
    app = EngineMiddleware(returning([b"all"]), engine)
    replies: list[int] = []

    def ask() -> None:
        barrier.wait()
        replies.append(ask_wsgi(app).status)

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    assert begun.wait(5)
    may_go_on.set()
    for worker in workers:
        worker.join(5)
    assert replies == [200] * threads
    assert runs == ["slow", "second"]
    assert engine.in_flight == 0


@pytest.mark.parametrize("end", ["stop", "exit"])
def test_wsgi_stopped_engine_answers_503(engine: Engine, heard: list[str], end: str) -> None:
    """After a deliberate stop or exit requests get 503 with Retry-After, and start nothing."""
    app = EngineMiddleware(returning([b"all"]), engine)
    ask_wsgi(app)
    getattr(engine, end)()
    heard.clear()
    reply = ask_wsgi(app)
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert int(reply.headers["content-length"]) == len(reply.body) > 0
    assert b"Traceback" not in reply.body
    assert heard == []
    assert engine.in_flight == 0


def test_wsgi_engine_started_again_serves_again(engine: Engine) -> None:
    """A `start()` by whoever stopped the engine ends the 503s."""
    app = EngineMiddleware(returning([b"all"]), engine)
    ask_wsgi(app)
    engine.stop()
    assert ask_wsgi(app).status == 503
    engine.start()
    assert ask_wsgi(app).status == 200


class Clock:
    """Monotonic time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that lazy starts are put off by."""
    clock = Clock()
    monkeypatch.setattr(door, "monotonic", clock)
    return clock


@pytest.mark.parametrize("error", [LookupError("no database"), SystemExit("no database")])
def test_wsgi_failed_lazy_start_is_tried_again_later(
    engine: Engine, clock: Clock, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """
    Requests get 503 until the next try; the time to it doubles, and the log says it once.

    A success once the cause is gone ends that, and begins the count anew.
    """
    tries: list[float] = []
    broken = True

    @engine.subscribe("start")
    def connect() -> None:
        tries.append(clock.now)
        if broken:
            raise error

    app = EngineMiddleware(returning([b"all"]), engine)

    def answers_503(seconds: str) -> None:
        reply = ask_wsgi(app)
        assert (reply.status, reply.headers["retry-after"]) == (503, seconds)

    with caplog.at_level(logging.WARNING, "engine_bridge"):
        answers_503("1")
        answers_503("1")
        assert tries == [1000]
        clock.now = 1000.9
        answers_503("1")
        assert tries == [1000]
        clock.now = 1001
        answers_503("2")
        clock.now = 1002.5
        answers_503("1")
        assert tries == [1000, 1001]
        clock.now = 1003
        answers_503("4")
        assert tries == [1000, 1001, 1003]
        for _ in range(10):
            clock.now += 60
            answers_503(ask_wsgi(app).headers["retry-after"])
        assert int(ask_wsgi(app).headers["retry-after"]) == 60
    said = [text for text in caplog.messages if "503" in text]
    assert len(said) == 1
    assert "no database" in said[0]
    broken = False
    clock.now += 60
    assert ask_wsgi(app).status == 200
    assert engine.state is State.STARTED


def test_wsgi_lazy_start_that_fails_for_many_is_one_failure(engine: Engine, clock: Clock) -> None:
    """Threads that wait for the same failing start put off the next try once, not once each."""
    threads = 16
    runs: list[int] = []

    @engine.subscribe("start")
    def connect() -> None:
        runs.append(1)
        assert all_came.wait(5)
        raise LookupError("no database")

    app = EngineMiddleware(returning([b"all"]), engine)
    all_came = threading.Event()
    before = threading.Barrier(threads + 1)
    waits: list[str] = []

    def ask() -> None:
        before.wait()
        waits.append(ask_wsgi(app).headers["retry-after"])

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    for worker in workers:
        worker.start()
    before.wait()
    all_came.set()
    for worker in workers:
        worker.join(5)
    assert waits == ["1"] * threads
    assert runs == [1]
    clock.now += 1
    assert ask_wsgi(app).headers["retry-after"] == "2"


def test_wsgi_keeps_answering_while_draining(engine: Engine) -> None:
    """A request that comes during the drain is answered, and waited for."""
    app = EngineMiddleware(returning([b"all"]), engine)
    first = Answering(app)
    stopping = threading.Thread(target=engine.stop)
    stopping.start()
    assert engine.draining.wait(5)
    second = Answering(app)
    assert second.status == "200 OK"
    first.close()
    assert engine.wait(State.STARTED, 0)
    second.close()
    stopping.join(5)
    assert engine.state is State.STOPPED


# What is not an application


class Asgi2Class:
    def __init__(self, scope: Environ) -> None: ...

    async def __call__(self, receive: object, send: object) -> None: ...


class AsgiInstance:
    async def __call__(self, scope: Environ, receive: object, send: object) -> None: ...


async def _asgi_function(scope: Environ, receive: object, send: object) -> None: ...


async def _asgi_taking_anything(*arguments: object) -> None: ...


def _asgi_forwarding(scope: Environ, receive: object, send: object) -> object:
    return _asgi_function(scope, receive, send)


def _asgi2_function(scope: Environ) -> object: ...


@pytest.mark.parametrize(
    "app",
    [
        None,
        "app:app",
        7,
        _asgi_function,
        _asgi_taking_anything,
        _asgi_forwarding,
        AsgiInstance(),
        Asgi2Class,
        _asgi2_function,
    ],
    ids=name_of,
)
def test_wsgi_middleware_refuses_in_one_sentence_what_is_no_wsgi_application(app: Any) -> None:
    """What is no WSGI application, ASGI ones above all, is refused at once, in one sentence."""
    with pytest.raises(EngineError) as caught:
        EngineMiddleware(app)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(app) in text
    assert "WSGI application" in text
    if callable(app):
        assert "engine_bridge.frameworks.asgi.EngineMiddleware" in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


class WsgiClass:
    def __init__(self, environ: Environ, start_response: StartResponse) -> None:
        start_response("200 OK", PLAIN)

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"all"])


class WsgiObject:
    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [b"all"]


@werkzeug.Request.application
def _decorated(request: werkzeug.Request) -> werkzeug.Response:
    return werkzeug.Response(b"all", content_type="text/plain")


@pytest.mark.parametrize(
    "app",
    [returning([b"all"]), WsgiClass, WsgiObject(), WsgiObject().__call__, _decorated],
    ids=name_of,
)
def test_wsgi_middleware_takes_every_kind_of_application(engine: Engine, app: Any) -> None:
    """Functions, classes, objects, methods and decorated views are applications alike."""
    assert ask_wsgi(EngineMiddleware(app, engine))[::2] == (200, b"all")


def test_wsgi_middleware_takes_what_does_not_say_how_it_is_called() -> None:
    """A callable made in C without a signature gets the benefit of the doubt."""
    theirs: Any = dict  # as good as any
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(theirs)
    engine = Engine()
    assert EngineMiddleware(theirs, engine).app is theirs
    signals.unwatch(engine)
