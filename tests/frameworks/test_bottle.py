"""Bottle, wrapped where it stays a Bottle: `app.wsgi`."""

import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    ASKED,
    GUNICORN_WSGI,
    ctrl_c,
    drain_program,
    fail,
    fail_until_repaired,
    live_once,
    reload,
    wait_ended,
    wait_serving,
)
from processes import assert_once, get, run_server
from servers.launch import LIFE, hold_request
from werkzeug.test import Client

from engine_bridge import Engine
from engine_bridge.frameworks.wsgi import EngineMiddleware

bottle = pytest.importorskip("bottle")
pytest.importorskip("gunicorn")
pytest.importorskip("waitress")

APP = "servers.apps.bottle:app"
BOTTLE = [sys.executable, "-m", "bottle", "--bind", "127.0.0.1:{port}"]
RUN = """
import sys
from servers.apps.bottle import app

if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), reloader=True, interval=0.1, server=sys.argv[2])
"""
RELOADING = [sys.executable, "app.py", "{port}"]


def test_lives_once_under_gunicorn(tmp_path: Path) -> None:
    """The engine starts before the first request; streams end with the drain."""
    live_once([*GUNICORN_WSGI, APP], tmp_path)


def test_lives_once_under_its_own_server(tmp_path: Path) -> None:
    """`wsgiref` answers one request at a time, so there is no stream; the status stays."""
    live_once([*BOTTLE, APP], tmp_path, ready=ASKED, status=-signal.SIGTERM, streams=())


def test_lives_once_under_its_adapter_of_waitress(tmp_path: Path) -> None:
    """The engine starts with the first request; streams end with the drain."""
    live_once([*BOTTLE, "--server", "waitress", APP], tmp_path, ready=ASKED)


def test_failing_start_ends_gunicorn(tmp_path: Path) -> None:
    """The exit status is 3, the listener is told, and what was open is closed."""
    fail([*GUNICORN_WSGI, APP], tmp_path, 3)


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Under Bottle's own server requests get 503 until a start succeeds."""
    fail_until_repaired([*BOTTLE, APP], tmp_path)


@pytest.mark.parametrize("adapter", ["wsgiref", "waitress"])
def test_reload_is_a_new_life(adapter: str, tmp_path: Path) -> None:
    """On a save the reloader ends one engine and begins another; its parent has none."""
    server = reload([*RELOADING, adapter], tmp_path, RUN, ctrl_c)
    assert server.pid not in server.published()


@pytest.mark.slow
def test_child_stops_when_its_parent_is_gone(tmp_path: Path) -> None:
    """SIGTERM kills the reloader's parent; the child notices five seconds later, and stops."""
    (tmp_path / "app.py").write_text(RUN)
    env = {"TMPDIR": str(tmp_path)}
    with run_server([*RELOADING, "wsgiref"], cwd=tmp_path, env=env) as server:
        wait_serving(server)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
        wait_ended(server)
    assert_once(server, *LIFE, count=1)


def test_wsgiref_swallows_ctrl_c_amid_a_request(tmp_path: Path) -> None:
    """It answers that request with 500 and serves on, with its engine, until it is told again."""
    with run_server([*BOTTLE, APP], cwd=tmp_path) as server:
        held = hold_request(server)
        ctrl_c(server)
        assert held.result().status == 500
        assert get(server.port).ok
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
    assert_once(server, *LIFE, count=1)


def test_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams and background work leaves."""
    drain_program("Bottle", [*GUNICORN_WSGI, "app:app"], tmp_path)


def test_application_stays_a_bottle(engine: Engine, heard: list[str]) -> None:
    """Plugins, mounts and all else that Bottle offers are there, and requests are counted."""
    app, shop = bottle.Bottle(), bottle.Bottle()
    app.wsgi = EngineMiddleware(app.wsgi, engine)
    shop.route("/", callback=lambda: f"{engine.state} {engine.in_flight}")
    app.mount("/shop/", shop)
    assert Client(app).get("/shop/").text == "STARTED 1"
    engine.exit()
    assert heard == ["start", "drain", "stop", "exit"]
    assert Client(app).get("/shop/").status_code == 503
