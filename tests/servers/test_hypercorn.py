"""Each worker of hypercorn's starts once and stops once, and does not lose what it has begun."""

import signal
from pathlib import Path

import pytest
from processes import accepts, assert_once, get, publishes, run_server
from servers.launch import (
    ASGI,
    HYPERCORN,
    LIFE,
    WSGI,
    assert_answered_before_stop,
    hold_request,
    release,
    stream_until_drain,
    wait_started,
)

pytest.importorskip("hypercorn")


@pytest.mark.parametrize("app", [ASGI, WSGI], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_each_worker_starts_and_stops_once(app: str, workers: int, tmp_path: Path) -> None:
    """On SIGTERM requests in flight are answered, then each worker stops, once."""
    path = tmp_path / "app.pid"
    command = [*HYPERCORN, "-w", str(workers), app if app == ASGI else f"wsgi:{app}"]
    env = {"APP_PIDFILE": str(path)}
    ready = publishes("started", max(workers, 1)) if app == ASGI else accepts
    with run_server(command, cwd=tmp_path, env=env, ready=ready) as server:
        started = wait_started(server, max(workers, 1))
        assert int(path.read_text()) == server.pid
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        if workers == 2:  # the idle one has left, and hypercorn tells the other one by SIGTERM
            server.wait_published("drain", 2)
            server.wait_published("exit")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=max(workers, 1))
    assert_answered_before_stop(server)
    assert not path.exists()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streams_end_with_the_drain(workers: int, tmp_path: Path) -> None:
    """Streams hear of the drain while hypercorn waits for them; a request in flight is answered."""
    command = [*HYPERCORN, "--graceful-timeout", "30", "-w", str(workers), ASGI]
    assert stream_until_drain(command, tmp_path, max(workers, 1)) == 0


def test_ctrl_c_stops_each_worker_once(tmp_path: Path) -> None:
    """Ctrl-C, which reaches all processes, stops each worker once."""
    with run_server([*HYPERCORN, "-w", "2", ASGI], cwd=tmp_path) as server:
        started = wait_started(server, 2)
        assert get(server.port).ok
        server.signal_group(signal.SIGINT)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=2)
