"""Quart, wrapped where its own CLI and test client look: `app.asgi_app`."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    STARTED,
    STREAMS,
    Tell,
    ctrl_c,
    drain_program,
    fail,
    live_once,
    reload,
    term,
)
from processes import assert_once, open_stream, run_server
from servers.launch import HYPERCORN, LIFE, UVICORN, hold_request, release

from engine_bridge import Engine
from engine_bridge.frameworks.asgi import EngineMiddleware

quart = pytest.importorskip("quart")
pytest.importorskip("hypercorn")
pytest.importorskip("uvicorn")

APP = "servers.apps.quart:app"
QUART = [sys.executable, "-m", "quart", "--app"]
RUN = ["run", "--port", "{port}"]
WITHOUT_WORKERS = [*HYPERCORN, "-w", "0"]

EVERY_SERVER = pytest.mark.parametrize(
    ("command", "on_term", "on_failure"),
    [
        pytest.param([*QUART, APP, *RUN], 0, 1, id="quart-run"),
        pytest.param([*UVICORN, APP], -signal.SIGTERM, 3, id="uvicorn"),
        pytest.param([*WITHOUT_WORKERS, APP], 0, 1, id="hypercorn-without-workers"),
    ],
)


@EVERY_SERVER
def test_lives_once_around_all_requests(
    command: list[str], on_term: int, on_failure: int, tmp_path: Path
) -> None:
    """The engine is around Quart's own `while_serving`; streams and WebSockets end in time."""
    live_once(command, tmp_path, status=on_term, talks=True, own=True)


@EVERY_SERVER
def test_failing_start_ends_the_server(
    command: list[str], on_term: int, on_failure: int, tmp_path: Path
) -> None:
    """The exit status is not 0, the listener is told, and what was open is closed."""
    fail(command, tmp_path, on_failure)


def test_worker_of_hypercorn_lives_once(tmp_path: Path) -> None:
    """Hypercorn does not tell its worker, so the drain comes when the request is answered."""
    command = [*HYPERCORN, "--graceful-timeout", "10", APP]
    with run_server(command, cwd=tmp_path, ready=STARTED) as server:
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()
    (seen,) = server.published().values()
    begin = ["opened", "start", "started", "serving", "held", "released"]
    assert seen == [*begin, "drain", "served", "stop", "closed", "exit"]


def test_worker_of_hypercorn_cuts_streams_off(tmp_path: Path) -> None:
    """A stream that does not end by itself is cancelled after hypercorn's graceful timeout."""
    command = [*HYPERCORN, "--graceful-timeout", "1", APP]
    with (
        run_server(command, cwd=tmp_path, ready=STARTED) as server,
        open_stream(server.port, STREAMS[0]) as stream,
    ):
        stream.wait_first()
        server.signal(signal.SIGTERM)
        assert not stream.wait_end().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


def test_worker_of_hypercorn_fails_with_status_0(tmp_path: Path) -> None:
    """A failing start ends hypercorn and is told, but hypercorn forgets the worker's status."""
    fail([*HYPERCORN, APP], tmp_path, 0)


@pytest.mark.parametrize("tell", [term, ctrl_c])
def test_reload_is_a_new_life(tell: Tell, tmp_path: Path) -> None:
    """On a save `quart run` stops the engine, then runs itself again in the same process."""
    command = [*QUART, "app", "--debug", *RUN]
    server = reload(command, tmp_path, "from servers.apps.quart import app\n", tell)
    (seen,) = server.published().values()
    assert seen.count("serving") > seen.count("served") == 1, "Quart cancels its own lifespan"


def test_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams, WebSockets and background work leaves."""
    drain_program("Quart", [*QUART, "app", *RUN], tmp_path, talks=True)


def test_test_client_starts_and_stops(engine: Engine, heard: list[str]) -> None:
    """`test_app()` takes the engine through its life."""
    app = quart.Quart("shop")
    app.asgi_app = EngineMiddleware(app.asgi_app, engine)
    app.add_url_rule("/", "index", lambda: f"{engine.state} {engine.in_flight}")

    async def ask() -> None:
        async with app.test_app() as tested:
            answer = await tested.test_client().get("/")
            assert await answer.get_data(as_text=True) == "STARTED 1"
            assert heard == ["start"]

    asyncio.run(ask())
    assert heard == ["start", "drain", "stop", "exit"]
