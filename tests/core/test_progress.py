import threading
from collections.abc import Iterator

import pytest
from actors import Call
from processes import wait_until

from engine_bridge import Engine
from engine_bridge.core import host
from engine_bridge.core.transition import Progress


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that has exited after the test."""
    engine = Engine(start_timeout=100, stop_timeout=50, drain_timeout=20)
    yield engine
    engine.exit()


def test_progress_names_the_listener_that_runs_and_its_limit(engine: Engine) -> None:
    """It tells kind, listener, since when and until when, and nothing between transitions."""
    found: list[Progress | None] = []

    @engine.subscribe("start")
    @engine.subscribe("stop")
    def look() -> None:
        found.append(engine.progress)

    engine.start()
    assert engine.progress is None
    engine.stop()
    start, stop = found
    assert start is not None
    assert stop is not None
    assert (start.kind, stop.kind) == ("start", "stop")
    assert start.listener.endswith("look")
    assert 0 <= start.seconds < 10
    assert 90 < start.left <= 100
    assert 40 < stop.left <= 50


def test_progress_of_a_drain_counts_its_delay(engine: Engine) -> None:
    """While requests are waited for no listener runs; the limit is that of delay and drain."""
    engine.drain_delay = 3
    engine.start()
    engine.requests.open[1] = None
    call = Call(engine.exit)
    engine.draining.wait(10)
    progress = wait_until(lambda: engine.progress)
    assert (progress.kind, progress.listener, progress.seconds) == ("exit", "", 0.0)
    assert 15 < progress.left <= 23
    engine.hurry()
    call.end()


def test_restarting_is_told_from_exiting(engine: Engine) -> None:
    """During the exit for a restart it says so; a SIGTERM meanwhile, or a plain exit, does not."""
    found: list[bool] = []

    class Host(host.Host):
        def prepare_restart(self) -> "type[list[object]]":
            return list

    def look() -> None:
        found.append(engine.restarting)
        engine.notes.times_told += 1
        found.append(engine.restarting)

    engine.start()
    engine.host = Host()
    assert not engine.restarting
    engine.subscribe("stop", look)
    engine.restart()
    assert found == [True, False]
    engine.start()
    engine.exit()
    assert found[2:] == [False, False]


def test_loop_is_the_one_on_which_async_listeners_run(engine: Engine) -> None:
    """It is there once an async listener has needed one, and gone after the stop."""
    threads: list[int] = []

    @engine.subscribe("start")
    async def listener() -> None:
        threads.append(threading.get_ident())

    assert engine.loop is None
    engine.start()
    assert engine.loop is not None
    assert engine.loop.is_running()
    engine.stop()
    assert engine.loop is None
    assert threads[0] != threading.get_ident()


def test_answers_says_whether_somebody_sits_on_the_lock(engine: Engine) -> None:
    """An engine whose lock is held for good does not answer; one that works does."""
    assert engine.answers(0.01)
    with engine._changed:
        call = Call(lambda: engine.answers(0.01)).end()
    assert call.result is False
    assert engine.answers(0.01)
