"""Falcon, wrapped as a whole: `falcon.App()` for WSGI, `falcon.asgi.App()` for ASGI."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from frameworks.contract import (
    ASKED,
    GUNICORN_ASGI,
    GUNICORN_WSGI,
    STARTED,
    Tell,
    ctrl_c,
    drain_program,
    fail,
    fail_until_repaired,
    live_once,
    reload,
    term,
)
from processes import Ready
from servers.launch import UVICORN, WAITRESS

from engine_bridge import Engine
from engine_bridge.frameworks import asgi, wsgi

pytest.importorskip("falcon")
pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn_worker")
pytest.importorskip("waitress")

import falcon
import falcon.asgi
import falcon.testing

APP = "servers.apps.falcon:app"
ASGI_APP = "servers.apps.falcon:asgi_app"
SERVE = """
import sys
from wsgiref.simple_server import make_server
from servers.apps.falcon import app

with make_server("127.0.0.1", int(sys.argv[1]), app) as server:
    server.serve_forever()
"""


def wsgiref(folder: Path) -> list[str]:
    """Return the command of a program that serves by `wsgiref.simple_server`."""
    path = folder / "serve.py"
    path.write_text(SERVE)
    return [sys.executable, str(path), "{port}"]


# -- ASGI ----------------------------------------------------------------------------------------

EVERY_ASGI_SERVER = pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param([*UVICORN, ASGI_APP], -signal.SIGTERM, id="uvicorn"),
        pytest.param([*GUNICORN_ASGI, ASGI_APP], 0, id="gunicorn"),
    ],
)


@EVERY_ASGI_SERVER
def test_asgi_lives_once_around_all_requests(
    command: list[str], status: int, tmp_path: Path
) -> None:
    """The engine is around `process_startup` and `process_shutdown`; streams end in time."""
    live_once(command, tmp_path, status=status, talks=True, own=True)


@EVERY_ASGI_SERVER
def test_asgi_failing_start_ends_the_server(
    command: list[str], status: int, tmp_path: Path
) -> None:
    """The exit status is 3, the listener is told, and what was open is closed."""
    fail(command, tmp_path, 3)


@pytest.mark.parametrize("tell", [term, ctrl_c])
def test_asgi_reload_is_a_new_life(tell: Tell, tmp_path: Path) -> None:
    """On a save `uvicorn --reload` ends one engine and begins another, in a new process."""
    text = "from servers.apps.falcon import asgi_app as app\n"
    server = reload([*UVICORN, "--reload", "app:app"], tmp_path, text, tell)
    assert server.pid not in server.published()


def test_asgi_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams, WebSockets and background work leaves."""
    command = [*UVICORN, "app:app"]
    drain_program("Falcon, ASGI", command, tmp_path, status=-signal.SIGTERM, talks=True)


def test_asgi_test_client_starts_and_stops(engine: Engine, heard: list[str]) -> None:
    """Falcon's conductor takes the engine through its life."""

    class Index:
        async def on_get(self, request: object, response: falcon.asgi.Response) -> None:
            response.text = f"{engine.state} {engine.in_flight}"

    app = falcon.asgi.App()
    app.add_route("/", Index())

    async def ask() -> None:
        async with falcon.testing.TestClient(asgi.EngineMiddleware(app, engine)) as conductor:
            answer = await conductor.simulate_get("/")
            assert answer.text == "STARTED 1"
            assert heard == ["start"]

    asyncio.run(ask())
    assert heard == ["start", "drain", "stop", "exit"]


# -- WSGI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "ready"),
    [
        pytest.param([*GUNICORN_WSGI, APP], STARTED, id="gunicorn"),
        pytest.param([*WAITRESS, "--threads", "8", APP], ASKED, id="waitress"),
    ],
)
def test_wsgi_lives_once_around_all_requests(
    command: list[str], ready: Ready, tmp_path: Path
) -> None:
    """Under gunicorn the engine starts early, elsewhere with the first request."""
    live_once(command, tmp_path, ready=ready)


def test_wsgi_lives_once_under_wsgiref(tmp_path: Path) -> None:
    """`wsgiref` answers one request at a time, so there is no stream; the status stays."""
    command = wsgiref(tmp_path)
    live_once(command, tmp_path, ready=ASKED, status=-signal.SIGTERM, streams=())


def test_wsgi_failing_start_ends_gunicorn(tmp_path: Path) -> None:
    """The exit status is 3, the listener is told, and what was open is closed."""
    fail([*GUNICORN_WSGI, APP], tmp_path, 3)


def test_wsgi_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Where nothing starts the engine early, requests get 503 until a start succeeds."""
    fail_until_repaired(wsgiref(tmp_path), tmp_path)


def test_wsgi_reload_is_a_new_life(tmp_path: Path) -> None:
    """On a save `gunicorn --reload` ends one engine and begins another, in a new worker."""
    text = "from servers.apps.falcon import app\n"
    server = reload([*GUNICORN_WSGI, "--reload", "app:app"], tmp_path, text)
    assert server.pid not in server.published()


def test_wsgi_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams and background work leaves."""
    drain_program("Falcon, WSGI", [*GUNICORN_WSGI, "app:app"], tmp_path)


def test_wsgi_test_client_starts(engine: Engine, heard: list[str]) -> None:
    """Falcon's test client takes the wrapped application for what it is."""

    class Index:
        def on_get(self, request: object, response: falcon.Response) -> None:
            response.text = f"{engine.state} {engine.in_flight}"

    app = falcon.App()
    app.add_route("/", Index())
    client = falcon.testing.TestClient(wsgi.EngineMiddleware(app, engine))
    assert client.simulate_get("/").text == "STARTED 1"
    engine.exit()
    assert heard == ["start", "drain", "stop", "exit"]
    assert client.simulate_get("/").status_code == 503
