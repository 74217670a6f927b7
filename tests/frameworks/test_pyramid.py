"""Pyramid, wrapped where `main()` returns the application."""

import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    ASKED,
    GUNICORN_WSGI,
    STREAMS,
    Tell,
    ctrl_c,
    drain_program,
    fail,
    fail_until_repaired,
    held_open,
    live_once,
    reload,
    term,
    wait_serving,
)
from processes import assert_once, run_server, start_process
from servers.launch import LIFE, hold_request

from engine_bridge import Engine
from engine_bridge.frameworks.wsgi import EngineMiddleware

pyramid_config = pytest.importorskip("pyramid.config")
webob = pytest.importorskip("webob")
pytest.importorskip("plaster_pastedeploy")
pytest.importorskip("gunicorn")
pytest.importorskip("waitress")

APP = "servers.apps.pyramid:main({})"
LOCAL = "from servers.apps.pyramid import main\n"
INI = """
[app:main]
paste.app_factory = {module}:main

[server:main]
use = egg:waitress#main
listen = 127.0.0.1:%(http_port)s
threads = 8
"""
# The reloader waits as long for a stop as between two looks at the files; the looks are to be fast.
IMPATIENT = """
from hupper.polling import PollingFileMonitor

class Monitor(PollingFileMonitor):
    def __init__(self, callback, interval=1, **options):
        super().__init__(callback, interval=0.1, **options)
"""
KILLED = 256 - signal.SIGKILL  # pserve leaves with its child's status, which is -9


def pserve(folder: Path, *options: str, module: str = "servers.apps.pyramid") -> list[str]:
    """Return the command of Pyramid's own server, whose ini file names the application."""
    path = folder / "development.ini"
    path.write_text(INI.format(module=module))
    script = [sys.executable, "-m", "pyramid.scripts.pserve"]
    return [*script, *options, str(path), "http_port={port}"]


def test_lives_once_under_gunicorn(tmp_path: Path) -> None:
    """The engine starts before the first request; streams end with the drain."""
    live_once([*GUNICORN_WSGI, APP], tmp_path)


def test_lives_once_under_pserve(tmp_path: Path) -> None:
    """The engine starts with the first request; streams end with the drain."""
    live_once(pserve(tmp_path), tmp_path, ready=ASKED)


@pytest.mark.parametrize("tell", [term, ctrl_c])
def test_streams_do_not_keep_pserve(tell: Tell, tmp_path: Path) -> None:
    """Streams end when waitress shuts down, so it need not wait for its threads in vain."""
    command = pserve(tmp_path)
    with (
        run_server(command, cwd=tmp_path) as server,
        held_open(server, STREAMS, talks=False) as check_end,
    ):
        tell(server)
        check_end()
        assert server.wait_exit() == 0
        assert "still running" not in server.output()
    assert_once(server, *LIFE, count=1)


def test_failing_start_ends_gunicorn(tmp_path: Path) -> None:
    """The exit status is 3, the listener is told, and what was open is closed."""
    fail([*GUNICORN_WSGI, APP], tmp_path, 3)


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Under `pserve` requests get 503 until a start succeeds."""
    fail_until_repaired(pserve(tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(60)  # hupper lets its interval pass before it begins anew
@pytest.mark.parametrize("tell", [term, ctrl_c])
def test_reload_is_a_new_life(tell: Tell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a save `pserve --reload` ends one engine and begins another, in a new process."""
    (tmp_path / "impatient.py").write_text(IMPATIENT)
    monkeypatch.setenv("HUPPER_DEFAULT_MONITOR", "impatient.Monitor")
    command = pserve(tmp_path, "--reload", "--reload-interval", "5", module="app")
    server = reload(command, tmp_path, LOCAL, tell)
    assert server.pid not in server.published()


def test_reloader_kills_a_stop_that_takes_longer_than_its_interval(tmp_path: Path) -> None:
    """After SIGTERM, hupper kills its child when `--reload-interval` has passed."""
    with run_server(pserve(tmp_path, "--reload"), cwd=tmp_path) as server:
        wait_serving(server)
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == KILLED
        assert not held.result().ok
    (seen,) = server.published().values()
    assert "held" in seen
    assert "stop" not in seen


@pytest.mark.parametrize("words", [["proutes"], ["pviews", "/"], ["prequest", "/"]])
def test_commands_know_the_wrapped_application(words: list[str], tmp_path: Path) -> None:
    """Commands that look into the application find it; only one that makes a request starts it."""
    name, *arguments = words
    pserve(tmp_path)
    command = [sys.executable, "-m", f"pyramid.scripts.{name}", "development.ini", *arguments]
    with start_process(command, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
    assert bool(process.published()) == (name == "prequest")


def test_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams and background work leaves."""
    drain_program("Pyramid", [*GUNICORN_WSGI, "app:main({})"], tmp_path)


def test_request_of_webob_starts(engine: Engine, heard: list[str]) -> None:
    """The wrapped application answers where Pyramid's own would, as in WebTest."""
    config = pyramid_config.Configurator()
    config.add_route("index", "/")
    config.add_view(
        lambda _: webob.Response(f"{engine.state} {engine.in_flight}"), route_name="index"
    )
    app = EngineMiddleware(config.make_wsgi_app(), engine)
    assert webob.Request.blank("/").get_response(app).text == "STARTED 1"
    engine.exit()
    assert heard == ["start", "drain", "stop", "exit"]
    assert webob.Request.blank("/").get_response(app).status_code == 503
