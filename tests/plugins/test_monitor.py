import asyncio
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import LIMIT, Call, flatten, within
from processes import run_script, start_script, wait_asleep, wait_until

from engine_bridge import (
    ChannelFailures,
    Engine,
    EngineError,
    StartAborted,
    State,
    TransitionTimeout,
)
from engine_bridge.core.records import ListenerSlow, Record
from engine_bridge.plugins import BackgroundTask, Monitor
from engine_bridge.plugins.background import TaskFailed, TaskHangs, TaskRecovered

OFTEN, NEVER = 0.005, 3600.0  # seconds between runs
SOON, BUDGET = 0.1, 1.6  # seconds: when a listener is slow, and what all may take


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is ended after the test."""
    engine = Engine()
    yield engine
    with suppress(ChannelFailures, SystemExit):
        engine.exit()


@pytest.fixture
def records(engine: Engine) -> list[Record]:
    """Return the list in which the engine's records gather."""
    found: list[Record] = []
    engine.observe(found.append, everything=False)
    return found


class Held:
    """A function that returns when it is let go, and counts how many run at once."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()
        self.running = self.most = self.ended = 0

    def __call__(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        self.reached.set()
        self.hang_here()
        self.ended += 1
        self.running -= 1

    def hang_here(self) -> None:
        assert self.let_go.wait(4 * LIMIT)


@pytest.fixture
def held() -> Iterator[Held]:
    """Return a function that is held; it is let go at the end."""
    held = Held()
    yield held
    held.let_go.set()


def monitor(
    engine: Engine, callback: Callable[[], Any], frequency: float = OFTEN, **how: Any
) -> Monitor:
    """Return a monitor that is on."""
    plugin = Monitor(engine, callback, frequency, **how)
    plugin.subscribe()
    return plugin


def threads(name: str) -> list[threading.Thread]:
    """Return the threads of that name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def of_kind(records: list[Record], kind: type[Any]) -> list[Any]:
    """Return the records of that kind."""
    return [record for record in records if isinstance(record, kind)]


# -- runs ------------------------------------------------------------------------------------------


def test_monitor_runs_from_start_to_stop(engine: Engine) -> None:
    """It runs again and again in a daemon thread of its name, which is gone after the stop."""
    found: list[threading.Thread] = []
    plugin = monitor(engine, lambda: found.append(threading.current_thread()), name="tidy")
    assert threads("tidy") == []
    engine.start()
    wait_until(lambda: len(found) >= 3)
    assert {thread.name for thread in found} == {"tidy"}
    assert found[0].daemon
    assert plugin.status.started
    engine.stop()
    number = len(found)
    assert not found[0].is_alive()
    assert not plugin.status.started
    assert plugin.status.runs == number
    engine.start()
    wait_until(lambda: len(found) > number)
    assert found[-1] is not found[0]


def test_monitor_runs_first_after_one_frequency_or_at_once(engine: Engine) -> None:
    """The first run is due after `frequency` seconds; with `run_at_start` it begins at once."""
    later = monitor(engine, list, NEVER)
    at_once = monitor(engine, list, NEVER, run_at_start=True)
    engine.start()
    wait_until(lambda: at_once.status.last_success)
    for plugin, runs in ((later, 0), (at_once, 1)):
        status = plugin.status
        assert status.runs == runs
        assert status.next_run is not None
        assert NEVER - LIMIT < status.next_run - time.time() <= NEVER


def test_monitor_awaits_on_the_loop_of_the_application(engine: Engine) -> None:
    """Under ASGI an async callback runs on the application's loop, elsewhere on the engine's."""
    loops: list[object] = []

    async def callback() -> None:
        loops.append(asyncio.get_running_loop())

    monitor(engine, callback, NEVER, run_at_start=True)

    def seen_to_be_async_when_it_returns() -> Awaitable[None]:
        return callback()

    monitor(engine, seen_to_be_async_when_it_returns, NEVER, run_at_start=True)

    async def main() -> None:
        await engine.start_async()
        await asyncio.to_thread(wait_until, lambda: len(loops) == 2)
        assert set(loops) == {asyncio.get_running_loop()}
        await engine.stop_async()

    asyncio.run(main())
    engine.start()
    wait_until(lambda: len(loops) == 4)
    assert loops[2] is loops[3] is not loops[0]


def test_monitor_counts_from_start_to_start_and_leaves_out_what_it_missed(
    engine: Engine, held: Held
) -> None:
    """A long run is followed by one at the next moment that is a multiple of `frequency` away."""
    plugin = monitor(engine, held, 0.1)
    engine.start()
    first = plugin._task._due  # by the clock that counts
    assert held.reached.wait(LIMIT)
    wait_until(lambda: plugin.status.late_by > 0.25)
    held.let_go.set()
    wait_until(lambda: held.ended)
    wait_until(lambda: plugin.status.running_for is None and plugin.status.late_by == 0)
    steps = (plugin._task._due - first) / 0.1
    assert steps > 2.5
    assert steps == pytest.approx(round(steps))
    assert held.most == 1


def test_monitor_never_runs_twice_at_once(engine: Engine) -> None:
    """However short the frequency, a run begins when the one before has ended."""
    running: list[int] = []
    most = 0

    def callback() -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        time.sleep(0.003)
        running.pop()

    plugin = monitor(engine, callback, 0.001)
    engine.start()
    wait_until(lambda: plugin.status.runs > 5)
    plugin.frequency = 0.0005
    engine.graceful()
    wait_until(lambda: plugin.status.runs > 10)
    engine.stop()
    assert most == 1


def test_monitor_adds_jitter(engine: Engine) -> None:
    """Each wait is longer by up to `jitter` seconds, at random."""
    due = []
    for _ in range(5):
        plugin = monitor(engine, list, NEVER, jitter=1000)
        plugin.start()
        due.append((plugin.status.next_run or 0) - time.time())
        plugin.unsubscribe()
    assert all(NEVER - LIMIT < seconds <= NEVER + 1000 for seconds in due)
    assert len({round(seconds) for seconds in due}) > 1


def test_monitor_that_waits_wakes_for_nothing(engine: Engine) -> None:
    """Between two runs its thread sleeps: the kernel does not switch to it once."""
    monitor(engine, list, NEVER, name="asleep")
    engine.start()
    [thread] = threads("asleep")

    status = Path(f"/proc/self/task/{thread.native_id}/status")

    def switches() -> int:
        lines = status.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    wait_until(lambda: "State:\tS" in status.read_text())
    before = switches()
    time.sleep(0.3)  # nothing is to happen
    assert switches() == before


def test_monitor_goes_on_when_the_clock_is_set_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of day is for people only: nothing waits for it to come round again."""
    plugin = monitor(engine, list, 0.02)
    engine.start()
    wait_until(lambda: plugin.status.runs)
    real = time.time
    monkeypatch.setattr("engine_bridge.plugins.background.time.time", lambda: real() - 86400)
    runs = plugin.status.runs
    wait_until(lambda: plugin.status.runs > runs + 2)
    success, next_run = plugin.status.last_success, plugin.status.next_run
    assert success is not None
    assert next_run is not None
    assert next_run < real() - 86000


# -- change ----------------------------------------------------------------------------------------


def test_monitor_takes_another_frequency_at_once(engine: Engine) -> None:
    """A changed frequency holds for the wait that is under way; 0 turns it off, and back on."""
    plugin = monitor(engine, list, NEVER)
    engine.start()
    plugin.frequency = OFTEN
    assert plugin.frequency == OFTEN
    wait_until(lambda: plugin.status.runs > 1)
    plugin.frequency = 0
    wait_until(lambda: plugin.status.running_for is None and plugin.status.next_run is None)
    runs = plugin.status.runs
    engine.graceful()
    assert plugin.status.next_run is None
    assert plugin.status.runs == runs
    plugin.frequency = OFTEN
    wait_until(lambda: plugin.status.runs > runs)


@pytest.mark.parametrize("frequency", [0, -1])
def test_monitor_without_a_frequency_is_off(engine: Engine, frequency: int) -> None:
    """With 0 or less nothing runs, not even at the start."""
    plugin = monitor(engine, list, frequency, run_at_start=True)
    engine.start()
    assert plugin.status.next_run is None
    engine.stop()
    assert plugin.status.runs == 0


def test_monitor_restarts_on_graceful(engine: Engine) -> None:
    """It counts anew, in the same thread; on an engine that is STOPPED nothing happens."""
    plugin = monitor(engine, list, NEVER, run_at_start=True, name="anew")
    engine.graceful()
    assert threads("anew") == []
    engine.start()
    wait_until(lambda: plugin.status.runs == 1)
    before = threads("anew")
    engine.graceful()
    wait_until(lambda: plugin.status.runs == 2)
    assert threads("anew") == before
    engine.stop()
    engine.graceful()
    assert threads("anew") == []


def test_monitor_may_be_subscribed_twice_and_stopped_without_a_start(engine: Engine) -> None:
    """One thread however often it is turned on; nothing to stop is no fault."""
    plugin = monitor(engine, list, NEVER, name="twice")
    plugin.subscribe()
    assert plugin.stop() is None
    engine.start()
    plugin.start()
    assert len(threads("twice")) == 1
    engine.stop()
    assert plugin.stop() is None
    assert threads("twice") == []
    plugin.unsubscribe()
    engine.start()
    assert threads("twice") == []


def test_monitor_that_is_turned_off_waits_for_its_run(engine: Engine, held: Held) -> None:
    """`unsubscribe` returns when the run under way has ended; no other follows."""
    plugin = monitor(engine, held)
    engine.start()
    assert held.reached.wait(LIMIT)
    call = Call(plugin.unsubscribe)
    wait_until(lambda: not plugin.status.started)
    assert not call.ended.is_set()
    held.let_go.set()
    assert call.end().error is None
    assert held.ended == plugin.status.runs
    engine.start()
    assert plugin.status.runs == held.ended


def test_monitor_can_be_turned_off_on_a_loop_and_by_its_callback(engine: Engine) -> None:
    """There `unsubscribe` does not wait, for it would wait for itself."""
    done = threading.Event()

    def callback() -> None:
        plugin.unsubscribe()
        done.set()

    plugin = monitor(engine, callback)
    engine.start()
    assert done.wait(LIMIT)
    wait_until(lambda: threads(plugin.name) == [])

    async def main() -> None:
        other = monitor(engine, list, name="other")
        other.start()
        other.unsubscribe()
        await asyncio.to_thread(wait_until, lambda: threads("other") == [])

    asyncio.run(main())


# -- failures --------------------------------------------------------------------------------------


def test_monitor_survives_failures_with_back_off(
    engine: Engine, records: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is told with its trace and doubles the wait, to a limit; a success resets it."""
    ends = [ValueError("one"), ValueError("two"), ValueError("three"), None, None]

    def callback() -> None:
        error = ends.pop(0) if ends else None
        if error is not None:
            raise error

    plugin = monitor(engine, callback, 0.05, max_backoff=0.15, name="flaky")
    engine.start()
    wait_until(lambda: len(of_kind(records, TaskFailed)) == 3)
    assert plugin.status.failures == 3
    assert plugin.status.last_error == "ValueError: three"
    assert plugin.status.last_failure == pytest.approx(time.time(), abs=LIMIT)
    assert plugin.status.last_success is None
    wait_until(lambda: of_kind(records, TaskRecovered))
    assert plugin.status.failures == 0
    assert plugin.status.last_success is not None
    failed = of_kind(records, TaskFailed)
    assert [record.failures for record in failed] == [1, 2, 3]
    for record, wait in zip(failed, (0.1, 0.2, 0.15), strict=True):
        assert min(wait, 0.15) - 0.05 < record.retry_in <= min(wait, 0.15)
    [recovered] = of_kind(records, TaskRecovered)
    assert recovered.message() == "flaky succeeded again, after 3 failures"
    logged = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert [entry.exc_info is not None for entry in logged] == [True] * 3
    assert "flaky failed, 2 times in a row; next try in 0 s: ValueError: two" in caplog.text
    runs = plugin.status.runs
    wait_until(lambda: plugin.status.runs > runs + 1)


def test_monitor_backs_off_no_further_than_its_limit(engine: Engine) -> None:
    """However long it fails, the wait stays below `max_backoff`, or the frequency if longer."""
    plugin = monitor(engine, list, 60)
    task = plugin._task
    for failures, wait in ((1, 120), (2, 240), (3, 300), (5000, 300)):
        task._failures = failures
        with task._changed:
            task._plan_retry()
        assert task._due - time.monotonic() == pytest.approx(wait, abs=1)
    plugin.frequency = 1000
    with task._changed:
        task._plan_retry()
    assert task._due - time.monotonic() == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, MemoryError])
@pytest.mark.parametrize("is_async", [False, True])
def test_monitor_survives_whatever_is_raised(
    engine: Engine, kind: type[BaseException], is_async: bool
) -> None:
    """Exceptions that are no `Exception` are failures as well."""

    def callback() -> None:
        raise kind

    async def callback_async() -> None:
        raise kind

    plugin = monitor(engine, callback_async if is_async else callback, OFTEN)
    engine.start()
    wait_until(lambda: plugin.status.failures >= 2)
    assert kind.__name__ in plugin.status.last_error


@pytest.mark.parametrize("is_async", ["", "async "])
@pytest.mark.parametrize(
    ("raised", "code"), [("SystemExit(3)", 3), ("SystemExit('gone')", 1), ("KeyboardInterrupt", 0)]
)
def test_monitor_that_asks_to_exit_ends_a_script(raised: str, code: int, is_async: str) -> None:
    """SystemExit and KeyboardInterrupt stop the engine; `block` leaves with the code."""
    done = run_script(f"""
import time
from engine_bridge import engine
from engine_bridge.plugins import Monitor

{is_async}def callback():
    while not engine.notes._waiting:
        time.sleep(0.001)
    raise {raised}

Monitor(engine, callback, 60, "leaver", run_at_start=True).subscribe()
engine.subscribe("stop", lambda: print("stopped", flush=True))
engine.start()
engine.block()
""")
    assert done.returncode == code, done.stderr
    assert done.stdout == "stopped\n"
    assert "leaver asks the engine to exit" in done.stderr
    assert "Traceback" not in done.stderr


def test_monitor_that_asks_to_exit_needs_no_block(engine: Engine) -> None:
    """Where nobody is in `block`, the engine exits by itself, and a loop survives it."""

    async def callback() -> None:
        raise SystemExit(3)

    plugin = monitor(engine, callback, NEVER, run_at_start=True)

    async def main() -> None:
        await engine.start_async()
        await asyncio.to_thread(engine.wait, State.EXITING, LIMIT)
        assert engine.state is State.EXITING

    within(lambda: asyncio.run(main()))
    assert plugin.status.failures == 0


# -- the stop --------------------------------------------------------------------------------------


def test_stop_waits_for_the_run_under_way(engine: Engine, held: Held) -> None:
    """A run in a thread is not interrupted; the stop returns after it, and none follows."""
    plugin = monitor(engine, held)
    engine.start()
    assert held.reached.wait(LIMIT)
    call = Call(engine.stop)
    assert engine.wait(State.STOPPING, LIMIT)
    wait_until(lambda: not plugin.status.started)
    assert not call.ended.is_set()
    held.let_go.set()
    assert call.end().error is None
    assert held.ended == 1


def test_stop_on_a_loop_does_not_block_it(engine: Engine) -> None:
    """A sync callback that needs the loop to come to its end gets it, also during the stop."""
    reached = threading.Event()
    ended: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def answer() -> int:
            while engine.state is not State.STOPPING:  # noqa: ASYNC110  # the test's own engine
                await asyncio.sleep(0.001)
            return 42

        def callback() -> None:
            reached.set()
            ended.append(asyncio.run_coroutine_threadsafe(answer(), loop).result(LIMIT))

        monitor(engine, callback, NEVER, run_at_start=True)
        await engine.start_async()
        await asyncio.to_thread(reached.wait, LIMIT)
        await engine.stop_async()
        assert ended == [42]

    within(lambda: asyncio.run(main()))


@pytest.mark.parametrize("where", ["own loop", "loop of the application"])
def test_stop_cancels_an_async_run_at_once(
    engine: Engine, where: str, records: list[Record]
) -> None:
    """An async callback is cancelled where it waits, may clean up, and that is no failure."""
    notes: list[str] = []

    async def callback() -> None:
        notes.append("reached")
        try:
            await asyncio.sleep(NEVER)
        finally:
            notes.append("cleaned up")

    plugin = monitor(engine, callback, NEVER, run_at_start=True)

    async def main() -> None:
        await engine.start_async()
        await asyncio.to_thread(wait_until, lambda: notes)
        await engine.stop_async()

    if where == "own loop":
        engine.start()
        wait_until(lambda: notes)
        within(engine.stop)
    else:
        within(lambda: asyncio.run(main()))
    assert notes == ["reached", "cleaned up"]
    assert plugin.status.failures == 0
    assert of_kind(records, TaskFailed) == []


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_stop_leaves_a_run_that_hangs(where: str, held: Held) -> None:
    """It is named with its stack, the stop goes on, and who asked is told and not held up."""
    engine = Engine(slow_after=SOON, stop_timeout=BUDGET)
    records: list[Record] = []
    engine.observe(records.append, everything=False)
    notes: list[str] = []
    engine.subscribe("stop", lambda: notes.append("later"), 60)
    plugin = monitor(engine, held, NEVER, run_at_start=True, name="stuck")

    async def main() -> None:
        await engine.start_async()
        assert await asyncio.to_thread(held.reached.wait, LIMIT)
        await engine.stop_async()

    def in_thread() -> None:
        engine.start()
        assert held.reached.wait(LIMIT)
        engine.stop()

    call = Call(in_thread if where == "thread" else lambda: asyncio.run(main())).end()
    [error] = flatten(call.error)
    assert isinstance(error, TransitionTimeout)
    assert "a run of stuck on channel 'stop' still ran after" in str(error)
    assert notes == ["later"]
    assert engine.state is State.STOPPED
    [told] = of_kind(records, TaskHangs)
    assert told.task == "stuck"
    assert told.stopping
    assert "in hang_here\n" in told.stack
    assert not any(record.left_behind for record in of_kind(records, ListenerSlow))
    assert plugin.status.running_for is not None
    held.let_go.set()
    wait_until(lambda: threads("stuck") == [])
    engine.exit()


def test_start_after_a_run_was_left_behind_waits_for_it(held: Held) -> None:
    """In the next life too there is one run at a time: the one left behind, then the next."""
    engine = Engine(slow_after=SOON, stop_timeout=SOON)
    plugin = monitor(engine, held, OFTEN, name="left")
    engine.start()
    assert held.reached.wait(LIMIT)
    with pytest.raises(ChannelFailures):
        engine.stop()
    engine.start()
    assert plugin.status.started
    assert len(threads("left")) == 1
    held.let_go.set()
    wait_until(lambda: held.ended > 2)
    engine.exit()
    assert held.most == 1
    assert threads("left") == []


def test_async_run_that_ignores_its_cancellation_is_left_behind(records: list[Record]) -> None:
    """Its stack is that of the coroutine."""
    engine = Engine(slow_after=SOON, stop_timeout=BUDGET)
    engine.observe(records.append, everything=False)
    let_go = threading.Event()
    reached = threading.Event()

    async def callback() -> None:
        reached.set()
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await ignore_here()

    async def ignore_here() -> None:
        await asyncio.sleep(0.02)

    plugin = monitor(engine, callback, NEVER, run_at_start=True, name="deaf")
    engine.start()
    assert reached.wait(LIMIT)
    [error] = flatten(Call(engine.stop).end().error)
    assert isinstance(error, TransitionTimeout)
    [told] = of_kind(records, TaskHangs)
    assert "in ignore_here\n" in told.stack
    let_go.set()
    wait_until(lambda: plugin.status.running_for is None)
    wait_until(lambda: threads("deaf") == [] and threads("engine loop") == [])
    engine.exit()


# -- the engine's verbs in a callback --------------------------------------------------------------


@pytest.mark.parametrize("verb", ["stop", "exit"])
def test_callback_may_end_the_engine(engine: Engine, verb: str) -> None:
    """The run that asks is not waited for, and its thread ends after it."""
    notes: list[str] = []

    def callback() -> None:
        assert started.wait(LIMIT)
        getattr(engine, verb)()
        notes.append(str(engine.state))

    started = threading.Event()
    monitor(engine, callback, NEVER, run_at_start=True, name="ender")
    engine.start()
    started.set()
    wait_until(lambda: notes)
    assert notes == ["STOPPED" if verb == "stop" else "EXITING"]
    wait_until(lambda: threads("ender") == [])


@pytest.mark.parametrize("where", ["own loop", "loop of the application"])
def test_async_callback_may_end_the_engine(engine: Engine, where: str) -> None:
    """It is not cancelled by the exit that it awaits."""
    notes: list[str] = []

    async def callback() -> None:
        while not started.is_set():  # noqa: ASYNC110  # `wait` would block the loop
            await asyncio.sleep(0)
        await engine.exit_async()
        notes.append(str(engine.state))

    started = threading.Event()
    monitor(engine, callback, NEVER, run_at_start=True, name="ender")

    async def main() -> None:
        await engine.start_async()
        started.set()
        await asyncio.to_thread(wait_until, lambda: notes)

    if where == "own loop":
        engine.start()
        started.set()
        wait_until(lambda: notes)
    else:
        within(lambda: asyncio.run(main()))
    assert notes == ["EXITING"]
    wait_until(lambda: threads("ender") == [])


def test_callback_may_ask_for_an_exit_that_already_waits_for_it(engine: Engine) -> None:
    """The stop goes on without a run that has come to wait for that very stop."""
    told: list[str] = []

    def callback() -> None:
        reached.set()
        assert stopping.wait(LIMIT)
        engine.exit()
        told.append(str(engine.state))

    reached, stopping = threading.Event(), threading.Event()
    monitor(engine, callback, NEVER, run_at_start=True, name="both")
    engine.subscribe("stop", stopping.set, 40)
    engine.start()
    assert reached.wait(LIMIT)
    within(engine.exit)
    wait_until(lambda: told)
    assert told == ["EXITING"]
    wait_until(lambda: threads("both") == [])


def test_callback_that_waited_for_a_transition_is_waited_for_again(
    engine: Engine, held: Held
) -> None:
    """To have been excused once does not excuse its later runs."""
    ready, go = threading.Event(), threading.Event()

    @engine.subscribe("drain")
    def hold() -> None:
        ready.set()
        assert go.wait(LIMIT)

    def callback() -> None:
        if plugin.status.runs == 1:
            assert ready.wait(LIMIT)
            engine.drain()  # shares the other's
        else:
            held()

    plugin = monitor(engine, callback, OFTEN, run_at_start=True)
    engine.start()
    call = Call(engine.drain)
    wait_until(plugin._task._free.is_set)
    go.set()
    call.end()
    assert held.reached.wait(LIMIT)
    stop = Call(engine.stop)
    wait_until(lambda: not plugin.status.started)
    assert not stop.ended.is_set()
    held.let_go.set()
    assert stop.end().error is None


def test_callback_may_abort_the_start(engine: Engine) -> None:
    """A first run that exits while the start goes on has it rolled back."""
    done = threading.Event()

    def callback() -> None:
        engine.exit()
        done.set()

    monitor(engine, callback, NEVER, run_at_start=True)
    engine.subscribe("start", lambda: engine.aborting.wait(LIMIT), 80)
    error = Call(engine.start).end().error
    assert isinstance(error, StartAborted)
    assert done.wait(LIMIT)


# -- forks -----------------------------------------------------------------------------------------

FORKS = """
import os, sys, threading, time
from engine_bridge import engine
from engine_bridge.plugins import Monitor

runs = []
def in_child(function):
    pid = os.fork()
    if not pid:
        code = 9
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def until(fact):
    end = time.monotonic() + 10
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.001)
"""


def test_forked_child_runs_nothing_until_it_starts() -> None:
    """No thread survives a fork, whatever it did; the child's own start begins anew."""
    done = run_script(
        FORKS
        + """
plugin = Monitor(engine, lambda: runs.append(os.getpid()), 0.001, "often")
plugin.subscribe()

def child():
    assert not plugin.status.started and threading.active_count() == 1
    before = len(runs)
    plugin.unsubscribe()
    plugin.subscribe()
    time.sleep(0.02)  # nothing is to happen
    assert len(runs) == before
    engine.start()
    until(lambda: runs[-1] == os.getpid())
    engine.exit()
    return 0

engine.start()
until(lambda: runs)
for _ in range(20):
    assert in_child(child) == 0
before = len(runs)
until(lambda: len(runs) > before)
assert set(runs) == {os.getpid()}
engine.exit()
"""
    )
    assert done.returncode == 0, done.stderr


def test_child_forked_by_the_callback_does_not_go_on() -> None:
    """The thread that forked does not become a monitor in the child."""
    done = run_script(
        FORKS
        + """
codes = []
parent = os.getpid()

def callback():
    if os.getpid() != parent:
        os._exit(7)  # the child has gone on to another run
    pid = os.fork()
    if pid:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

plugin = Monitor(engine, callback, 0.001)
plugin.subscribe()
engine.start()
until(lambda: len(codes) > 3)
engine.exit()
assert set(codes) == {0}, codes
"""
    )
    assert done.returncode == 0, done.stderr


# -- health ----------------------------------------------------------------------------------------


def test_monitor_reports_failures_in_a_row(engine: Engine) -> None:
    """From `unhealthy_after` failures on it is not well; what probes fail is as configured."""
    failing = True

    def callback() -> None:
        if failing:
            raise OSError("no route")

    plugin = monitor(
        engine,
        callback,
        OFTEN,
        name="sync",
        max_backoff=OFTEN,
        unhealthy_after=2,
        probes=["readyz"],
    )
    engine.start()
    wait_until(lambda: plugin.status.failures >= 2)
    [report] = engine.publish("health")
    assert report["name"] == "sync"
    assert report["ok"] is False
    assert report["probes"] == ("readyz",)
    assert report["facts"]["last_error"] == "OSError: no route"
    failing = False
    wait_until(lambda: plugin.health()["ok"])
    assert Monitor(engine, callback).health()["probes"] == ()


def test_monitor_reports_a_run_that_hangs(
    engine: Engine, held: Held, records: list[Record]
) -> None:
    """A run that has not ended in time is not well, and told with its stack once a run."""
    plugin = monitor(engine, held, OFTEN, run_at_start=True, overdue_after=0.05)
    assert plugin.health()["ok"]
    engine.start()
    assert held.reached.wait(LIMIT)
    wait_until(lambda: not plugin.health()["ok"])
    report = plugin.health()
    assert report["facts"]["overdue"]
    assert report["facts"]["running_for"] > 0
    plugin.health()
    [told] = of_kind(records, TaskHangs)
    assert not told.stopping
    assert "in hang_here\n" in told.stack
    assert "still runs after" in told.message()
    held.let_go.set()
    wait_until(lambda: plugin.health()["ok"])


def test_monitor_is_overdue_after_its_frequency_or_a_minute(engine: Engine) -> None:
    """Unless it is said, a run may take as long as the frequency, and a minute at least."""
    assert Monitor(engine, list, 1).overdue_after == 60
    assert Monitor(engine, list, 90).overdue_after == 90
    assert Monitor(engine, list, 90, overdue_after=5).overdue_after == 5


# -- without channels ------------------------------------------------------------------------------


def test_background_task_runs_without_a_start_of_the_engine(engine: Engine) -> None:
    """It calls its function with its arguments until it is cancelled, and can begin again."""
    calls: list[Any] = []
    task = BackgroundTask(
        OFTEN, lambda *args, **kwargs: calls.append((args, kwargs)), (1, 2), {"three": 3}, engine
    )
    assert task.join(0)
    for _ in range(2):
        calls.clear()
        task.start()
        task.start()
        wait_until(lambda: len(calls) > 1)
        task.cancel()
        task.cancel()
        assert task.join(LIMIT)
        assert not task.status.started
        assert calls[0] == ((1, 2), {"three": 3})
    assert engine.state is State.STOPPED
    assert not engine._listeners.get("fork")


def test_background_task_awaits_without_a_start_of_the_engine(engine: Engine) -> None:
    """An async function gets the engine's loop, which ends with the engine's exit."""
    notes: list[str] = []

    async def function() -> None:
        notes.append("called")
        try:
            await asyncio.sleep(NEVER)
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise

    task = BackgroundTask(OFTEN, function, engine=engine)
    task.start()
    wait_until(lambda: notes)
    task.cancel()
    assert task.join(LIMIT)
    assert notes == ["called", "cancelled"]
    engine.exit()


def test_background_task_cancelled_before_its_loop_comes_to_it_is_cancelled(
    engine: Engine,
) -> None:
    """A run whose loop was busy when the cancellation came does not wait for its end."""
    notes: list[str] = []

    async def callback() -> None:
        notes.append("called")
        await asyncio.sleep(NEVER)

    async def main() -> None:
        await engine.start_async()
        task = BackgroundTask(NEVER, callback, engine=engine, run_at_start=True)
        task.start()
        wait_until(lambda: task.status.running_for is not None)  # and the loop does nothing else
        wait_until(lambda: asyncio.get_running_loop()._ready)  # type: ignore[attr-defined]  # private: what it is given
        task.cancel()
        assert await task.join_async(LIMIT)
        await engine.exit_async()

    within(lambda: asyncio.run(main()))
    assert notes == ["called"]


def test_background_task_without_a_thread_fails_its_start(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no thread the start says so, and the next one may succeed."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    task = BackgroundTask(OFTEN, list, engine=engine)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            task.start()
    assert task.join(0)
    assert not engine._listeners["fork"]
    task.start()
    wait_until(lambda: task.status.runs)
    task.cancel()
    assert task.join(LIMIT)


def test_background_task_names_itself_after_its_function(engine: Engine) -> None:
    """The default engine tells of it, unless it gets another."""

    def tidy_up() -> None: ...

    task = BackgroundTask(NEVER, tidy_up)
    assert task.name.endswith("tidy_up")
    assert task.engine is not engine
    assert BackgroundTask(NEVER, partial(tidy_up), engine=engine).name.endswith("tidy_up")


def test_background_task_can_be_joined_by_tasks_and_by_itself(engine: Engine, held: Held) -> None:
    """`join` says whether it has ended in time; within its own function there is nothing to do."""
    joined: list[bool] = []

    def function() -> None:
        joined.append(task.join())
        held()

    task = BackgroundTask(OFTEN, function, engine=engine)
    task.start()
    assert held.reached.wait(LIMIT)
    task.cancel()
    assert joined == [True]
    assert not task.join(0.01)

    async def main() -> None:
        assert not await task.join_async(0.01)
        held.let_go.set()
        assert await task.join_async(LIMIT)

    asyncio.run(main())
    assert held.ended == 1


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"callback": None}, "wants a function to call, got None"),
        ({"frequency": "often"}, "frequency=… wants seconds, a year at most; got 'often'"),
        ({"frequency": None}, "frequency=… wants seconds"),
        ({"frequency": True}, "frequency=… wants seconds"),
        ({"frequency": float("nan")}, "frequency=… wants seconds"),
        ({"frequency": float("inf")}, "frequency=… wants seconds"),
        ({"jitter": -1}, "jitter=… wants seconds, from 0 to a year; got -1"),
        ({"max_backoff": -1}, "max_backoff=… wants seconds"),
        ({"overdue_after": -1}, "overdue_after=… wants seconds"),
        ({"unhealthy_after": 0}, "unhealthy_after=… wants a number of failures, 1 or more; got 0"),
        ({"unhealthy_after": "3"}, "unhealthy_after=… wants a number"),
        ({"probes": "readyz"}, "probes=… wants a tuple with some of"),
        ({"probes": ["healthz"]}, "probes=… wants a tuple with some of"),
        ({"scope": "cluster"}, "scope=… wants one of process, host; got 'cluster'"),
        ({"scope": "host"}, "wants a name=… by which the processes find each other"),
        ({"lock": "x"}, "lock='x' goes with scope=\"host\""),
        ({"scope": "host", "lock": ""}, "not the path of a file: ''"),
    ],
)
def test_monitor_refuses_what_it_cannot_do(
    engine: Engine, how: dict[str, Any], sentence: str
) -> None:
    """The sentence says what was asked for and what is wanted."""
    with pytest.raises(EngineError) as caught:
        Monitor(engine, **{"callback": list, **how})
    assert sentence in str(caught.value)


def test_monitor_keeps_its_frequency_when_another_is_refused(engine: Engine) -> None:
    """A bad value raises and changes nothing."""
    plugin = Monitor(engine, list, 5)
    with pytest.raises(EngineError, match="frequency"):
        plugin.frequency = float("nan")
    assert plugin.frequency == 5


# -- the guide -------------------------------------------------------------------------------------


def test_guide_begins_with_a_program_that_runs() -> None:
    """What the guide shows first works as it stands, until Ctrl-C."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "monitor.md"
    program = guide.read_text().split("```python\n")[1].split("```")[0]
    with start_script(program) as process:
        process.wait_line("^tidying$")
        wait_asleep(process.pid)  # in `block`
        process.signal(signal.SIGINT)
        assert process.wait_exit() == 0
        assert "Traceback" not in process.output()
