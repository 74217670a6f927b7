"""
What lasts hears of the drain: each pattern in each framework, as `docs/guides/drain.md` lists them.

WebSockets of Django come with Channels and are in `test_channels.py`.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import (
    Server,
    answers,
    assert_once,
    get,
    open_stream,
    publishes,
    run_server,
    start_request,
    wait_until,
)
from servers.launch import CONFIG, GRANIAN, GUNICORN, HYPERCORN, LIFE, UVICORN, WAITRESS, release
from snippets import ROOT, Block, blocks, command

connect = pytest.importorskip("websockets.sync.client").connect
State = pytest.importorskip("websockets.protocol").State

RESTARTING = 1012  # the code with which a WebSocket is closed
PACKAGES = {
    *("django", "fastapi", "flask"),
    *("cheroot", "granian", "gunicorn", "hypercorn", "uvicorn", "uvicorn_worker", "waitress"),
}
ASGI = ("asgi", "starlette", "fastapi", "django_asgi")
WITH_WEBSOCKETS = ("asgi", "starlette", "fastapi", "flask")

THREADED = [*GUNICORN, "--threads", "8", *CONFIG]
WAITRESS_8 = [*WAITRESS, "--threads", "8"]
CHEROOT = [sys.executable, "-m", "cheroot", "--bind", "127.0.0.1:{port}"]
FLASK_RUN = [sys.executable, "-m", "flask", "--app"]  # what follows comes after the application
GUNICORN_ASGI = [*GUNICORN, *CONFIG, "-k", "asgi"]
GUNICORN_UVICORN = [*GUNICORN, *CONFIG, "-k", "uvicorn_worker.UvicornWorker"]
HYPERCORN_0 = [*HYPERCORN, "-w", "0", "--graceful-timeout", "30"]
GRANIAN_ASGI = [*GRANIAN, "--interface", "asgi"]

SERVERS = {
    "waitress": WAITRESS_8,
    "gunicorn": THREADED,
    "cheroot": CHEROOT,
    "flask run": FLASK_RUN,
    "uvicorn": UVICORN,
    "uvicorn --workers 2": [*UVICORN, "--workers", "2"],
    "gunicorn sync": [*GUNICORN, *CONFIG],
    "gunicorn asgi": GUNICORN_ASGI,
    "gunicorn uvicorn_worker": GUNICORN_UVICORN,
    "hypercorn": HYPERCORN,
    "hypercorn -w 0": HYPERCORN_0,
    "granian": GRANIAN_ASGI,
}
SERVED = [
    *(("wsgi", server) for server in ("waitress", "gunicorn", "cheroot")),
    *(("flask", server) for server in ("waitress", "gunicorn", "flask run")),
    *(("django_wsgi", server) for server in ("waitress", "gunicorn")),
    *((each, server) for each in ASGI for server in ("uvicorn", "gunicorn asgi")),
    *((each, server) for each in ("asgi", "starlette") for server in ("hypercorn -w 0", "granian")),
]
DELAYS = [
    *((framework, "uvicorn") for framework in ASGI),
    ("starlette", "uvicorn --workers 2"),
    ("starlette", "gunicorn uvicorn_worker"),
]
DELAYS_NOT = [
    *(("wsgi", server) for server in ("waitress", "gunicorn sync", "gunicorn", "cheroot")),
    ("flask", "flask run"),
    *(("asgi", server) for server in ("gunicorn asgi", "hypercorn", "hypercorn -w 0", "granian")),
]

PROGRAMS = list(blocks(ROOT / "docs" / "guides" / "drain.md", "python"))


def start(framework: str, server: str) -> list[str]:
    """Return the command that serves the application of *framework* with *server*."""
    for package in PACKAGES.intersection(framework.split("_") + server.split()):
        pytest.importorskip(package)
    if framework == "flask":
        pytest.importorskip("flask_sock")
    options = ["run", "--port", "{port}"] if server == "flask run" else []
    return [*SERVERS[server], f"frameworks.patterns.{framework}:app", *options]


@pytest.mark.parametrize(("framework", "server"), SERVED)
def test_what_lasts_hears_of_the_drain(framework: str, server: str, tmp_path: Path) -> None:
    """
    On SIGTERM streams, long polls and WebSockets end, downloads and background work are finished.

    The download has no end until all else has one; it leaves the worker a last job.
    """
    with (
        run_server(start(framework, server), cwd=tmp_path, ready=answers()) as process,
        open_stream(process.port, "/events") as events,
        open_stream(process.port, "/download") as download,
        talk(process, framework, server) as websocket,
    ):
        events.wait_first()
        download.wait_first()
        poll = start_request(process.port, "/poll")
        process.wait_published("polling")
        process.signal(signal.SIGTERM)
        assert events.wait_end().ok
        assert poll.result().status == 204
        wait_closed(websocket, server)
        process.wait_published("drain")  # they hear of it a moment before the channel's listeners
        assert not download.done
        release(tmp_path)
        assert download.wait_end().body == b"begun\nended\n"
        process.wait_exit()
        assert "Traceback" not in process.output()
    assert_once(process, *LIFE, count=1)
    assert_once(process, "start", "drain", "downloaded", "worked", "exit", count=1)


@contextmanager
def talk(process: Server, framework: str, server: str) -> Iterator[Any]:
    """Open a WebSocket and say something; None where there are none."""
    if framework not in WITH_WEBSOCKETS or (framework, server) == ("flask", "waitress"):
        yield None
        return
    with open_websocket(process) as websocket:
        yield websocket


@contextmanager
def open_websocket(process: Server) -> Iterator[Any]:
    """Open a WebSocket and have what is said there echoed."""
    with connect(f"ws://127.0.0.1:{process.port}/talk", close_timeout=0.1) as websocket:
        websocket.send("hello")
        assert websocket.recv(5) == "hello"
        yield websocket


def wait_closed(websocket: Any, server: str) -> None:
    """Wait until the other side closes a WebSocket, with the code that tells to come again."""
    if websocket is None:
        return
    protocol = websocket.protocol
    if server == "granian":  # hangs up as it stops, perhaps before the application has closed
        wait_until(lambda: protocol.close_rcvd or protocol.state is State.CLOSED)
    else:
        wait_until(lambda: protocol.close_rcvd, what="the WebSocket is closed")
        assert protocol.close_rcvd.code == RESTARTING
    websocket.close()  # werkzeug may wait for that before it ends the request


def test_hypercorns_workers_hear_in_time(tmp_path: Path) -> None:
    """With workers hypercorn cuts streams off after a limit of its own; they end before it."""
    words = [*start("asgi", "hypercorn"), "--graceful-timeout", "1"]
    with (
        run_server(words, cwd=tmp_path, ready=answers()) as process,
        open_stream(process.port, "/events") as events,
    ):
        events.wait_first()
        process.signal(signal.SIGTERM)
        assert events.wait_end().ok
        assert process.wait_exit() == 0
    assert_once(process, *LIFE, count=1)


# -- the programs of the guide -------------------------------------------------------------------


@pytest.mark.parametrize("block", PROGRAMS, ids=[block.name for block in PROGRAMS])
def test_program_of_the_guide_ends(block: Block, tmp_path: Path) -> None:
    """Streams, WebSockets and downloads of the guide's programs end, and their servers leave."""
    for need in block.notes["needs"].split(", "):
        pytest.importorskip(need)
    (tmp_path / "app.py").write_text(block.text)
    with run_server(command(block.notes["run"]), cwd=tmp_path) as process, ExitStack() as opened:
        streams = [
            opened.enter_context(open_stream(process.port, path))
            for path in ("/events", "/export")
            if f'"{path}"' in block.text
        ]
        for stream in streams:
            stream.wait_first()
        websocket = None
        if "def talk" in block.text:
            websocket = opened.enter_context(open_websocket(process))
        assert get(process.port).ok
        process.signal(signal.SIGTERM)
        for stream in streams:
            assert stream.wait_end().ok
        wait_closed(websocket, "")
        process.wait_exit()
        assert "Traceback" not in process.output()


# -- for load balancers --------------------------------------------------------------------------


@pytest.mark.parametrize(("framework", "server"), DELAYS)
def test_unready_while_requests_are_answered(framework: str, server: str, tmp_path: Path) -> None:
    """During `drain_delay` readiness is 503 and all else is answered; another SIGTERM ends it."""
    workers = 2 if "--workers 2" in server else 1
    env = {"APP_DRAIN_DELAY": "60"}
    ready = publishes("started", workers)
    with run_server(start(framework, server), cwd=tmp_path, env=env, ready=ready) as process:
        process.wait(lambda: get(process.port, "/readyz").ok, 5, "it is ready")
        process.signal(signal.SIGTERM)
        drained = process.wait_published("drain", workers)
        answer = get(process.port, "/readyz")
        assert (answer.status, answer.headers["cache-control"]) == (503, "no-store")
        assert get(process.port, "/livez").status == 200
        assert get(process.port).ok
        for worker in drained:
            os.kill(worker.pid, signal.SIGTERM)
        process.wait_exit()
        assert "Traceback" not in process.output()
    assert_once(process, *LIFE, count=workers)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
def test_drain_delay_passes(signum: int, status: int, tmp_path: Path) -> None:
    """When `drain_delay` is over the server leaves by itself; on Ctrl-C as well."""
    env = {"APP_DRAIN_DELAY": "0.2"}
    with run_server(start("asgi", "uvicorn"), cwd=tmp_path, env=env, ready=answers()) as process:
        process.signal(signum)
        assert process.wait_exit() == status
    assert_once(process, *LIFE, count=1)


@pytest.mark.parametrize(("framework", "server"), DELAYS_NOT)
def test_drain_delay_that_has_no_effect_is_told(
    framework: str, server: str, tmp_path: Path
) -> None:
    """Where the server cannot be held back the start warns, and SIGTERM is obeyed at once."""
    env = {"APP_DRAIN_DELAY": "60"}
    words = start(framework, server)
    with run_server(words, cwd=tmp_path, env=env, ready=answers()) as process:
        process.wait_line("drain_delay=60 has no effect under this server")
        process.signal(signal.SIGTERM)
        process.wait_exit()
    assert_once(process, *LIFE, count=1)
