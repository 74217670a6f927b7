"""Quart, wrapped where its own CLI and test client look: `app.asgi_app`."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    Tell,
    ctrl_c,
    drain_program,
    fail,
    live_once,
    reload,
    term,
)
from servers.launch import HYPERCORN, UVICORN

from engine_bridge import Engine
from engine_bridge.frameworks.asgi import EngineMiddleware

quart = pytest.importorskip("quart")
pytest.importorskip("hypercorn")
pytest.importorskip("uvicorn")

APP = "servers.apps.quart:app"
QUART = [sys.executable, "-m", "quart", "--app"]
RUN = ["run", "--port", "{port}"]
# It is hypercorn with three seconds for requests in flight, which is not much on a busy machine.
PATIENT = "import hypercorn.config, quart.cli as cli; {}; cli.main()".format(
    "hypercorn.config.Config.graceful_timeout = 30.0"
)
PATIENT_HYPERCORN = [*HYPERCORN, "--graceful-timeout", "30"]

EVERY_SERVER = pytest.mark.parametrize(
    ("command", "on_term", "on_failure"),
    [
        pytest.param([sys.executable, "-c", PATIENT, "--app", APP, *RUN], 0, 1, id="quart-run"),
        pytest.param([*UVICORN, APP], -signal.SIGTERM, 3, id="uvicorn"),
        pytest.param([*PATIENT_HYPERCORN, "-w", "0", APP], 0, 1, id="hypercorn-without-workers"),
        pytest.param([*PATIENT_HYPERCORN, APP], 0, 0, id="hypercorn"),  # it forgets the worker's 1
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
    """Whatever the exit status, the listener is told, and what was open is closed."""
    fail(command, tmp_path, on_failure)


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
