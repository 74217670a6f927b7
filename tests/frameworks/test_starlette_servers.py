"""Starlette and FastAPI under a development server and a production server."""

import re
import signal
from pathlib import Path

import pytest
from processes import (
    assert_once,
    free_port,
    get,
    open_stream,
    publishes,
    run_server,
    start_process,
    start_request,
)
from servers.launch import (
    GUNICORN,
    LIFE,
    UVICORN,
    assert_answered_before_stop,
    hold_request,
    release,
)

connect = pytest.importorskip("websockets.sync.client").connect

GUNICORN_UVICORN = [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker"]
STARLETTE = "servers.apps.starlette:app"
FASTAPI = "servers.apps.fastapi:app"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "starlette.md"
PROGRAM = re.compile("^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RESTARTING = 1012  # the code with which a WebSocket is closed


def need(command: list[str], app: str) -> None:
    """Skip the test when a package is missing."""
    for name in ("gunicorn", "uvicorn", "uvicorn_worker"):
        if any(name in word for word in command):
            pytest.importorskip(name)
    if app == FASTAPI:
        pytest.importorskip("fastapi")


@pytest.mark.parametrize(
    ("command", "app", "status"),
    [
        pytest.param(UVICORN, STARLETTE, -signal.SIGTERM, id="uvicorn-starlette"),
        pytest.param(
            [*UVICORN, "--ws", "wsproto"], STARLETTE, -signal.SIGTERM, id="wsproto-starlette"
        ),
        pytest.param(UVICORN, FASTAPI, -signal.SIGTERM, id="uvicorn-fastapi"),
        pytest.param(GUNICORN_UVICORN, STARLETTE, 0, id="gunicorn-starlette"),
        pytest.param(GUNICORN_UVICORN, FASTAPI, 0, id="gunicorn-fastapi"),
    ],
)
def test_application_starts_once_drains_and_stops_once(
    command: list[str], app: str, status: int, tmp_path: Path
) -> None:
    """
    On SIGTERM all that would never end ends, what is in flight is answered, then all is closed.

    Streams, a WebSocket and a long poll hear of the drain while a request is still worked on.
    """
    need(command, app)
    with (
        run_server([*command, app], cwd=tmp_path, ready=publishes("started")) as server,
        open_stream(server.port, "/events") as stream,
        open_stream(server.port, "/silence") as silent,
        connect(f"ws://127.0.0.1:{server.port}/talk") as websocket,
    ):
        assert get(server.port, "/state").body == b"a connection"
        if app == FASTAPI:
            assert get(server.port, "/shop/").body == b"a shop, a connection"
            assert get(server.port, "/engine").body == b'"STARTED"'
        stream.wait_first()
        silent.wait_first()
        websocket.send("hello")
        assert websocket.recv(5) == "hello"
        polling = start_request(server.port, "/poll")
        server.wait_published("polling")
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        assert stream.wait_end().ok
        assert silent.wait_end().ok
        assert polling.result().body == b"nothing new"
        with pytest.raises(Exception, match=str(RESTARTING)):
            websocket.recv(5)
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    assert_once(server, *LIFE, count=1)
    assert_answered_before_stop(server)
    (seen,) = server.published().values()
    opened = ["opened", "start", "started"]
    closed = ["released", "stop", "closed", "exit"]
    if app == FASTAPI:
        opened.append("shop opened")
        closed.insert(1, "shop closed")
    assert seen[: len(opened)] == opened
    assert seen[-len(closed) :] == closed


def test_program_of_the_guide_drains(tmp_path: Path) -> None:
    """What the guide writes for streams, WebSockets, long polls and background work leaves."""
    [program] = [block for block in PROGRAM.findall(GUIDE.read_text()) if "def export" in block]
    (tmp_path / "app.py").write_text(program)
    with (
        run_server([*UVICORN, "app:app"], cwd=tmp_path) as server,
        open_stream(server.port, "/events") as stream,
        open_stream(server.port, "/export") as export,
        connect(f"ws://127.0.0.1:{server.port}/talk") as websocket,
    ):
        stream.wait_first()
        export.wait_first()
        websocket.send("hello")
        assert websocket.recv(5) == "hello"
        polling = start_request(server.port, "/poll")
        assert get(server.port).ok
        server.signal(signal.SIGTERM)
        assert stream.wait_end().ok
        assert polling.result().status == 204
        with pytest.raises(Exception, match=str(RESTARTING)):
            websocket.recv(5)
        assert export.wait_end().body.endswith(b"\n9999\n")
        assert server.wait_exit() == -signal.SIGTERM
        assert "Traceback" not in server.output()


def test_failing_start_ends_uvicorns_worker(tmp_path: Path) -> None:
    """Gunicorn leaves with status 3 and tells which listener failed; what was open is closed."""
    output, seen = fail(GUNICORN_UVICORN, STARLETTE, tmp_path, APP_FAILS_UNTIL="never")
    assert "RuntimeError: the database is down" in output
    assert "in fail_if_asked_to" in output
    assert seen == ["opened", "failed", "stop", "closed", "exit"]


def test_failing_mounted_application_ends_the_server(tmp_path: Path) -> None:
    """A mounted application that fails to start is named, and the engine has exited."""
    output, seen = fail(UVICORN, FASTAPI, tmp_path, APP_SHOP_FAILS="yes")
    assert "the application mounted at /shop failed to start up" in output
    assert "RuntimeError: the shop is closed" in output
    assert "in shop_lifespan" in output
    assert seen == ["opened", "start", "started", "drain", "stop", "closed", "exit"]


def fail(command: list[str], app: str, folder: Path, **env: str) -> tuple[str, list[str]]:
    """Run a server whose start fails; return its output, and what its only worker recorded."""
    need(command, app)
    words = [str(word).replace("{port}", str(free_port())) for word in [*command, app]]
    with start_process(words, cwd=folder, env=env) as process:
        assert process.wait_exit(15) == 3
        output = process.output()
    assert "Traceback" in output
    (seen,) = process.published().values()
    return output, seen
