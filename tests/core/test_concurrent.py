"""Many threads and tasks at once."""

import asyncio
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from actors import LIMIT, Call, Part, at_once, flatten, names, within

from engine_bridge import ChannelFailures, Engine, StartAborted, State, TransitionError
from engine_bridge.core.records import Record, StateChanged
from engine_bridge.core.transition import before_waiting

ALL = ("start", "drain", "stop", "exit")


def crowd(engine: Engine, notes: list[str], size: int = 5) -> list[Part]:
    """Have some parts listen to everything."""
    return [Part(f"part{number}", notes).on(engine, *ALL) for number in range(size)]


def in_tasks(verb: Callable[[], Any], number: int) -> list[Any]:
    """Await *verb* in many tasks at once; return their outcomes."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(verb() for _ in range(number)), return_exceptions=True)

    return within(lambda: asyncio.run(main()))  # type: ignore[no-any-return]  # what main returns


def test_sixteen_exits_run_each_stop_listener_once(notes: list[str]) -> None:
    """16 threads that call exit() at once run each listener once, and all return after it."""
    engine = Engine()
    crowd(engine, notes)
    engine.start()
    notes.clear()

    def exit_and_look() -> State:
        engine.exit()
        return engine.state

    assert at_once([exit_and_look] * 16) == [State.EXITING] * 16
    assert notes == [f"part{n}.{channel}" for channel in ALL[1:] for n in range(5)]


def test_sixteen_exits_are_told_the_same() -> None:
    """Where listeners fail all 16 get the same failures, each in a group of its own."""
    engine = Engine()
    reached, go_on = threading.Semaphore(0), threading.Event()
    error = ValueError("in stop")

    def fail() -> None:
        assert go_on.wait(LIMIT)
        raise error

    engine.subscribe("stop", fail)
    engine.subscribe("exit", lambda: 1 / 0)
    engine.start()

    def exit_() -> None:
        reached.release()
        engine.exit()

    calls = [Call(exit_) for _ in range(16)]
    for _ in calls:
        assert reached.acquire(timeout=LIMIT)
    go_on.set()
    outcomes = [call.end().outcome for call in calls]
    told = [
        each for each in outcomes if each is not None
    ]  # who came after the end has nothing to do
    assert len(told) >= 1
    assert {type(each) for each in told} == {ChannelFailures}
    assert len(set(map(id, told))) == len(told)
    assert {each.exceptions for each in told} == {told[0].exceptions}
    assert names(flatten(told[0])) == ["ValueError", "ZeroDivisionError"]
    assert told[0].exceptions[0] is error


def test_sixty_four_starts_run_each_start_listener_once(notes: list[str]) -> None:
    """64 threads that start at once run each start listener once; all return when STARTED."""
    engine = Engine()
    crowd(engine, notes)

    def start_and_look() -> State:
        engine.start()
        return engine.state

    assert at_once([start_and_look] * 64) == [State.STARTED] * 64
    assert notes == [f"part{n}.start" for n in range(5)]
    engine.exit()


def test_sixty_four_doors_open_one_engine(notes: list[str]) -> None:
    """64 threads in `with engine:` at once start it once; the one that did ends it, alone."""
    engine = Engine()
    crowd(engine, notes)
    inside = threading.Barrier(64)

    def visit() -> None:
        with engine:
            inside.wait(LIMIT)

    assert at_once([visit] * 64) == [None] * 64
    assert notes == [f"part{n}.{channel}" for channel in ALL for n in range(5)]


def test_failing_start_is_shared_by_all_who_wait(notes: list[str]) -> None:
    """Threads that wait for a start that fails are all told; nobody tries it again for them."""
    engine = Engine()
    go_on = threading.Event()
    reached = threading.Semaphore(0)

    def fail() -> None:
        notes.append("tried")
        assert go_on.wait(LIMIT)
        raise ValueError

    engine.subscribe("start", fail)
    first = Call(engine.start)

    def start() -> None:
        reached.release()
        engine.start()

    assert engine.wait(State.STARTING, LIMIT)
    others = [Call(start) for _ in range(8)]
    for _ in others:
        assert reached.acquire(timeout=LIMIT)
    go_on.set()
    outcomes = [call.end().outcome for call in (first, *others)]
    assert {type(each) for each in outcomes} == {ChannelFailures}
    assert len(set(map(id, outcomes))) == len(outcomes)


@pytest.mark.parametrize("verb", ["start", "exit"])
def test_tasks_share_a_transition_like_threads(verb: str, notes: list[str]) -> None:
    """16 tasks of one loop that ask at once have it run once."""
    engine = Engine()
    crowd(engine, notes)
    if verb == "exit":
        engine.start()
        notes.clear()
    assert in_tasks(getattr(engine, f"{verb}_async"), 16) == [None] * 16
    channels = ALL if verb == "start" else ALL[1:]
    expected = [f"part{n}.{channel}" for channel in channels[:3] for n in range(5)]
    # The end of the loop has stopped what was started on it.
    assert notes == expected if verb == "start" else notes[:15] == expected
    within(engine.exit)


def test_exit_wins_over_a_start_that_is_under_way(notes: list[str]) -> None:
    """Whenever the exit comes during a start: rolled back, StartAborted, no further listener."""
    engine = Engine()
    reached = threading.Event()

    def first() -> None:
        notes.append("first")
        reached.set()
        assert engine.aborting.wait(LIMIT)

    engine.subscribe("start", first)
    Part("later", notes).on(engine, "start", "stop")
    engine.subscribe("stop", lambda: notes.append("stop"))
    starts = [Call(engine.start) for _ in range(4)]
    assert reached.wait(LIMIT)
    exits = [Call(engine.exit) for _ in range(4)]
    assert [call.end().outcome for call in exits] == [None] * 4
    assert {type(call.end().error) for call in starts} <= {StartAborted, TransitionError}
    assert any(isinstance(call.error, StartAborted) for call in starts)
    assert notes == ["first", "stop"]
    assert engine.state is State.EXITING


def test_exit_during_the_last_start_listener_never_shows_started() -> None:
    """An engine whose start is aborted is not STARTED even for a moment: nobody routes to it."""
    engine = Engine()
    states: list[str] = []
    reached = threading.Event()

    @engine.observe
    def note(record: Record) -> None:
        if isinstance(record, StateChanged):
            states.append(record.new)

    @engine.subscribe("start")
    def only() -> None:
        reached.set()
        assert engine.aborting.wait(LIMIT)

    call = Call(engine.start)
    assert reached.wait(LIMIT)
    within(engine.exit)
    assert isinstance(call.end().error, StartAborted)
    assert states == ["STARTING", "STOPPING", "STOPPED", "EXITING"]


def test_who_comes_to_wait_for_a_transition_says_so_before() -> None:
    """A thread about to wait for another's exit tells, so that the exit need not wait for it."""
    engine, told = Engine(), threading.Event()
    engine.start()

    def helper() -> None:
        before_waiting.set(lambda who: told.set() if who is engine else None)
        engine.exit()

    @engine.subscribe("stop")
    def wait_for_helper() -> None:
        calls.append(Call(helper))
        assert told.wait(LIMIT)

    calls: list[Call] = []
    within(engine.exit)
    assert calls[0].end().error is None


def test_start_that_waits_for_an_announced_stop_says_so_before() -> None:
    """So does a thread whose start waits for the stop that must follow a drain."""
    engine, told = Engine(), threading.Event()
    engine.start()
    engine.drain()

    def helper() -> None:
        before_waiting.set(lambda who: told.set() if who is engine else None)
        engine.start()

    call = Call(helper)
    assert told.wait(LIMIT)
    engine.stop()
    assert call.end().error is None
    engine.exit()


def test_async_start_listener_is_cancelled_by_an_exit(notes: list[str]) -> None:
    """An async start listener does not hold an exit up: it is cancelled, the rest rolled back."""
    engine = Engine()
    reached = threading.Event()
    Part("first", notes).on(engine, "start", "stop")

    @engine.subscribe("start")
    async def endless() -> None:
        reached.set()
        await asyncio.Event().wait()

    call = Call(engine.start)
    assert reached.wait(LIMIT)
    within(engine.exit)
    assert isinstance(call.end().error, StartAborted)
    assert notes == ["first.start", "first.stop"]
    assert engine.state is State.EXITING


@pytest.mark.parametrize("seed", range(6))
def test_storm_of_commands_leaves_everything_in_order(seed: int, notes: list[str]) -> None:
    """Twelve threads command at random: each life's listeners run once, in order, and it ends."""
    engine = Engine()
    lives: list[str] = []
    engine.observe(
        lambda record: lives.append(record.new) if isinstance(record, StateChanged) else None
    )
    for channel in ALL:
        engine.subscribe(channel, lambda channel=channel: lives.append(channel))

    def command(number: int) -> None:
        draw = random.Random(100 * seed + number)
        for _ in range(15):
            verb = draw.choice([engine.start, engine.stop, engine.exit, engine.graceful])
            try:
                verb()
            except (StartAborted, TransitionError):
                assert verb == engine.start

    assert at_once([partial(command, number) for number in range(12)]) == [None] * 12
    within(engine.exit)
    assert in_order(lives), lives
    assert engine.state is State.EXITING


# What may follow what.
NEXT = {
    "STOPPED": {"STARTING", "EXITING"},
    "STARTING": {"start", "STOPPING"},
    "start": {"STARTED", "STOPPING"},
    "STARTED": {"drain"},
    "drain": {"STOPPING"},
    "STOPPING": {"stop"},
    "stop": {"STOPPED"},
    "EXITING": {"exit"},
    "exit": {"STOPPED"},
}


def in_order(seen: list[str]) -> bool:
    """Say whether states and channels follow each other as they may."""
    return all(after in NEXT[before] for before, after in itertools.pairwise(["STOPPED", *seen]))


def test_publish_to_an_async_listener_outlives_every_loop() -> None:
    """Threads that publish to an async listener while lives come and go are never left waiting."""
    engine = Engine()
    heard, done = threading.Semaphore(0), threading.Event()

    @engine.subscribe("work")
    async def listen() -> None:
        heard.release()
        await asyncio.sleep(0)

    lost: list[BaseException] = []

    def publish() -> None:
        while not done.is_set():
            try:
                engine.publish("work")
            except ChannelFailures as exc:
                lost.extend(flatten(exc))

    publishers = [Call(publish) for _ in range(3)]
    for _ in range(30):
        within(engine.start)
        assert heard.acquire(timeout=LIMIT)
        within(engine.stop)
    for _ in range(5):
        within(lambda: asyncio.run(a_life(engine)))
    done.set()
    assert [call.end().error for call in publishers] == [None] * 3
    assert set(names(lost)) <= {"CancelledError", "EngineError"}  # it ended, with its loop
    engine.start()  # which ends the loop that the last of them were given
    engine.exit()


async def a_life(engine: Engine) -> None:
    """Live on this loop, and end it."""
    async with engine:
        await asyncio.sleep(0)


def test_listeners_that_come_and_go_never_break_a_transition() -> None:
    """Lives go on in order while threads subscribe and unsubscribe on the lifecycle's channels."""
    engine = Engine()
    calls: Counter[str] = Counter()
    done = threading.Event()
    for channel in ALL:
        engine.subscribe(channel, lambda channel=channel: calls.update([channel]))

    def churn() -> None:
        guest = Part("guest", [])
        while not done.is_set():
            guest.on(engine, *ALL)
            for channel in ALL:
                engine.unsubscribe(channel, getattr(guest, channel))

    churners = [Call(churn) for _ in range(3)]
    for _ in range(50):
        engine.start()
        engine.exit()
    done.set()
    assert [call.end().error for call in churners] == [None] * 3
    assert calls == dict.fromkeys(ALL, 50)
