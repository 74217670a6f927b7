"""Listeners that take too long: named with their stacks, and left behind past the budget."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from actors import LIMIT, Call, Part, flatten, names, noting, wait_blocked

from engine_bridge import ChannelFailures, Engine, State, TransitionTimeout
from engine_bridge.core.records import ListenerSlow, Record

SOON, BUDGET = 0.15, 0.5  # seconds


class Hang:
    """A listener that returns only when it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()
        self.returned = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self.hang_here()
        self.returned.set()

    def hang_here(self) -> None:
        assert self.let_go.wait(4 * LIMIT)


@pytest.fixture
def hang() -> Iterator[Hang]:
    """Return a listener that hangs; it is let go at the end."""
    hang = Hang()
    yield hang
    hang.let_go.set()


def impatient(**limits: float) -> Engine:
    """Return an engine with short limits."""
    return Engine(**{"slow_after": SOON, "start_timeout": BUDGET, "stop_timeout": BUDGET, **limits})


def slow_records(engine: Engine) -> list[ListenerSlow]:
    """Return the list in which the records of slow listeners gather."""
    found: list[ListenerSlow] = []

    def note(record: Record) -> None:
        if isinstance(record, ListenerSlow):
            found.append(record)

    engine.observe(note)
    return found


def timeouts(error: BaseException | None) -> list[TransitionTimeout]:
    """Return the timeouts in the group *error*."""
    assert isinstance(error, ChannelFailures), error
    return [each for each in flatten(error) if isinstance(each, TransitionTimeout)]


# Slow


class Named:
    """Has an owner's name, and places to be found at."""

    def __init__(self, let_go: threading.Event) -> None:
        self.let_go = let_go

    def stop(self) -> None:
        self.dawdle()

    def dawdle(self) -> None:
        assert self.let_go.wait(LIMIT)

    async def stop_async(self) -> None:
        await self.dawdle_async()

    async def dawdle_async(self) -> None:
        await asyncio.to_thread(self.let_go.wait, LIMIT)


@pytest.mark.parametrize("where", ["thread", "loop"])
@pytest.mark.parametrize(
    ("listener", "place"), [("stop", "dawdle"), ("stop_async", "dawdle_async")]
)
@pytest.mark.parametrize("channel", ["start", "drain", "stop", "exit"])
def test_slow_listener_is_named_with_its_stack(
    channel: str, listener: str, place: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Past `slow_after` a listener of any transition is in the log, with where it stands."""
    engine = Engine(slow_after=SOON)
    told = threading.Event()
    found = slow_records(engine)
    engine.observe(lambda record: told.set() if isinstance(record, ListenerSlow) else None)
    engine.subscribe(channel, getattr(Named(told), listener))

    async def on_a_loop() -> None:
        await engine.start_async()
        await engine.exit_async()

    def in_a_thread() -> None:
        engine.start()
        engine.exit()

    Call(in_a_thread if where == "thread" else lambda: asyncio.run(on_a_loop())).end()
    assert [(each.channel, each.listener, each.left_behind) for each in found] == [
        (channel, f"Named.{listener}", False)
    ]
    assert found[0].seconds >= SOON
    assert f"in {place}\n" in found[0].stack
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"Named.{listener} on {channel!r}: still running" in caplog.text
    assert engine.state is State.EXITING


def test_slow_listener_is_named_once() -> None:
    """However long it takes within the budget, it is told once; another one is told for itself."""
    engine = Engine(slow_after=SOON / 5)
    found = slow_records(engine)
    go_on = threading.Event()
    engine.subscribe("stop", lambda: go_on.wait(SOON))
    engine.subscribe("stop", lambda: go_on.wait(SOON), 60)
    engine.start()
    engine.stop()
    assert len(found) == 2


def test_quick_listeners_are_not_named() -> None:
    """Many quick listeners may together take longer than `slow_after`: none of them is slow."""
    engine = Engine(slow_after=SOON)
    found = slow_records(engine)
    for _ in range(8):
        engine.subscribe("stop", lambda: threading.Event().wait(SOON / 4))
    engine.start()
    engine.stop()
    assert found == []


def test_user_channels_know_no_limits(hang: Hang) -> None:
    """A listener of a user's channel may take as long as it likes."""
    engine = impatient()
    found = slow_records(engine)
    engine.subscribe("work", hang)
    call = Call(lambda: engine.publish("work"))
    assert hang.reached.wait(LIMIT)
    assert not call.ended.wait(2 * BUDGET)
    hang.let_go.set()
    assert call.end().error is None
    assert found == []


def test_observer_of_a_slow_listener_may_ask_for_the_exit(hang: Hang, notes: list[str]) -> None:
    """Who hears that a start is slow may give it up: no deadlock, the exit follows."""
    engine = Engine(slow_after=SOON)
    engine.subscribe("exit", noting(notes, "exit"))

    @engine.observe
    def give_up(record: Record) -> None:
        if isinstance(record, ListenerSlow):
            engine.exit()
            hang.let_go.set()

    engine.subscribe("start", hang)
    Call(engine.start).end()
    assert engine.wait(State.EXITING, LIMIT)
    assert notes == ["exit"]


# Hanging, sync


def test_hanging_stop_listener_is_left_behind(
    hang: Hang, notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Past the budget the others have run, the engine is STOPPED, and all are told who hung."""
    engine = impatient()
    found = slow_records(engine)
    Part("early", notes).on(engine, "stop", priority=40)
    engine.subscribe("stop", hang)
    Part("late", notes).on(engine, "stop", priority=60)
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    waiting = [wait_blocked(Call(engine.stop)) for _ in range(3)]
    for call in waiting:
        [error] = timeouts(call.end().error)
        assert "Hang" in error.listener
        assert error.channel == "stop"
        assert error.seconds >= BUDGET
        assert "Engine(stop_timeout=…)" in str(error)
    assert notes == ["early.stop", "late.stop"]
    assert engine.state is State.STOPPED
    assert not engine.alive
    assert not stuck.ended.is_set()
    assert [each.left_behind for each in found] == [False, True]
    assert "hang_here" in found[1].stack
    assert "hang_here" in caplog.text
    hang.let_go.set()
    assert len(timeouts(stuck.end().error)) == 1  # who was stuck is told as well
    assert notes == ["early.stop", "late.stop"]


def test_hanging_stop_listener_does_not_keep_the_exit(hang: Hang, notes: list[str]) -> None:
    """exit() goes on to its exit listeners and ends in EXITING; block() raises what it raised."""
    engine = impatient()
    engine.subscribe("stop", hang)
    engine.subscribe("exit", noting(notes, "exit"))
    engine.start()
    block = Call(engine.block)
    stuck = Call(engine.exit)
    assert len(timeouts(block.end().error)) == 1
    assert notes == ["exit"]
    assert engine.state is State.EXITING
    hang.let_go.set()
    assert len(timeouts(stuck.end().error)) == 1


def test_hanging_start_listener_is_rolled_back(hang: Hang, notes: list[str]) -> None:
    """Past the start's budget what had started is stopped, and everyone in start() is told."""
    engine = impatient()
    Part("first", notes).on(engine, "start", "stop", "exit")

    class Stuck:
        def start(self) -> None:
            hang()

        def stop(self) -> None:
            notes.append("never: it has not started")

    owner = Stuck()
    engine.subscribe("start", owner.start)
    engine.subscribe("stop", owner.stop)
    Part("later", notes).on(engine, "start", "stop", "exit")
    stuck = Call(engine.start)
    assert hang.reached.wait(LIMIT)
    waiting = [wait_blocked(Call(engine.start)) for _ in range(3)]
    for call in waiting:
        assert [each.channel for each in timeouts(call.end().error)] == ["start"]
    assert notes == ["first.start", "first.stop"]
    assert engine.state is State.STOPPED
    assert not engine.alive
    hang.let_go.set()
    assert [each.listener for each in timeouts(stuck.end().error)] == ["Stuck.start"]
    assert notes == ["first.start", "first.stop"]


def test_two_hanging_listeners_are_both_left_behind(notes: list[str]) -> None:
    """Each is left behind; the stuck call returns when the first does, whatever the second does."""
    engine = impatient()
    hangs = [Hang(), Hang()]
    for hang in hangs:
        engine.subscribe("stop", hang)
    engine.subscribe("stop", noting(notes, "last"))
    engine.start()
    try:
        stuck = Call(engine.stop)
        assert hangs[0].reached.wait(LIMIT)
        waiting = wait_blocked(Call(engine.stop))
        assert len(timeouts(waiting.end().error)) == 2
        assert notes == ["last"]
        hangs[0].let_go.set()
        assert len(timeouts(stuck.end().error)) == 2
        assert not hangs[1].returned.is_set()
    finally:
        for hang in hangs:
            hang.let_go.set()


def test_hanging_drain_listener_is_left_behind(hang: Hang, notes: list[str]) -> None:
    """A drain listener has the drain's time; past it the engine stops as ever."""
    engine = impatient(drain_timeout=BUDGET)
    engine.subscribe("drain", hang)
    engine.subscribe("drain", noting(notes, "drain"))
    engine.subscribe("stop", noting(notes, "stop"))
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    error = timeouts(wait_blocked(Call(engine.stop)).end().error)
    assert [each.channel for each in error] == ["drain"]
    assert "Engine(drain_timeout=…)" in str(error[0])
    assert notes == ["drain", "stop"]
    assert engine.state is State.STOPPED
    hang.let_go.set()
    stuck.end()


def test_drain_listeners_run_where_no_request_is_waited_for(notes: list[str]) -> None:
    """`drain_timeout=0` waits for no request, but cuts no drain listener off."""
    engine = Engine(drain_timeout=0)

    @engine.subscribe("drain")
    async def tell() -> None:
        await asyncio.sleep(SOON)
        notes.append("async")

    @engine.subscribe("drain")
    def tell_sync() -> None:
        threading.Event().wait(SOON)
        notes.append("sync")

    engine.start()
    Call(engine.stop).end()
    assert notes == ["async", "sync"]
    assert engine.alive


def test_budget_shorter_than_slow_after_holds(hang: Hang) -> None:
    """A budget ends when it ends, also where nobody would be called slow yet."""
    engine = Engine(slow_after=4 * LIMIT, stop_timeout=BUDGET)
    drained = threading.Event()
    engine.subscribe("drain", lambda: drained.wait(SOON))
    engine.subscribe("stop", hang)
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    assert len(timeouts(wait_blocked(Call(engine.stop)).end().error)) == 1
    hang.let_go.set()
    stuck.end()


def test_late_listeners_have_their_time_too(hang: Hang, notes: list[str]) -> None:
    """Where the first one has used the budget up, those after it still get `slow_after` each."""
    engine = impatient(slow_after=BUDGET)
    engine.subscribe("stop", hang)

    class Slow:
        def stop(self) -> None:
            threading.Event().wait(BUDGET / 4)
            notes.append("late")

    for _ in range(3):
        engine.subscribe("stop", Slow().stop)
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    assert len(timeouts(wait_blocked(Call(engine.stop)).end().error)) == 1
    assert notes == ["late"] * 3
    hang.let_go.set()
    stuck.end()


def test_engine_starts_again_after_one_hung(hang: Hang, notes: list[str]) -> None:
    """The next life begins as ever, and the listener that was left behind does not disturb it."""
    engine = impatient()
    engine.subscribe("stop", hang)
    Part("part", notes).on(engine, "start", "stop")
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    assert engine.wait(State.STOPPED, LIMIT)
    wait_blocked(Call(engine.stop)).end()
    engine.unsubscribe("stop", hang)
    engine.start()
    assert (engine.state, engine.alive) == (State.STARTED, True)
    hang.let_go.set()
    assert len(timeouts(stuck.end().error)) == 1
    assert engine.state is State.STARTED
    engine.exit()
    assert notes == ["part.start", "part.stop"] * 2


def test_exit_asked_for_meanwhile_follows_the_one_left_behind(hang: Hang, notes: list[str]) -> None:
    """An exit that waits for a stop with a hanging listener is carried out in time."""
    engine = impatient()
    engine.subscribe("stop", hang)
    engine.subscribe("exit", noting(notes, "exit"))
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    assert wait_blocked(Call(engine.exit)).end().error is None
    assert notes == ["exit"]
    assert engine.state is State.EXITING
    hang.let_go.set()
    stuck.end()


# Hanging, on a loop


def test_sync_listener_that_blocks_the_applications_loop(hang: Hang, notes: list[str]) -> None:
    """It is left behind too; async listeners after it run on a fresh loop, with a warning."""
    engine = impatient()
    told: list[str] = []
    loops: list[object] = []
    engine.subscribe("log", lambda msg, level: told.append(msg))
    engine.subscribe("stop", hang)

    @engine.subscribe("stop", priority=60)
    async def late() -> None:
        loops.append(asyncio.get_running_loop())
        notes.append("late")

    seen: list[BaseException | None] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await engine.start_async()
        try:
            await engine.stop_async()
        except ChannelFailures as exc:
            seen.append(exc)

    loop = Call(lambda: asyncio.run(main()))
    assert hang.reached.wait(LIMIT)
    waiting = [wait_blocked(Call(engine.stop)) for _ in range(2)]
    for call in waiting:
        assert len(timeouts(call.end().error)) == 1
    assert notes == ["late"]
    assert len(set(loops)) == 2
    assert any("loop is gone" in message for message in told)
    assert (engine.state, engine.alive) == (State.STOPPED, False)
    hang.let_go.set()
    assert loop.end().error is None
    assert len(timeouts(seen[0])) == 1


@pytest.mark.parametrize("where", ["thread", "loop"])
@pytest.mark.parametrize("channel", ["start", "stop", "exit"])
def test_async_listener_is_cancelled_past_the_budget(
    channel: str, where: str, notes: list[str]
) -> None:
    """An async listener is cancelled, may clean up, and is named; the others run."""
    engine = impatient()
    found = slow_records(engine)

    @engine.subscribe(channel)
    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            notes.append("cleaned up")

    engine.subscribe("stop", noting(notes, "stop"), 60)
    engine.subscribe("exit", noting(notes, "exit"), 60)
    error = Call(life(engine, where)).end().error
    assert [each.channel for each in timeouts(error)] == [channel]
    assert (
        notes
        == {
            "start": ["cleaned up", "stop"],
            "stop": ["cleaned up", "stop", "exit"],
            "exit": ["stop", "cleaned up", "exit"],
        }[channel]
    )
    assert "in endless" in found[0].stack
    assert engine.alive == (channel == "start")  # nothing runs on; but an engine that has exited …
    engine.exit()


@pytest.mark.parametrize("how", ["coroutine function", "function that returns an awaitable"])
def test_async_listener_whose_loop_is_busy_is_not_left_behind(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that comes to it only past the budget ends it all the same, and nothing runs on."""
    monkeypatch.setattr("engine_bridge.core.life.OTHER_LOOP_GRACE", LIMIT)
    engine = impatient()
    ended: list[asyncio.Event] = []

    async def endless() -> None:
        event = asyncio.Event()
        try:
            await event.wait()
        finally:
            ended.append(event)

    def returns_it() -> object:
        return endless()

    engine.subscribe("start", lambda: asyncio.sleep(0))  # so that there is a loop
    engine.subscribe("stop", endless if how == "coroutine function" else returns_it)
    engine.start()
    assert engine.loop is not None
    engine.loop.call_soon_threadsafe(threading.Event().wait, 2 * BUDGET)
    [timeout] = timeouts(Call(engine.stop).end().error)
    assert "was cancelled" in str(timeout)
    assert ended
    assert engine.alive
    engine.exit()


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_async_listener_that_swallows_its_cancellation(where: str, notes: list[str]) -> None:
    """It is left behind after a moment of grace; the others run, and all are told."""
    engine = impatient()
    let_go = threading.Event()

    @engine.subscribe("stop")
    async def stubborn() -> None:
        while not let_go.is_set():
            try:
                await asyncio.sleep(SOON)
            except asyncio.CancelledError:
                notes.append("swallowed")

    engine.subscribe("stop", noting(notes, "late"), 60)
    engine.observe(lambda record: let_go.set() if record.message() == "Engine STOPPED" else None)
    error = Call(life(engine, where, "stop")).end().error
    assert [each.channel for each in timeouts(error)] == ["stop"]
    assert notes[0] == "swallowed"
    assert "late" in notes
    assert (engine.state, engine.alive) == (State.STOPPED, False)


def life(engine: Engine, where: str, end: str = "exit") -> Callable[[], Any]:
    """Return a call that starts and ends *engine*, in a thread or on a loop."""

    async def on_a_loop() -> None:
        await engine.start_async()
        await getattr(engine, f"{end}_async")()

    def in_a_thread() -> None:
        engine.start()
        getattr(engine, end)()

    return in_a_thread if where == "thread" else lambda: asyncio.run(on_a_loop())


def test_group_tells_who_failed_and_who_hung(hang: Hang) -> None:
    """Failures and timeouts of one transition come in one group."""
    engine = impatient()
    engine.subscribe("stop", lambda: 1 / 0, 40)
    engine.subscribe("stop", hang)
    engine.subscribe("stop", [].pop, 60)
    engine.start()
    stuck = Call(engine.stop)
    assert hang.reached.wait(LIMIT)
    error = wait_blocked(Call(engine.stop)).end().error
    assert names(flatten(error)) == ["ZeroDivisionError", "TransitionTimeout", "IndexError"]
    hang.let_go.set()
    assert names(flatten(stuck.end().error)) == names(flatten(error))
