"""Commands of the servers, and the steps that their tests share."""

import signal
import sys
from pathlib import Path

from processes import (
    InFlight,
    Server,
    assert_once,
    attempt,
    get,
    open_stream,
    publishes,
    run_server,
    start_request,
)

GUNICORN = [
    *(sys.executable, "-m", "gunicorn"),
    "--no-control-socket",  # all would share one path
    *("--bind", "127.0.0.1:{port}"),
]
CONFIG = ["-c", "python:engine_bridge.servers.gunicorn"]
UVICORN = [sys.executable, "-m", "uvicorn", "--port", "{port}"]
WAITRESS = [sys.executable, "-m", "waitress", "--listen", "127.0.0.1:{port}"]
HYPERCORN = [sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:{port}"]
DAPHNE = [sys.executable, "-m", "daphne", "-p", "{port}"]
GRANIAN = [sys.executable, "-m", "granian", "--host", "127.0.0.1", "--port", "{port}"]

WSGI = "servers.apps.wsgi:app"
ASGI = "servers.apps.asgi:app"
LIFE = ("start", "drain", "stop", "exit")


def who_published(server: Server, channel: str) -> list[int]:
    """Return the processes that recorded *channel*, in order."""
    return [entry.pid for entry in server.journal() if entry.channel == channel]


def wait_started(server: Server, count: int, limit: float = 10.0) -> list[int]:
    """Ask until *count* processes have started their engine; return them."""

    def started() -> list[int]:
        found = who_published(server, "started")
        if len(found) < count:
            attempt(server.port)
        return found if len(found) >= count else []

    server.wait(started, limit, f"{count} processes started")
    return who_published(server, "start")


def hold_request(server: Server, count: int = 1) -> InFlight:
    """Send a request and wait until the application works on it; `release` lets it finish."""
    held = start_request(server.port, "/held")
    server.wait_published("held", count)
    return held


def release(folder: Path) -> None:
    """Let the held requests finish; *folder* is the server's working directory."""
    (folder / "release").touch()


def stream_until_drain(command: list[str], folder: Path, workers: int) -> int:
    """Check that streams end on SIGTERM and a request in flight is answered; return the status."""
    with (
        run_server(command, cwd=folder, ready=publishes("started", workers)) as server,
        open_stream(server.port, "/events") as stream,
        open_stream(server.port, "/silence") as silent,
    ):
        stream.wait_first()
        silent.wait_first()
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        assert stream.wait_end().ok
        assert silent.wait_end().ok
        assert not held.done
        release(folder)
        assert held.result().ok
        status = server.wait_exit()
    assert_once(server, *LIFE, count=workers)
    assert_answered_before_stop(server)
    return status


def fail_until_repaired(command: list[str], folder: Path) -> int:
    """Check that requests get 503 until a lazy start succeeds; return the status on SIGTERM."""
    with run_server(command, cwd=folder, env={"APP_FAILS_UNTIL": "repaired"}) as server:
        answer = get(server.port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "RuntimeError: the database is down" in server.output()
        (folder / "repaired").touch()
        server.wait(lambda: get(server.port).ok, 5, "the start is tried again")
        server.signal(signal.SIGTERM)
        status = server.wait_exit()
    (seen,) = server.published().values()
    rolled_back = ["failed", "stop"]  # once: the next try had to wait
    assert seen == [*rolled_back, "start", "started", "request", "drain", "stop", "exit"]
    return status


def assert_answered_before_stop(server: Server) -> None:
    """Check that held requests were released, and that their processes stopped after it."""
    published = server.published()
    held = who_published(server, "held")
    assert held, server.report("no request was held")
    for pid in held:
        order = [c for c in published[pid] if c in {"released", "stop"}]
        assert order == ["released", "stop"], server.report(f"in {pid}: {order}")
