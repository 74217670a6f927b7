import asyncio
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from actors import LIMIT, Call, at_once
from fakeserver import Answering, Lifespan, Reply, ask_asgi, ask_wsgi, http_scope, make_environ
from fakeserver import websocket_scope as ws_scope
from processes import (
    Server,
    attempt,
    get,
    run_script,
    run_server,
    start_request,
    wait_until,
)
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.lint import LintMiddleware

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.wsgi import EngineMiddleware as WSGIMiddleware
from engine_bridge.plugins import Health, Monitor
from engine_bridge.plugins.health import Answer

PROBES = ("livez", "readyz", "startupz")
NEVER = 3600.0  # seconds
SOON = 0.05  # seconds in which a check must answer
NOTHING: Any = None


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is ended after the test."""
    engine = Engine()
    yield engine
    with suppress(ChannelFailures):
        engine.exit()


@pytest.fixture
def health(engine: Engine) -> Health:
    """Return the answers for that engine."""
    health = Health(engine, verbose=True, timeout=SOON)
    health.subscribe()
    return health


def statuses(health: Health) -> list[int]:
    """Return what liveness, readiness and startup are answered."""
    return [health.probe(name).status for name in PROBES]


def facts(health: Health, name: str = "readyz") -> dict[str, Any]:
    """Return what a verbose probe tells."""
    found: dict[str, Any] = json.loads(health.probe(name, verbose=True).body)
    return found


class Held:
    """A check that answers when it is let go, and counts its calls."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.hang_here()

    def hang_here(self) -> None:
        assert self.let_go.wait(4 * LIMIT)


@pytest.fixture
def held() -> Iterator[Held]:
    """Return a check that hangs; it is let go at the end."""
    held = Held()
    yield held
    held.let_go.set()


# -- the engine ------------------------------------------------------------------------------------


def test_probes_follow_the_engine(engine: Engine, health: Health) -> None:
    """Live until it exits, ready while it is STARTED and does not drain, started once it was."""
    seen = {}
    for channel, priority in (("start", 50), ("drain", 50), ("stop", 50), ("exit", 50)):
        engine.subscribe(
            channel, lambda channel=channel: seen.update({channel: statuses(health)}), priority
        )
    seen["before"] = statuses(health)
    engine.start()
    seen["started"] = statuses(health)
    engine.stop()
    seen["stopped"] = statuses(health)
    engine.exit()
    seen["exited"] = statuses(health)
    assert seen == {
        "before": [200, 503, 503],
        "start": [200, 503, 503],
        "started": [200, 200, 200],
        "drain": [200, 503, 200],
        "stop": [200, 503, 200],
        "stopped": [200, 503, 200],
        "exit": [503, 503, 200],
        "exited": [503, 503, 200],
    }


def test_start_is_heard_of_without_a_probe(engine: Engine, health: Health) -> None:
    """Whether anybody asked meanwhile or not, what has started has started."""
    engine.start()
    engine.stop()
    assert health.probe("startupz").status == 200
    late = Health(engine)
    assert late.probe("startupz").status == 503
    engine.start()
    assert late.probe("startupz").status == 200


def test_listener_that_never_returns_ends_liveness(held: Held) -> None:
    """A process in which something hangs for good had better be replaced."""
    engine = Engine(slow_after=SOON, stop_timeout=SOON)
    health = Health(engine)
    engine.subscribe("stop", held)
    engine.start()
    call = Call(engine.stop)
    assert engine.wait(State.STOPPED, LIMIT)
    assert health.probe("livez").status == 503
    held.let_go.set()
    call.end()
    engine.exit()


def test_answers_tell_nothing_but_a_word(engine: Engine) -> None:
    """Without `verbose` nothing is said about why, also if somebody asks for it."""
    health = Health(engine, checks={"database": lambda: 1 / 0})
    engine.start()
    answer = health.probe("readyz", verbose=True)
    assert answer == Answer(
        503,
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", "9"),
            ("Cache-Control", "no-store"),
            ("Retry-After", "5"),
        ],
        b"not ready",
    )
    assert health.probe("livez").body == b"ok"
    assert "Retry-After" not in dict(health.probe("livez").headers)


# -- checks ----------------------------------------------------------------------------------------


def test_check_fails_by_raising_or_by_false(
    engine: Engine, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    """Readiness needs all checks; each change is in the log, once."""
    outcome: list[Any] = [None]

    @health.check("database", cache=0)
    def database() -> object:
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    engine.start()
    expected = [
        (None, 200),
        (True, 200),
        (0, 200),
        (False, 503),
        (OSError("refused"), 503),
        ("", 200),
    ]
    for result, status in expected:
        outcome[0] = result
        assert statuses(health) == [200, status, 200]
        assert statuses(health) == [200, status, 200]
    outcome[0] = OSError("refused")
    told = facts(health)
    assert told["checks"]["database"]["error"] == "OSError: refused"
    assert told["ok"] is False
    assert [entry.getMessage() for entry in caplog.records] == [
        "health: check 'database' fails: it returned False",
        "health: check 'database' fails: OSError: refused",
    ]


def test_check_counts_for_the_probes_that_it_names(engine: Engine, health: Health) -> None:
    """Readiness unless it says otherwise; a check that replaces another counts alone."""
    health.check("broken", lambda: False, probes=("startupz", "livez"))
    engine.start()
    assert statuses(health) == [503, 200, 503]
    health.check("broken", lambda: False)
    assert statuses(health) == [200, 503, 200]
    health.check("broken", lambda: True)
    assert statuses(health) == [200, 200, 200]


def test_check_is_not_made_while_the_engine_says_no(engine: Engine, health: Health) -> None:
    """What it would need may not be there yet, or any more."""
    calls: list[int] = []
    health.check("database", lambda: calls.append(1), probes=PROBES, cache=0)
    health.probe("readyz")
    assert calls == []
    health.probe("livez")
    assert len(calls) == 1
    engine.start()
    engine.drain()
    health.probe("readyz")
    assert len(calls) == 1


def test_outcome_of_a_check_holds_for_a_while(engine: Engine, health: Health) -> None:
    """Within `cache` seconds nobody makes it again; many who ask at once share one run."""
    calls: list[int] = []
    go = threading.Event()

    def slow() -> None:
        calls.append(1)
        assert go.wait(LIMIT)

    health.check("slow", slow, cache=NEVER, timeout=LIMIT)
    engine.start()
    asking = [Call(lambda: health.probe("readyz").status) for _ in range(8)]
    wait_until(lambda: calls)
    go.set()
    assert [call.end().outcome for call in asking] == [200] * 8
    assert at_once([lambda: health.probe("readyz").status] * 8) == [200] * 8
    assert len(calls) == 1


@pytest.mark.parametrize("way", ["sync", "async"])
def test_check_that_hangs_is_given_up_and_holds_one_thread(
    engine: Engine, health: Health, held: Held, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not ready within the limit; its stack is told once, and no other run begins."""
    health.check("held", held, cache=0)
    engine.start()

    def ask() -> int:
        if way == "sync":
            return health.probe("readyz").status
        return asyncio.run(health.probe_async("readyz")).status

    threads = threading.active_count()
    for _ in range(5):
        assert ask() == 503
    assert threading.active_count() == threads + 1
    assert held.calls == 1
    assert facts(health)["checks"]["held"]["error"] == "no answer within 0.05 s"
    [told] = [entry.getMessage() for entry in caplog.records if "hang_here\n" in entry.getMessage()]
    assert told.startswith("health: check 'held' still runs after 0.")
    held.let_go.set()
    wait_until(lambda: ask() == 200)


def test_hanging_check_does_not_block_the_loop(engine: Engine, health: Health, held: Held) -> None:
    """While a probe waits for a sync check, the loop does other things."""
    health.check("held", held, timeout=LIMIT)

    async def main() -> int:
        await engine.start_async()
        probe = asyncio.create_task(health.probe_async("readyz"))
        while not held.calls:  # noqa: ASYNC110  # the loop is to go on meanwhile
            await asyncio.sleep(0)
        assert (await health.probe_async("livez")).status == 200
        held.let_go.set()
        status = (await probe).status
        await engine.exit_async()
        return status

    assert asyncio.run(main()) == 200


def test_async_check_runs_where_async_listeners_do(engine: Engine, health: Health) -> None:
    """On the application's loop under ASGI, on the engine's own elsewhere."""
    loops: list[object] = []

    @health.check("database", cache=0, timeout=LIMIT)
    async def database() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        await engine.start_async()
        assert (await health.probe_async("readyz")).status == 200
        assert (await asyncio.to_thread(health.probe, "readyz")).status == 200
        assert set(loops) == {asyncio.get_running_loop()}
        await engine.stop_async()

    asyncio.run(main())
    engine.start()
    assert health.probe("readyz").status == 200
    assert len(loops) == 3
    assert loops[2] is not loops[0]


def test_async_check_that_hangs_is_told_and_cancelled(
    engine: Engine, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own stack is in the log; it is cancelled soon after, so it can be made again."""
    notes: list[str] = []

    @health.check("database", cache=0)
    async def database() -> None:
        notes.append("called")
        try:
            await wait_here()
        finally:
            notes.append("cancelled")

    async def wait_here() -> None:
        await asyncio.sleep(NEVER)

    def told_and_called_again() -> bool:
        assert health.probe("readyz").status == 503
        return "in wait_here\n" in caplog.text and notes.count("called") > 1

    engine.start()
    wait_until(told_and_called_again)
    assert notes[:3] == ["called", "cancelled", "called"]
    engine.stop()


def test_check_may_raise_anything(engine: Engine, health: Health) -> None:
    """A SystemExit of a check, or a time-out of its own, is a failure like any other."""
    for error, text in (
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (TimeoutError("of the driver"), "TimeoutError: of the driver"),
    ):

        def fail(error: BaseException = error) -> None:
            raise error

        async def fail_async(error: BaseException = error) -> None:
            raise error

        health.check("one", fail, cache=0, timeout=LIMIT)
        if isinstance(error, Exception):
            health.check("two", fail_async, cache=0, timeout=LIMIT)
        engine.start()  # at the first time
        told = facts(health)["checks"]
        assert {each["error"] for each in told.values()} == {text}


# -- reports ---------------------------------------------------------------------------------------


def test_monitor_is_shown_and_fails_the_probes_that_it_names(
    engine: Engine, health: Health
) -> None:
    """A monitor that fails changes no probe unless it says which."""

    def fail() -> None:
        raise OSError("unreachable")

    how: dict[str, Any] = {"run_at_start": True, "unhealthy_after": 1}
    quiet = Monitor(engine, fail, NEVER, "quiet", **how)
    loud = Monitor(engine, fail, NEVER, "loud", probes=("readyz",), **how)
    quiet.subscribe()
    engine.start()
    wait_until(lambda: quiet.status.failures)
    assert statuses(health) == [200, 200, 200]
    told = facts(health)
    assert told["ok"] is True
    assert told["reports"]["quiet"]["ok"] is False
    assert told["reports"]["quiet"]["last_error"] == "OSError: unreachable"
    loud.subscribe()
    loud.start()
    wait_until(lambda: loud.status.failures)
    assert statuses(health) == [200, 503, 200]
    loud.unsubscribe()
    assert statuses(health) == [200, 200, 200]


@pytest.mark.parametrize(
    ("listener", "sentence"),
    [
        (lambda: "fine", "must return a mapping of name and ok, not 'fine'"),
        (lambda: {"name": "x"}, "must return a mapping of name and ok"),
        (lambda: 1 / 0, "division by zero"),
    ],
)
def test_report_that_cannot_be_had_makes_unready_and_not_dead(
    engine: Engine, health: Health, listener: Callable[[], Any], sentence: str
) -> None:
    """What might be unready counts as unready, and is told; liveness is not affected."""
    engine.subscribe("health", listener)
    engine.start()
    assert statuses(health) == [200, 503, 200]
    assert sentence in facts(health)["reports"]["channel 'health'"]["error"]
    assert asyncio.run(health.probe_async("readyz")).status == 503
    engine.unsubscribe("health", listener)
    engine.subscribe("health", lambda: None)
    assert statuses(health) == [200, 200, 200]


def test_verbose_answer_tells_of_the_engine(engine: Engine, health: Health) -> None:
    """State, drain and requests in flight; whatever a report holds can be shown."""
    engine.subscribe("health", lambda: {"name": 1, "ok": 1, "facts": {"path": Path("/"), (): 1}})
    engine.start()
    engine.drain()
    assert facts(health, "livez") == {
        "probe": "livez",
        "ok": True,
        "engine": {"state": "STARTED", "draining": True, "in_flight": 0},
        "checks": {},
        "reports": {"1": {"ok": True, "path": "PosixPath('/')"}},
    }
    assert dict(health.probe("livez", verbose=True).headers)["Content-Type"] == "application/json"


# -- WSGI and ASGI ---------------------------------------------------------------------------------


Ask = Callable[..., Reply]


@pytest.fixture
def ask(engine: Engine) -> Iterator[Ask]:
    """
    Return a function that asks an application of either kind.

    Two validators watch the WSGI one; all requests to the ASGI one are on one loop.
    """
    with asyncio.Runner() as runner:

        def ask(app: Any, kind: str, path: str, method: str = "GET", query: str = "") -> Reply:
            if kind == "asgi":
                scope = http_scope(path, method=method, query_string=query.encode())
                return runner.run(ask_asgi(app, scope))
            if method != "HEAD":  # werkzeug's wants the length of an empty body to be 0
                app = LintMiddleware(app)
            return ask_wsgi(app, method, PATH_INFO=path, QUERY_STRING=query)

        yield ask
        runner.run(engine.exit_async())


KINDS = pytest.mark.parametrize("kind", ["wsgi", "asgi"])


@KINDS
def test_application_answers_three_paths(health: Health, ask: Ask, kind: str) -> None:
    """GET and HEAD are answered, other methods and other paths refused."""
    app = getattr(health, kind)
    assert ask(app, kind, "/livez") == (
        200,
        {
            "content-type": "text/plain; charset=utf-8",
            "content-length": "2",
            "cache-control": "no-store",
        },
        b"ok",
    )
    reply = ask(app, kind, "/readyz")
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b"not ready", "5")
    assert ask(app, kind, "/startupz").body == b"not started"
    head = ask(app, kind, "/readyz", "HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (503, b"", "9")
    refused = ask(app, kind, "/livez", "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    for path in ("/", "", "/livez/", "/x/livez", "/healthz"):
        assert ask(app, kind, path).status == 404, path
    told = json.loads(ask(app, kind, "/livez", query="a=b&verbose").body)
    assert told["engine"]["state"] == "STOPPED"
    assert json.loads(ask(app, kind, "/livez", query="verbose=1").body)["ok"]


def test_application_can_be_mounted(health: Health, ask: Ask) -> None:
    """Below any path of another application it answers the same."""
    starlette = Starlette(routes=[Mount("/-/health", app=health.asgi)])
    assert ask(starlette, "asgi", "/-/health/livez").body == b"ok"
    assert ask(starlette, "asgi", "/-/health/readyz").status == 503
    assert ask(starlette, "asgi", "/livez").status == 404

    def other(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"other"]

    dispatcher = DispatcherMiddleware(other, {"/-/health": health.wsgi})
    assert ask(dispatcher, "wsgi", "/-/health/livez").body == b"ok"
    assert ask(dispatcher, "wsgi", "/livez").body == b"other"


def test_asgi_application_sits_through_a_lifespan_and_refuses_websockets(health: Health) -> None:
    """Alone under a server it starts up and shuts down; it has nothing to say to a WebSocket."""

    async def main() -> None:
        server = Lifespan(health.asgi)
        assert await server.startup() == {"type": "lifespan.startup.complete"}
        assert await server.shutdown() == {"type": "lifespan.shutdown.complete"}
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await health.asgi(ws_scope(path="/livez"), receive, send)
        assert [message["type"] for message in sent] == ["websocket.close"]

    asyncio.run(main())


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """Be a WSGI application."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


async def hello_async(scope: Any, receive: Any, send: Any) -> None:
    """Be an ASGI application that does not know lifespans."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@KINDS
@pytest.mark.parametrize("prefix", ["", "/health", "/health/"])
def test_health_in_front_answers_whatever_the_engine_does(
    engine: Engine, health: Health, ask: Ask, kind: str, prefix: str
) -> None:
    """The probes are answered, all else is the application's; an exited engine stays so."""
    app: Any
    if kind == "wsgi":
        app = health.wsgi_before(WSGIMiddleware(hello, engine), prefix)
    else:
        app = health.asgi_before(EngineMiddleware(hello_async, engine), prefix)
    prefix = prefix.rstrip("/")
    assert ask(app, kind, f"{prefix}/livez").status == 200
    assert not engine.serves
    assert ask(app, kind, f"{prefix}/readyz").status == 200  # the first request starts it
    assert engine.serves
    assert ask(app, kind, "/x").body == b"/x"
    assert ask(app, kind, f"{prefix}/startupz").status == 200
    if prefix:
        assert ask(app, kind, "/readyz").body == b"/readyz"
    engine.exit()
    assert ask(app, kind, f"{prefix}/livez").status == 503
    assert ask(app, kind, f"{prefix}/readyz").body == b"not ready"
    assert ask(app, kind, "/x").status == 503
    assert engine.state is State.EXITING


@KINDS
def test_probe_does_not_wait_for_a_start_that_another_has_begun(
    engine: Engine, health: Health, ask: Ask, held: Held, kind: str
) -> None:
    """While the engine starts, probes are answered at once, so they hold no thread."""
    app: Any
    if kind == "wsgi":
        app = health.wsgi_before(WSGIMiddleware(hello, engine))
    else:
        app = health.asgi_before(EngineMiddleware(hello_async, engine))
    engine.subscribe("start", held)
    start = Call(engine.start)
    wait_until(lambda: held.calls)
    assert [ask(app, kind, f"/{name}").status for name in PROBES] == [200, 503, 503]
    held.let_go.set()
    assert start.end().error is None
    assert ask(app, kind, "/readyz").status == 200


def test_lifespan_passes_health_in_front(engine: Engine, health: Health) -> None:
    """What is no probe goes to the application: its lifespan too."""

    async def main() -> None:
        server = Lifespan(health.asgi_before(EngineMiddleware(hello_async, engine)))
        await server.startup()
        assert engine.ready
        await server.shutdown()
        assert engine.state is State.EXITING

    asyncio.run(main())


def test_body_of_an_application_behind_health_is_its_own(engine: Engine, health: Health) -> None:
    """Health adds nothing to what it hands on."""
    engine.start()
    inner = WSGIMiddleware(hello, engine)
    answering = Answering(health.wsgi_before(inner), make_environ(PATH_INFO="/x"))
    assert engine.in_flight == 1
    answering.close()
    assert engine.in_flight == 0


# -- forks, being turned off -----------------------------------------------------------------------


def test_child_has_not_started_and_makes_its_own_checks() -> None:
    """After a fork nothing that the parent found holds, and no run of its is waited for."""
    done = run_script("""
import os, threading, time
from engine_bridge import engine
from engine_bridge.plugins import Health

go, calls = threading.Event(), []
def check():
    calls.append(os.getpid())
    return go.wait(20)

health = Health(engine, checks={"held": check}, cache=0, timeout=0.01)
health.subscribe()
engine.start()
assert health.probe("readyz").status == 503
pid = os.fork()
if not pid:
    assert health.probe("startupz").status == 503
    engine.start()
    go.set()
    end = time.monotonic() + 10
    while health.probe("readyz").status != 200:
        assert time.monotonic() < end
    assert calls[-1] == os.getpid()
    engine.exit()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert health.probe("startupz").status == 200
go.set()
""")
    assert done.returncode == 0, done.stderr


def test_health_may_be_turned_on_twice_and_off(engine: Engine, health: Health) -> None:
    """It observes once; turned off it still answers, by what it sees."""
    health.subscribe()
    assert engine.observers.count(health._hear) == 1
    health.unsubscribe()
    health.unsubscribe()
    assert health._hear not in engine.observers
    engine.start()
    assert statuses(health) == [200, 200, 200]


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda health: health.probe("healthz"), "no probe 'healthz'; known: livez, readyz"),
        (lambda health: health.check("x", 5), "check('x', 5) wants a name and a function"),
        (lambda health: health.check(None, list), "check(None, <class 'list'>) wants a name"),
        (lambda health: health.check(list)(list), "wants a name and a function"),
        (lambda health: health.check("x", list, cache=-1), "cache=… wants seconds, from 0"),
        (lambda health: health.check("x", list, timeout="1"), "timeout=… wants seconds, from 0"),
        (lambda health: health.check("x", list, probes="readyz"), "probes=… wants a tuple"),
        (lambda health: health.wsgi_before(list, "health"), "prefix=… wants a path such as"),
        (lambda health: health.asgi_before(list, None), "prefix=… wants a path such as"),
        (lambda health: Health(health.engine, timeout=-1), "timeout=… wants seconds"),
        (lambda health: Health(health.engine, checks={"x": NOTHING}), "check('x', None) wants"),
    ],
)
def test_health_refuses_what_it_cannot_do(
    health: Health, call: Callable[[Health], Any], sentence: str
) -> None:
    """The sentence says what was asked for and what is wanted."""
    with pytest.raises(EngineError) as caught:
        call(health)
    assert sentence in str(caught.value)


# -- real servers ----------------------------------------------------------------------------------

WSGI_APP = """
import threading, time
from pathlib import Path
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import Health

health = Health(engine, verbose=True)
health.subscribe()
engine.subscribe("drain", lambda: record("drain"))

def respond(environ, start_response):
    if environ["PATH_INFO"] == "/drain":
        threading.Thread(target=engine.drain).start()
    else:
        record("held")
        while not Path("release").exists():
            time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]

app = health.wsgi_before(EngineMiddleware(respond))
"""
ASGI_APP = """
import asyncio
from pathlib import Path
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.plugins import Health

engine.drain_delay = 10  # a second SIGTERM ends it
health = Health(engine, verbose=True)
health.subscribe()
engine.subscribe("drain", lambda: record("drain"))

async def respond(scope, receive, send):
    assert scope["type"] == "http"
    record("held")
    while not Path("release").exists():
        await asyncio.sleep(0.01)
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"done"})

app = health.asgi_before(EngineMiddleware(respond))
"""
GUNICORN = [
    *(sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", "127.0.0.1:{port}"),
    *("-k", "gthread", "--threads", "4", "-c", "python:engine_bridge.servers.gunicorn"),
]
WAITRESS = [sys.executable, "-m", "waitress", "--listen", "127.0.0.1:{port}"]
UVICORN = [sys.executable, "-m", "uvicorn", "--port", "{port}"]


@pytest.mark.parametrize(
    ("package", "command", "app"),
    [
        pytest.param("uvicorn", UVICORN, ASGI_APP, id="uvicorn"),
        pytest.param("waitress", WAITRESS, WSGI_APP, id="waitress"),
        pytest.param("gunicorn", GUNICORN, WSGI_APP, id="gunicorn"),
    ],
)
def test_server_that_drains_is_live_and_not_ready(
    package: str, command: list[str], app: str, tmp_path: Path
) -> None:
    """
    While it drains and a held request is answered, liveness is 200 and readiness 503.

    uvicorn is told to go by SIGTERM. waitress and gunicorn take no new connection after one, so
    there the application itself begins the drain.
    """
    pytest.importorskip(package)
    (tmp_path / "app.py").write_text(app)

    def is_ready(server: Server) -> bool:
        return attempt(server.port, "/readyz").status == 200

    with run_server([*command, "app:app"], cwd=tmp_path, ready=is_ready) as server:
        assert get(server.port, "/startupz").ok
        held = start_request(server.port, "/held")
        server.wait_published("held")
        if app is ASGI_APP:
            server.signal(signal.SIGTERM)
        else:
            assert get(server.port, "/drain").ok
        server.wait_published("drain")
        assert attempt(server.port, "/livez").status == 200
        answer = attempt(server.port, "/readyz?verbose")
        assert answer.status == 503
        told = json.loads(answer.body)["engine"]
        assert told == {"state": "STARTED", "draining": True, "in_flight": 1}
        assert attempt(server.port, "/startupz").status == 200
        assert not held.done
        (tmp_path / "release").touch()
        assert held.result().ok
        server.signal(signal.SIGTERM)
        server.wait_exit()


@pytest.mark.parametrize("title", ["WSGI", "ASGI"])
def test_guide_programs_run(title: str, tmp_path: Path) -> None:
    """What the guide shows for each kind works as it stands, under the server that it names."""
    package = {"WSGI": "waitress", "ASGI": "uvicorn"}[title]
    pytest.importorskip(package)
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "health.md").read_text()
    [program] = [
        text.split("```")[0]
        for text in guide.split("```python\n")[1:]
        if f"frameworks.{title.lower()} import" in text.split("```")[0]
    ]
    (tmp_path / "app.py").write_text(program)
    command = WAITRESS if title == "WSGI" else UVICORN
    assert re.search(rf"^    {package}.* app:app$", guide, re.MULTILINE)
    with run_server([*command, "app:app"], cwd=tmp_path) as server:
        wait_until(lambda: attempt(server.port, "/readyz").ok)
        assert get(server.port, "/livez").body == b"ok"
        assert get(server.port, "/").ok
        server.signal(signal.SIGTERM)
        server.wait_exit()
        assert "Traceback" not in server.output()
