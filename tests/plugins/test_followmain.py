import os
import signal
from pathlib import Path

import pytest
from processes import assert_once, attempt, run_server, wait_gone
from servers.launch import (
    ASGI,
    CONFIG,
    GRANIAN,
    GUNICORN,
    HYPERCORN,
    LIFE,
    UVICORN,
    WSGI,
    wait_started,
)

from engine_bridge import Engine, EngineError
from engine_bridge.plugins import FollowMain

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open(2) here")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([*GUNICORN, "-w", "2", WSGI], id="gunicorn-sync"),
        pytest.param(
            [*GUNICORN, "-w", "2", "--threads", "2", *CONFIG, WSGI], id="gunicorn-gthread"
        ),
        pytest.param([*GUNICORN, "-w", "2", "--preload", *CONFIG, WSGI], id="gunicorn-preload"),
        pytest.param([*GUNICORN, "-w", "2", "-k", "asgi", ASGI], id="gunicorn-asgi"),
        pytest.param(
            [*GUNICORN, "-w", "2", "-k", "uvicorn_worker.UvicornWorker", ASGI],
            id="gunicorn-uvicorn",
        ),
        pytest.param([*UVICORN, "--workers", "2", ASGI], id="uvicorn"),
        pytest.param([*HYPERCORN, "-w", "2", ASGI], id="hypercorn"),
        pytest.param([*GRANIAN, "--interface", "asgi", "--workers", "2", ASGI], id="granian-asgi"),
        pytest.param([*GRANIAN, "--interface", "wsgi", "--workers", "2", WSGI], id="granian-wsgi"),
    ],
)
def test_workers_leave_when_the_main_process_was_killed(words: list[str], tmp_path: Path) -> None:
    """Each worker stops once and is gone; the port is free again."""
    with run_server(words, cwd=tmp_path, env={"APP_FOLLOWS_MAIN": "1"}) as server:
        workers = wait_started(server, 2)
        if "granian" in words:
            server.wait_line("Started worker-", 2)  # before that a signal may be lost on it
        server.signal(signal.SIGKILL)
        server.wait_exit()
        for pid in workers:
            wait_gone(pid)
        server.wait(lambda: attempt(server.port).outcome == "refused", 10, "the port is free")
        assert (
            server.output().count(f"the main process {server.pid} is gone; this worker leaves") == 2
        )
    assert_once(server, *LIFE, pids=workers)


def test_a_process_of_its_own_follows_nobody() -> None:
    """In a script nothing happens, and nothing is left."""
    engine = Engine()
    plugin = FollowMain(engine)
    plugin.subscribe()
    engine.start()
    engine.exit()
    plugin.unsubscribe()


def test_without_pidfds_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what is missing and what to do."""
    monkeypatch.delattr(os, "pidfd_open")
    with pytest.raises(EngineError, match=r"^FollowMain needs pidfd_open\(2\), .* leave it out"):
        FollowMain(Engine()).subscribe()
