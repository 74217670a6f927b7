"""Each worker of granian's starts once and stops once."""

import signal
from pathlib import Path

import pytest
from processes import accepts, assert_once, publishes, run_server
from servers.launch import (
    ASGI,
    GRANIAN,
    LIFE,
    WSGI,
    assert_answered_before_stop,
    hold_request,
    release,
    wait_started,
)

pytest.importorskip("granian")


@pytest.mark.parametrize(("interface", "app"), [("asgi", ASGI), ("wsgi", WSGI)])
@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_starts_and_stops_once(
    interface: str, app: str, workers: int, tmp_path: Path
) -> None:
    """On SIGTERM requests in flight are answered, then each worker stops, once."""
    path = tmp_path / "app.pid"
    command = [*GRANIAN, "--interface", interface, "--workers", str(workers), app]
    env = {"APP_PIDFILE": str(path)}
    ready = publishes("started", workers) if app == ASGI else accepts
    with run_server(command, cwd=tmp_path, env=env, ready=ready) as server:
        started = wait_started(server, workers)
        server.wait_line("Started worker-", workers)  # before that a signal may be lost on it
        assert int(path.read_text()) == server.pid
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=workers)
    assert_answered_before_stop(server)
    assert not path.exists()


@pytest.mark.parametrize(("interface", "app"), [("asgi", ASGI), ("wsgi", WSGI)])
@pytest.mark.parametrize("trial", range(3))
def test_ctrl_c_ends_it(interface: str, app: str, trial: int, tmp_path: Path) -> None:
    """A worker leaves though it hears of SIGINT and of SIGTERM at a time, and it drains first."""
    command = [*GRANIAN, "--interface", interface, "--workers", "2", app]
    with run_server(command, cwd=tmp_path, ready=accepts) as server:
        started = wait_started(server, 2)
        server.wait_line("Started worker-", 2)  # as above
        held = hold_request(server)
        server.signal_group(signal.SIGINT)
        server.wait_published("drain", 2)
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=2)
    assert_answered_before_stop(server)
