"""The Flask extension: one engine for an application, whatever serves it."""

import asyncio
import fcntl
import gc
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from actors import Part
from processes import (
    Process,
    Ready,
    Server,
    answers,
    assert_once,
    attempt,
    get,
    open_stream,
    publishes,
    run_script,
    run_server,
    start_process,
    start_request,
    start_script,
)
from servers.launch import (
    CONFIG,
    GUNICORN,
    LIFE,
    WAITRESS,
    assert_answered_before_stop,
    hold_request,
    release,
    who_published,
)
from werkzeug.middleware.proxy_fix import ProxyFix

from engine_bridge import Engine, EngineError, State
from engine_bridge.core import signals
from engine_bridge.core.errors import ListenerError
from engine_bridge.frameworks import mainprocess
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import Health, PIDFile

flask = pytest.importorskip("flask")

from engine_bridge.frameworks.flask import (  # noqa: E402  # not without Flask
    EngineBridge,
    current_engine,
    health_blueprint,
)

FLASK = [sys.executable, "-m", "flask"]
RUN = ["run", "--port", "{port}"]
APP = "servers.apps.flask"
RELOADS = 20
SETTINGS = [
    "ENGINE_SLOW_AFTER",
    "ENGINE_START_TIMEOUT",
    "ENGINE_STOP_TIMEOUT",
    "ENGINE_DRAIN_DELAY",
    "ENGINE_DRAIN_TIMEOUT",
    "ENGINE_PIDFILE",
]

ASKED = answers()
STARTED = publishes("started")
TERM, INT = signal.SIGTERM, signal.SIGINT

EVERY_SERVER = pytest.mark.parametrize(
    ("command", "signum", "ready", "status"),
    [
        pytest.param([*FLASK, "--app", APP, *RUN], INT, STARTED, 0, id="flask-run-int"),
        pytest.param([*GUNICORN, *CONFIG, f"{APP}:app"], TERM, STARTED, 0, id="gunicorn"),
        pytest.param([*GUNICORN, f"{APP}:app"], TERM, ASKED, 0, id="gunicorn-plain"),
    ],
)


def make_app(name: str = "shop", **config: Any) -> Any:
    """Return an application with one view, which tells the state of its engine."""
    app = flask.Flask(name)
    app.config.update(config)
    app.add_url_rule("/", "index", lambda: f"{current_engine.state} {current_engine.in_flight}")
    return app


# -- the extension -------------------------------------------------------------------------------


def test_engine_starts_with_the_first_request(engine: Engine, heard: list[str]) -> None:
    """The engine is the application's, and STARTED when a view runs."""
    app = make_app()
    EngineBridge(app, engine)
    assert app.extensions["engine"] is engine
    assert engine.state is State.STOPPED
    assert app.test_client().get("/").text == "STARTED 1"
    engine.exit()
    assert heard == ["start", "drain", "stop", "exit"]
    assert app.test_client().get("/").status_code == 503


def test_init_app_twice_is_as_good_as_once(engine: Engine) -> None:
    """A second `init_app`, or a second bridge to the same engine, changes nothing."""
    app = make_app()
    bridge = EngineBridge(app, engine)
    calls: list[str] = []
    bridge.subscribe("start", lambda: calls.append("start"))
    bridge.init_app(app, engine)
    app.wsgi_app = ProxyFix(app.wsgi_app)
    bridge.init_app(app)
    EngineBridge(app, engine)
    assert app.test_client().get("/").text == "STARTED 1"
    assert calls == ["start"]


def test_application_that_is_wrapped_already_stays_so(engine: Engine) -> None:
    """An application in an EngineMiddleware of the same engine gets no second one."""
    app = make_app()
    app.wsgi_app = EngineMiddleware(app.wsgi_app, engine)
    EngineBridge(app, engine)
    assert app.test_client().get("/").text == "STARTED 1"


def test_other_middleware_may_come_around(engine: Engine) -> None:
    """`app.wsgi_app` can be wrapped in more, before and after."""
    app = make_app()
    app.wsgi_app = ProxyFix(app.wsgi_app)
    EngineBridge(app, engine)
    app.wsgi_app = ProxyFix(app.wsgi_app)
    assert app.test_client().get("/").text == "STARTED 1"


def test_current_engine_is_that_of_the_application(engine: Engine) -> None:
    """Of several applications each has its own engine, in blueprints and commands as well."""
    other = Engine()
    shop, admin = make_app("shop"), make_app("admin")
    bridge = EngineBridge()
    bridge.init_app(shop, engine)
    bridge.init_app(admin, other)
    views = flask.Blueprint("views", __name__)
    views.add_url_rule("/same", "same", lambda: str(current_engine._get_current_object() is other))  # type: ignore[attr-defined]  # of LocalProxy
    admin.register_blueprint(views)
    try:
        assert admin.test_client().get("/same").text == "True"
        assert engine.state is State.STOPPED
        with shop.app_context():
            assert current_engine == engine
    finally:
        other.exit()
        signals.unwatch(other)


def test_applications_share_the_default_engine(tmp_path: Path) -> None:
    """Without an engine given, all applications of a process have the package's one."""
    script = """
        from flask import Flask
        from journal import record
        from werkzeug.middleware.dispatcher import DispatcherMiddleware
        from werkzeug.test import Client
        from engine_bridge import engine
        from engine_bridge.frameworks.flask import EngineBridge
        bridge = EngineBridge()
        apps = [Flask("shop"), Flask("admin")]
        for app in apps:
            bridge.init_app(app)
            app.add_url_rule("/", "index", lambda: record("request") or "")
            assert app.extensions["engine"] is engine
        for channel in ("start", "drain", "stop", "exit"):
            engine.subscribe(channel, lambda channel=channel: record(channel))
        client = Client(DispatcherMiddleware(apps[0], {"/admin": apps[1]}))
        assert client.get("/").status_code == client.get("/admin/").status_code == 200
    """
    finished = run_script(script, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (channels,) = finished.process.published().values()
    assert channels == ["start", "request", "request", "drain", "stop", "exit"]


def test_settings_are_the_engines_parameters(engine: Engine) -> None:
    """`ENGINE_…` keys set what the engine was not given, and nothing else."""
    EngineBridge(make_app(ENGINE_DRAIN_TIMEOUT=7, ENGINE_SLOW_AFTER=0.5), engine)
    assert (engine.drain_timeout, engine.slow_after) == (7, 0.5)
    assert engine.start_timeout == Engine().start_timeout


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "ENGINE_DRAIN_TIMEOU",
            1,
            "no setting ENGINE_DRAIN_TIMEOU in app.config; did you mean ENGINE_DRAIN_TIMEOUT?",
        ),
        (
            "ENGINE_ROOM",
            1,
            f"no setting ENGINE_ROOM in app.config; known: {', '.join(SETTINGS)}",
        ),
        (
            "ENGINE_DRAIN_TIMEOUT",
            "10 s",
            "app.config['ENGINE_DRAIN_TIMEOUT'] wants seconds, 0 or more; got '10 s'",
        ),
        (
            "ENGINE_STOP_TIMEOUT",
            -1,
            "app.config['ENGINE_STOP_TIMEOUT'] wants seconds, 0 or more; got -1",
        ),
        ("ENGINE_PIDFILE", 5, "app.config['ENGINE_PIDFILE'] wants the path of a file; got 5"),
    ],
)
def test_bad_setting_is_refused(key: str, value: Any, sentence: str, engine: Engine) -> None:
    """A setting that cannot be is refused in a sentence, and the application stays as it was."""
    app = make_app(**{key: value})
    with pytest.raises(EngineError) as caught:
        EngineBridge(app, engine)
    assert str(caught.value) == sentence
    assert "engine" not in app.extensions
    assert not isinstance(app.wsgi_app, EngineMiddleware)


def test_bad_arguments_are_refused(engine: Engine) -> None:
    """What is no application, no engine, or one engine too many is refused in a sentence."""
    app = make_app()
    with pytest.raises(EngineError, match="wants a Flask application first, got None"):
        EngineBridge().init_app(None)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(EngineError, match="wants an Engine second, got 'engine'"):
        EngineBridge(app, "engine")  # type: ignore[arg-type]  # likewise
    EngineBridge(app, engine)
    with pytest.raises(EngineError, match="the application 'shop' has an engine already"):
        EngineBridge(app, Engine())
    wrapped = make_app()
    wrapped.wsgi_app = EngineMiddleware(wrapped.wsgi_app, engine)
    with pytest.raises(EngineError, match="has an engine already"):
        EngineBridge(wrapped, Engine())
    with pytest.raises(EngineError, match="wants the plugin Health, got None"):
        health_blueprint(None)  # type: ignore[arg-type]  # likewise


def test_current_engine_needs_an_application() -> None:
    """`current_engine` says what it wants where there is no application, or one without engine."""
    with pytest.raises(EngineError, match=r"wants an application at hand.*app\.app_context"):
        current_engine.start()
    with (
        make_app().app_context(),
        pytest.raises(EngineError, match=r"'shop' has no engine; .* EngineBridge\(app\)"),
    ):
        current_engine.start()
    assert repr(current_engine) == "<LocalProxy unbound>"


def test_missing_flask_names_the_extra() -> None:
    """Without Flask the import says what to install."""
    finished = run_script("""
        import sys
        sys.modules["flask"] = None
        import engine_bridge.frameworks.flask
    """)
    assert "EngineError: Flask is not installed: pip install 'engine-bridge[flask]'" in (
        finished.stderr
    )


# -- listeners within the application context ----------------------------------------------------


def test_listeners_have_the_application_context(engine: Engine) -> None:
    """What is subscribed by the bridge, sync or async, before or after init_app, has a context."""
    bridge = EngineBridge()
    notes: list[str] = []

    @bridge.subscribe("start", priority=60)
    def connect() -> None:
        notes.append(f"connect {flask.current_app.name}")

    @bridge.subscribe("start")
    async def prepare() -> None:
        await asyncio.sleep(0)
        notes.append(f"prepare {flask.current_app.name}")

    app = make_app()
    bridge.init_app(app, engine)
    bridge.subscribe("stop", lambda: notes.append(f"stop {flask.current_app.name}"))
    with engine:
        assert not flask.has_app_context()
    assert notes == ["prepare shop", "connect shop", "stop shop"]
    names = [listener.name for listener in engine.listeners["start"]]
    assert [name.rpartition(".")[2] for name in names] == ["prepare", "connect"]


def test_resources_have_the_application_context(engine: Engine) -> None:
    """Resources are opened and closed within the context, in reverse, sync and async ones."""
    bridge = EngineBridge()
    notes: list[str] = []

    @bridge.resource
    def database() -> Iterator[dict[str, str]]:
        notes.append(f"open {flask.current_app.name}")
        yield {"database": "a connection"}
        notes.append(f"close {flask.current_app.name}")

    @bridge.resource
    async def session() -> AsyncIterator[None]:
        notes.append(f"begin {flask.current_app.name}")
        yield
        notes.append(f"end {flask.current_app.name}")

    bridge.init_app(make_app(), engine)
    app = make_app("other")
    bridge.init_app(app, engine)
    gc.collect()  # the first application is gone, and with it what was for it
    with engine:
        assert engine.lifespan_state == {"database": "a connection"}
    assert notes == ["open other", "begin other", "end other", "close other"]


def test_applications_that_are_gone_are_forgotten(engine: Engine) -> None:
    """A factory that is called again and again leaves no listeners behind."""
    bridge = EngineBridge()
    bridge.subscribe("start", lambda: None)
    for _ in range(3):
        bridge.init_app(make_app(), engine)
    gc.collect()
    assert "start" not in engine.listeners


def test_what_is_no_listener_is_refused_at_once() -> None:
    """The bridge refuses what the engine would, before there is an application."""
    bridge = EngineBridge()
    with pytest.raises(ListenerError, match=r"subscribe\('start', …\) wants a function"):
        bridge.subscribe("start", "connect")  # type: ignore[call-overload]  # that is the test
    with pytest.raises(ListenerError, match="wants the name of a channel first"):
        bridge.subscribe(print)  # type: ignore[call-overload]  # likewise
    with pytest.raises(ListenerError, match="wants a generator function"):
        bridge.resource(print)


# -- probes --------------------------------------------------------------------------------------


def test_health_blueprint_answers_probes(engine: Engine) -> None:
    """The blueprint hands out what the plugin says; during the drain readiness is 503."""
    app = make_app()
    EngineBridge(app, engine)
    app.register_blueprint(health_blueprint(Health(engine, verbose=True)), url_prefix="/-")
    client = app.test_client()
    answer = client.get("/-/startupz?verbose")
    assert (answer.status_code, answer.json["probe"]) == (200, "startupz")
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/-/readyz").status_code == 200
    engine.drain()
    assert client.get("/-/readyz").status_code == 503
    assert client.get("/-/livez").text == "ok"
    assert client.head("/-/livez").data == b""
    assert client.post("/-/livez").status_code == 405


# -- servers -------------------------------------------------------------------------------------


@EVERY_SERVER
def test_starts_and_stops_once(
    command: list[str], signum: int, ready: Ready, status: int, tmp_path: Path
) -> None:
    """
    Resources are open for all requests, the last included, and listeners find their context.

    Where the server has a hook the engine starts before the first request.
    """
    with run_server(command, cwd=tmp_path, ready=ready) as server:
        assert bool(who_published(server, "request")) == (ready is ASKED)
        held = hold_request(server)
        if signum == INT:  # else it may come while socketserver still hands the request over
            assert get(server.port).ok
        server.signal(signum)
        server.wait_published("drain")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    (seen,) = server.published().values()
    life = [channel for channel in seen if channel not in {"request", "started"}]
    assert life == ["context", "start", "held", "drain", "released", "stop", "worked", "exit"]
    assert_answered_before_stop(server)


def test_signal_during_the_start_aborts_it(tmp_path: Path) -> None:
    """`flask run` told to go while it starts takes back what has started; the status stays."""
    command = [*FLASK, "--app", APP, *RUN]
    env = {"APP_START_WAITS": "go"}
    with run_server(command, cwd=tmp_path, env=env, ready=publishes("context")) as server:
        server.signal(signal.SIGTERM)
        server.wait_published("aborting")  # else the start may be over before the signal is worked
        (tmp_path / "go").touch()
        assert server.wait_exit() == -signal.SIGTERM
    assert server.published() == {server.pid: ["context", "aborting", "stop", "worked", "exit"]}


def test_failing_start_of_flask_run_is_told_once(tmp_path: Path) -> None:
    """The traceback is in the log, and the last word is a sentence; no PID file is left."""
    pidfile = tmp_path / "app.pid"
    env = {"APP_FAILS_UNTIL": "repaired", "APP_PIDFILE": str(pidfile)}
    command = [word.replace("{port}", "0") for word in [*FLASK, "--app", APP, *RUN]]
    with start_process(command, cwd=tmp_path, env=env) as process:
        assert process.wait_exit() == 1
    output = process.output()
    assert "fail_if_asked_to failed on 'start': RuntimeError: the database is down" in output
    last_word = "The engine did not start: start failed: RuntimeError: the database is down\n"
    assert output.count("Traceback") == output.count(last_word) == 1
    assert not pidfile.exists()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([*GUNICORN, "-k", "gthread", "--threads", "8", *CONFIG], id="gunicorn"),
        pytest.param([*WAITRESS, "--threads", "8"], id="waitress"),
        pytest.param([*FLASK, "--app", APP, *RUN], id="flask-run"),
    ],
)
def test_drain_where_users_write_it(command: list[str], tmp_path: Path) -> None:
    """Streams and long polls end with the drain; downloads and background work are finished."""
    words = command if "flask" in command else [*command, f"{APP}:app"]
    with (
        run_server(words, cwd=tmp_path, ready=answers()) as server,
        open_stream(server.port, "/events") as events,
        open_stream(server.port, "/silence") as silence,
        open_stream(server.port, "/download") as download,
    ):
        for stream in (events, silence, download):
            stream.wait_first()
        news = start_request(server.port, "/news")
        server.wait_published("polled")
        server.signal(signal.SIGTERM)
        assert events.wait_end().ok
        assert silence.wait_end().ok
        assert news.result().status == 204
        assert not download.done
        release(tmp_path)
        assert download.wait_end().body == b"begun\nended\n"
        server.wait_exit()
    (seen,) = server.published().values()
    assert seen[-4:] == ["drain", "stop", "worked", "exit"]


# -- the development server ----------------------------------------------------------------------


def local_app(folder: Path, more: str = "") -> Path:
    """Write an `app.py` that is the application under test; return it."""
    path = folder / "app.py"
    path.write_text(f"from servers.apps.flask import app, engine\n{more}")
    return path


def save(path: Path, text: str | None = None) -> None:
    """Have the reloader see a change of *path*, whatever the resolution of its clock."""
    changed = path.stat().st_mtime + 10
    if text is not None:
        path.write_text(text)
    os.utime(path, (changed, changed))


def impatient(folder: Path) -> list[str]:
    """Return the command `flask` whose reloader looks ten times as often as it would."""
    path = folder / "impatient.py"
    path.write_text(
        "import functools, flask.cli as cli\n"
        "cli.run_simple = functools.partial(cli.run_simple, reloader_interval=0.1)\n"
        "cli.main()\n"
    )
    return [sys.executable, str(path)]


def wait_serving(server: Server, life: int) -> None:
    """Wait until the process of life number *life* has answered: the reloader watches by then."""
    server.wait_published("started", life)
    server.wait(lambda: attempt(server.port).ok, 10, "it answers")


@pytest.mark.timeout(120)  # 20 processes in a row, each of which imports Flask
@pytest.mark.slow
def test_20_reloads_are_20_lives(tmp_path: Path) -> None:
    """Each reload stops the engine that was there and starts one; the parent has none."""
    path = local_app(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = [*impatient(folder), "--debug", *RUN]
    with run_server(command, cwd=tmp_path) as server:
        for life in range(1, RELOADS + 1):
            wait_serving(server, life)
            save(path)
        wait_serving(server, RELOADS + 1)
        pids = who_published(server, "start")
        assert who_published(server, "exit") == pids[:-1], "one runs, all others have ended"
        assert server.children() == pids[-1:]
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=pids, count=RELOADS + 1)
    assert server.pid not in server.published()


SLOW_STOP = """
import time
from journal import record

@engine.subscribe("stop")
def take_longer_than_the_parent_waits():
    time.sleep(0.6)
    record("slept")
"""


@pytest.mark.parametrize("how", ["term", "int", "ctrl-c", "term to the child"])
def test_reloaders_child_stops_in_its_own_time(how: str, tmp_path: Path) -> None:
    """Told to go, the reloader waits: the request in flight is answered, then the engine stops."""
    local_app(tmp_path, SLOW_STOP)
    with run_server([*FLASK, "--debug", *RUN], cwd=tmp_path, ready=answers()) as server:
        held = hold_request(server)
        match how:
            case "ctrl-c":
                server.signal_group(signal.SIGINT)
            case "term to the child":
                os.kill(server.children()[0], signal.SIGTERM)
            case _:
                server.signal(signal.SIGTERM if how == "term" else signal.SIGINT)
        server.wait_published("drain")
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, "start", "drain", "slept", "stop", "exit", count=1)
    assert_answered_before_stop(server)


def test_second_signal_to_the_reloader_kills_its_child(tmp_path: Path) -> None:
    """A child that does not leave is killed when its parent is told a second time."""
    local_app(tmp_path)
    with run_server([*FLASK, "--debug", *RUN], cwd=tmp_path, ready=answers()) as server:
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert not held.result().ok


@pytest.mark.timeout(60)  # four processes in a row, each of which imports Flask
def test_broken_save_can_be_repaired(tmp_path: Path) -> None:
    """With the reloader a start that fails is told, and the next save is another try."""
    path = local_app(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = [*impatient(folder), "--debug", *RUN]
    with run_server(command, cwd=tmp_path, env={"APP_FAILS_UNTIL": "repaired"}) as server:
        server.wait_line("requests get 503 until a start succeeds")
        assert "RuntimeError: the database is down" in server.output()
        assert get(server.port).status == 503
        (tmp_path / "repaired").touch()
        save(path)
        server.wait_published("started")
        server.wait(lambda: attempt(server.port).ok, 10, "it answers")
        assert server.output().count("Restarting with") == 2
        save(path, "this is no Python\n")
        server.wait_line("SyntaxError")
        server.wait(lambda: attempt(server.port).status == 500, 10, "the error is shown")
        save(path, f"from {APP} import app\n")
        server.wait_published("started", 2)
        server.wait(lambda: attempt(server.port).ok, 10, "it answers again")


def test_app_run_starts_before_the_first_request(tmp_path: Path) -> None:
    """`app.run()` in a program starts the engine as `flask run` does."""
    path = local_app(tmp_path, "import sys\napp.run(port=int(sys.argv[1]))\n")
    command = [sys.executable, str(path), "{port}"]
    with run_server(command, cwd=tmp_path, ready=publishes("started")) as server:
        assert not who_published(server, "request")
        assert get(server.port).ok
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


@pytest.mark.parametrize("words", [["routes"], ["shell"], ["engine", "check"], ["--help"]])
def test_other_commands_start_nothing(words: list[str], tmp_path: Path) -> None:
    """Commands that import the application leave its engine alone."""
    with start_process([*FLASK, "--app", APP, *words], cwd=tmp_path) as process:
        assert process.wait_exit() == 0
    assert not process.published()


def test_bad_setting_is_a_sentence_at_the_command_line(tmp_path: Path) -> None:
    """`flask run` with a bad setting ends with the sentence, not with a traceback."""
    env = {"FLASK_ENGINE_DRAIN_TIMEOUT": "soon"}
    with start_process([*FLASK, "--app", APP, "run"], cwd=tmp_path, env=env) as process:
        assert process.wait_exit() == 1
    assert process.output().strip() == (
        "Error: app.config['ENGINE_DRAIN_TIMEOUT'] wants seconds, 0 or more; got 'soon'"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "def create_app(): raise KeyError('DATABASE')",
            r"KeyError: 'DATABASE' \(.*app.py, line 1, in c",
        ),
        ("import nowhere", "No module named 'nowhere'"),
        ("from flask import Flask; app = Flask('shop')", "'shop' has no engine; give it one"),
    ],
)
def test_check_of_what_cannot_be_loaded(text: str, sentence: str, tmp_path: Path) -> None:
    """`flask engine check` says why the application cannot be had, with status 1."""
    (tmp_path / "app.py").write_text(text)
    with start_process([*FLASK, "engine", "check"], cwd=tmp_path) as process:
        assert process.wait_exit() == 1
    assert re.match("Error: ", process.output())
    assert re.search(sentence, process.output())


# -- flask engine --------------------------------------------------------------------------------


def invoke(app: Any, *words: str) -> tuple[int, str]:
    """Run `flask engine` in this process; return its status and what it said."""
    result = app.test_cli_runner().invoke(args=["engine", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result
    return result.exit_code, result.output


SERVING = """
    from functools import partial
    from journal import record
    from engine_bridge import engine
    from engine_bridge.plugins import PIDFile, SignalHandler
    import sys
    PIDFile(engine, sys.argv[1]).subscribe()
    if "deaf" not in sys.argv:
        SignalHandler(engine).subscribe()
    engine.subscribe("graceful", partial(record, "graceful"))
    engine.subscribe("start", partial(record, "started"), priority=90)
    engine.start()
    engine.block()
"""


@contextmanager
def serving(path: Path, *words: str) -> Iterator[Process]:
    """Have a process run that holds the PID file *path*."""
    with start_script(SERVING, path, *words) as process:
        process.wait_published("started")
        yield process


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> Any:
    """Return an application that names a PID file."""
    app = make_app(ENGINE_PIDFILE=str(tmp_path / "app.pid"))
    EngineBridge(app, engine)
    return app


def test_status_shows_main_process_and_listeners(app: Any, engine: Engine, tmp_path: Path) -> None:
    """`flask engine status` tells by its exit status whether the main process runs."""
    path = tmp_path / "app.pid"
    engine.subscribe("stop", Part("pool", []).stop)
    engine.subscribe("start", make_app, 5)
    assert invoke(app, "status") == (3, f"state     not running\nPID file  {path}\n{LISTENERS}")
    with serving(path) as process:
        lines = ("state         running", f"main process  {process.pid}", f"PID file      {path}\n")
        assert invoke(app, "status") == (0, "\n".join(lines) + LISTENERS)
        process.process.kill()
        process.wait_exit()
        assert path.exists()
        assert invoke(app, "status")[0] == 3


LISTENERS = """
listeners, in order, with their priorities
  start    5  tests.frameworks.test_flask.make_app
  stop    50  Part.stop
"""


def test_status_finds_the_pidfile_by_its_plugin(engine: Engine, tmp_path: Path) -> None:
    """Without `ENGINE_PIDFILE` the plugin's file counts; without that nothing is known."""
    app = make_app()
    EngineBridge(app, engine)
    status, output = invoke(app, "status")
    assert status == 4
    assert "state  unknown: no PID file is known, set app.config['ENGINE_PIDFILE']" in output
    status, output = invoke(app, "graceful")
    assert (status, output) == (
        4,
        "Error: no PID file is known: set app.config['ENGINE_PIDFILE']\n",
    )
    PIDFile(engine, tmp_path / "other.pid").subscribe()
    with serving(tmp_path / "other.pid") as process:
        status, output = invoke(app, "status")
        assert status == 0
        assert f"main process  {process.pid}\n" in output


def test_graceful_tells_the_main_process(app: Any, tmp_path: Path) -> None:
    """`flask engine graceful` publishes `graceful` in the process that holds the PID file."""
    path = tmp_path / "app.pid"
    assert invoke(app, "graceful") == (3, f"Error: not running: nobody holds {path}\n")
    with serving(path) as process:
        assert invoke(app, "graceful") == (0, f"Told process {process.pid}.\n")
        process.wait_published("graceful")


def test_graceful_kills_nobody(app: Any, tmp_path: Path) -> None:
    """A process that does not catch SIGUSR1 is not sent it."""
    with serving(tmp_path / "app.pid", "deaf") as process:
        status, output = invoke(app, "graceful")
        assert status == 1
        assert f"Error: process {process.pid} does not listen to SIGUSR1" in output
        assert "SignalHandler(engine).subscribe()" in output
        assert process.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_graceful_to_another_users_process_is_refused(tmp_path: Path) -> None:
    """Who may not send the signal is told so."""
    script = """
        import os, signal, sys
        from engine_bridge.frameworks import mainprocess
        os.setuid(65534)
        mainprocess.tell(int(sys.argv[1]), signal.SIGUSR1)
    """
    with serving(tmp_path / "app.pid") as process:
        finished = run_script(script, str(process.pid))
        assert f"EngineError: user 65534 may not send process {process.pid} a signal" in (
            finished.stderr
        )


@pytest.mark.parametrize("words", [["-w", "2", *CONFIG], ["-w", "2", "--preload", *CONFIG]])
def test_graceful_reaches_all_workers_of_gunicorn(
    words: list[str], app: Any, tmp_path: Path
) -> None:
    """Under gunicorn the main process is told, and hands it on to each worker."""
    env = {"APP_PIDFILE": str(tmp_path / "app.pid")}
    command = [*GUNICORN, *words, f"{APP}:app"]
    with run_server(command, cwd=tmp_path, env=env, ready=publishes("started", 2)) as server:
        assert invoke(app, "graceful") == (0, f"Told process {server.pid}.\n")
        server.wait_published("graceful", 2)
        assert sorted(who_published(server, "graceful")) == server.workers()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.mkdir(), "{path} is no file, so no PID file"),
        (os.mkfifo, "{path} is no file, so no PID file"),
        (lambda path: path.symlink_to("/etc/passwd"), "cannot read the PID file {path}: Too many"),
    ],
)
def test_what_is_no_pidfile_is_refused(
    make: Callable[[Path], None], sentence: str, app: Any, tmp_path: Path
) -> None:
    """A path that leads to something else is told, and nothing waits for it."""
    path = tmp_path / "app.pid"
    make(path)
    status, output = invoke(app, "status")
    assert status == 1
    assert f"Error: {sentence.format(path=path)}" in output


@pytest.mark.parametrize("text", ["nobody", "", "0", "99999999999"])
def test_held_file_that_names_nobody_is_refused(text: str, app: Any, tmp_path: Path) -> None:
    """A file that somebody holds without having written a process number is told."""
    path = tmp_path / "app.pid"
    path.write_text(f"{text}\n")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        status, output = invoke(app, "status")  # which sends no signal, should this ever fail
    assert (status, output) == (1, f"Error: {path} is held, but names no process: {text!r}\n")


@pytest.mark.parametrize("pid", [-1, 0])
def test_signal_for_groups_is_refused(pid: int) -> None:
    """A number that kill(2) takes for a group, or for everybody, is refused."""
    with pytest.raises(EngineError, match=f"^{pid} is not the number of a process"):
        mainprocess.tell(pid, signal.SIGURG)  # which harms nobody, should this ever fail


def test_check_says_what_would_run(app: Any, engine: Engine, tmp_path: Path) -> None:
    """`flask engine check` shows application, parameters and listeners, and finds nothing wrong."""
    engine.subscribe("start", make_app)
    engine.subscribe("stop", os.times)  # made in C
    status, output = invoke(app, "check")
    assert status == 0
    assert output.startswith("application    shop\nslow_after     5 s\n")
    assert f"\nPID file       {tmp_path / 'app.pid'}\n" in output
    assert "\n  start   50  tests.frameworks.test_flask.make_app\n" in output
    assert output.endswith("\nNothing is wrong.\n")


def test_check_needs_no_pidfile() -> None:
    """Without a PID file there is nothing to complain of, whoever asks."""
    finished = run_script("""
        import os
        from flask import Flask
        from engine_bridge.frameworks.flask import EngineBridge
        app = Flask("shop")
        EngineBridge(app)
        app.test_cli_runner().invoke(args=["engine", "check"])  # imports what another may not
        if os.geteuid() == 0:
            os.setuid(65534)
        result = app.test_cli_runner().invoke(args=["engine", "check"])
        print(result.output)
        raise SystemExit(result.exit_code)
    """)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "PID file       none\n" in finished.stdout


def test_check_finds_what_is_wrong(engine: Engine, tmp_path: Path) -> None:
    """Listeners that cannot be called and a PID file that cannot be made are told."""
    app = make_app(ENGINE_PIDFILE=tmp_path / "missing" / "app.pid")
    EngineBridge(app, engine)
    engine.subscribe("start", hold_request)
    status, output = invoke(app, "check")
    assert status == 1
    assert (
        "Error: servers.launch.hold_request cannot be called on 'start', "
        "where listeners get no arguments: missing a required argument: 'server'\n"
    ) in output
    assert f"Error: no PID file can be made: {tmp_path / 'missing'} is no directory\n" in output
    assert engine.state is State.STOPPED
