"""Waitress, which knows nothing of SIGTERM, drains and stops all the same."""

import signal
import sys
from pathlib import Path

import pytest
from processes import answers, assert_once, get, run_script, run_server, start_request
from servers.launch import (
    LIFE,
    WAITRESS,
    WSGI,
    assert_answered_before_stop,
    fail_until_repaired,
    hold_request,
    release,
)

pytest.importorskip("waitress")

SERVE = """
import sys
from journal import record
from servers.apps.wsgi import app
from waitress import serve

serve(app, listen=f"127.0.0.1:{sys.argv[1]}")
record("returned")
"""
SERVE_TWICE = """
import threading
from processes import get
from servers.apps.wsgi import app
from waitress import create_server

for _ in range(2):
    server = create_server(app, listen="127.0.0.1:0")
    thread = threading.Thread(target=server.run)
    thread.start()
    assert get(server.effective_port).ok
    server.close()
    thread.join()
    server.task_dispatcher.shutdown()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_stops_once(signum: int, tmp_path: Path) -> None:
    """On SIGTERM and Ctrl-C it drains, the request in flight is answered, then the engine stops."""
    path = tmp_path / "app.pid"
    env = {"APP_PIDFILE": str(path)}
    with run_server([*WAITRESS, WSGI], cwd=tmp_path, env=env) as server:
        assert get(server.port).ok
        assert int(path.read_text()) == server.pid
        held = hold_request(server)
        server.signal(signum)
        server.wait_published("drain")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()
    assert_once(server, *LIFE, count=1)
    assert_answered_before_stop(server)
    assert not path.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_engine_has_exited_when_waitress_returns(signum: int, tmp_path: Path) -> None:
    """Who serves by `waitress.serve` may have more to do before atexit, or be killed before it."""
    path = tmp_path / "serve.py"
    path.write_text(SERVE)
    command = [sys.executable, str(path), "{port}"]
    with run_server(command, cwd=tmp_path, ready=answers()) as server:
        server.signal(signum)
        assert server.wait_exit() == 0
    (seen,) = server.published().values()
    assert seen[-4:] == ["drain", "stop", "exit", "returned"]


def test_server_that_its_owner_closes_ends_no_engine(tmp_path: Path) -> None:
    """A process that was not told to go may serve again: the engine is STARTED until it ends."""
    finished = run_script(SERVE_TWICE, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (seen,) = finished.process.published().values()
    assert seen == ["start", "started", "request", "request", "drain", "stop", "exit"]


def test_sighup_stops_it(tmp_path: Path) -> None:
    """SIGHUP, which kills waitress, stops the engine first; the exit status stays."""
    with run_server([*WAITRESS, WSGI], cwd=tmp_path, ready=answers()) as server:
        held = hold_request(server)
        server.signal(signal.SIGHUP)
        server.wait_published("drain")
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == -signal.SIGHUP
    assert_once(server, *LIFE, count=1)
    assert_answered_before_stop(server)


def test_idle_process_leaves_without_stop(tmp_path: Path) -> None:
    """Where no request has come nothing has started, and nothing is stopped."""
    with run_server([*WAITRESS, WSGI], cwd=tmp_path) as server:
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
    assert not server.published()


def test_many_first_requests_start_once(tmp_path: Path) -> None:
    """64 threads that all bring the first request start the engine once; all are answered."""
    command = [*WAITRESS, "--threads", "64", "servers.apps.wsgi:counted"]
    with run_server(command, cwd=tmp_path, env={"APP_START_WAITS": "go"}) as server:
        requests = [start_request(server.port) for _ in range(64)]
        server.wait_published("arrived", 64)
        (tmp_path / "go").touch()
        assert all(request.result().ok for request in requests)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Requests get 503 and are told when to come back, until a start succeeds."""
    assert fail_until_repaired([*WAITRESS, WSGI], tmp_path) == 0


def test_deliberate_exit_answers_503(tmp_path: Path) -> None:
    """The request that asks for the exit is answered; those after it get 503."""
    with run_server([*WAITRESS, WSGI], cwd=tmp_path, ready=answers()) as server:
        answer = get(server.port, "/exit")
        assert (answer.status, answer.body) == (200, b"exited\n")
        answer = get(server.port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        server.signal(signal.SIGINT)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)
