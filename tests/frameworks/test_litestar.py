"""Litestar, with the engine among its own lifespans, and the middleware around each route."""

import os
import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    GUNICORN_ASGI,
    assert_one_life_at_a_time,
    ctrl_c,
    drain_program,
    fail,
    live_once,
    reload,
    save_until_noticed,
    wait_ended,
    wait_serving,
)
from processes import assert_once, run_server
from servers.launch import LIFE, UVICORN, hold_request, release

from engine_bridge import Engine, State
from engine_bridge.frameworks.asgi import EngineMiddleware

pytest.importorskip("litestar")
pytest.importorskip("uvicorn")
pytest.importorskip("uvicorn_worker")

from litestar import Litestar, get
from litestar.middleware import DefineMiddleware
from litestar.testing import TestClient

APP = "servers.apps.litestar:app"
LITESTAR = [sys.executable, "-m", "litestar", "--app"]
RUN = ["run", "--port", "{port}"]
RELOADING = [*LITESTAR, "app:app", *RUN, "--reload"]
SLOW = pytest.mark.timeout(60)  # several processes in a row, each of which imports Litestar
LOCAL = "from servers.apps.litestar import app\n"
ABORTED = 1  # click's exit status on Ctrl-C

EVERY_SERVER = pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param([*LITESTAR, APP, *RUN], -signal.SIGTERM, id="litestar-run"),
        pytest.param([*UVICORN, APP], -signal.SIGTERM, id="uvicorn"),
        pytest.param([*GUNICORN_ASGI, APP], 0, id="gunicorn"),
    ],
)


@EVERY_SERVER
def test_lives_once_around_all_requests(command: list[str], status: int, tmp_path: Path) -> None:
    """The engine is around the lifespans that follow it; streams and WebSockets end in time."""
    live_once(command, tmp_path, status=status, talks=True, own=True)


@EVERY_SERVER
def test_failing_start_ends_the_server(command: list[str], status: int, tmp_path: Path) -> None:
    """The exit status is 3, the listener is told, and what was open is closed."""
    fail(command, tmp_path, 3)


@SLOW
def test_reload_is_a_new_life(tmp_path: Path) -> None:
    """On a save `litestar run --reload` ends one engine and begins another, in a new process."""
    server = reload(RELOADING, tmp_path, LOCAL, ctrl_c, ABORTED)
    assert server.pid not in server.published()


@SLOW
def test_ctrl_c_leaves_the_worker_its_time(tmp_path: Path) -> None:
    """The CLI does not wait for it, yet the request in flight is answered and the engine stops."""
    (tmp_path / "app.py").write_text(LOCAL)
    with run_server(RELOADING, cwd=tmp_path) as server:
        wait_serving(server)
        held = hold_request(server)
        ctrl_c(server)
        assert server.wait_exit() == ABORTED
        server.wait_published("drain")
        release(tmp_path)
        assert held.result().ok
        wait_ended(server)
    assert_once(server, *LIFE, count=1)


@SLOW
def test_sigterm_to_the_cli_does_not_reach_uvicorn(tmp_path: Path) -> None:
    """With `--reload` the CLI dies alone; uvicorn serves and reloads on until it is told itself."""
    path = tmp_path / "app.py"
    path.write_text(LOCAL)
    with run_server(RELOADING, cwd=tmp_path) as server:
        wait_serving(server)
        [uvicorn] = server.children()
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
        save_until_noticed(server, path)
        wait_serving(server)
        os.kill(uvicorn, signal.SIGTERM)
        wait_ended(server)
    assert_one_life_at_a_time(server)


def test_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams, WebSockets and background work leaves."""
    command = [*LITESTAR, "app:app", *RUN]
    drain_program("Litestar", command, tmp_path, status=-signal.SIGTERM, talks=True)


def test_test_client_starts_and_stops(engine: Engine, heard: list[str]) -> None:
    """Litestar's `TestClient` takes the engine through its life, and requests are counted."""

    @get("/")
    async def index() -> str:
        return f"{engine.state} {engine.in_flight}"

    app = Litestar(
        [index],
        lifespan=[engine.lifespan],
        middleware=[DefineMiddleware(EngineMiddleware, engine=engine)],
        logging_config=None,  # which is the process's, and has a thread
    )
    with TestClient(app) as client:
        assert client.get("/").text == "STARTED 1"
        assert heard == ["start"]
    assert engine.state is State.EXITING
    assert heard == ["start", "drain", "stop", "exit"]
