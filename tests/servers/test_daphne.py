"""Daphne, which has no lifespan and cuts off what it has in flight, does so once all is done."""

import signal
from pathlib import Path

import pytest
from processes import answers, assert_once, get, open_stream, run_server
from servers.launch import (
    ASGI,
    DAPHNE,
    LIFE,
    assert_answered_before_stop,
    fail_until_repaired,
    hold_request,
    release,
)

pytest.importorskip("daphne")

TASKS = """
import asyncio
from journal import record
from engine_bridge import engine
from servers.apps.asgi import app

@engine.resource
async def tasks():
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.Event().wait())
        yield
        task.cancel()
    record("left", on_its_loop=loop is asyncio.get_running_loop())
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_held_back_until_the_engine_has_exited(signum: int, tmp_path: Path) -> None:
    """Streams end with the drain, what is in flight is answered, resources are left on the loop."""
    (tmp_path / "app.py").write_text(TASKS)
    with (
        run_server([*DAPHNE, "app:app"], cwd=tmp_path, ready=answers()) as server,
        open_stream(server.port, "/events") as stream,
        open_stream(server.port, "/silence") as silent,
    ):
        stream.wait_first()
        silent.wait_first()
        held = hold_request(server)
        server.signal(signum)
        assert stream.wait_end().ok
        assert silent.wait_end().ok
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
        assert "ERROR" not in server.output()
        assert "Killed 0 pending application instances" in server.output()
    assert_once(server, "start", "drain", "stop", "left", "exit", count=1)
    assert_answered_before_stop(server)
    assert [e.facts["on_its_loop"] for e in server.journal() if e.channel == "left"] == [True]


def test_second_signal_ends_the_wait(tmp_path: Path) -> None:
    """A request that never ends is cut off by a second SIGTERM; the engine stops all the same."""
    with run_server([*DAPHNE, ASGI], cwd=tmp_path, ready=answers()) as server:
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        server.signal(signal.SIGTERM)
        assert not held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


def test_idle_process_leaves_without_stop(tmp_path: Path) -> None:
    """Where no request has come nothing has started, and nothing is stopped."""
    with run_server([*DAPHNE, ASGI], cwd=tmp_path) as server:
        server.signal(signal.SIGTERM)
        assert server.wait_exit() in {0, -signal.SIGTERM}  # it listens before it sets its handler
    assert not server.published()


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Requests get 503 and are told when to come back, until a start succeeds."""
    assert fail_until_repaired([*DAPHNE, ASGI], tmp_path) == 0


def test_deliberate_exit_answers_503(tmp_path: Path) -> None:
    """The request that asks for the exit is answered; those after it get 503."""
    with run_server([*DAPHNE, ASGI], cwd=tmp_path, ready=answers()) as server:
        assert get(server.port, "/exit").body == b"exited\n"
        assert get(server.port).status == 503
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)
