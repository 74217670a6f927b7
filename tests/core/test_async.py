"""The async verbs, async listeners, and the loops that they run on."""

import asyncio
import threading

import pytest
from actors import ALL, LIFE, Call, Part, at_once, failed, flatten, follow, noting
from processes import wait_until

from engine_bridge import (
    Engine,
    State,
)
from engine_bridge.core.errors import WouldDeadlock


def end_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop that stopped with tasks on it, so that none of them ends in a later test."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks, timeout=10) if tasks else asyncio.sleep(0))
    for task in tasks:
        if not task.cancelled():
            task.exception()
    loop.close()


def test_async_verbs_take_the_same_way(notes: list[str]) -> None:
    """start_async, stop_async and exit_async do what start, stop and exit do."""
    engine = Engine()
    follow(engine, notes)
    Part("part", notes).on(engine, *ALL)

    async def main() -> None:
        await engine.start_async()
        await engine.stop_async()
        await engine.exit_async()

    asyncio.run(main())
    assert notes == LIFE


def test_async_listeners_run_on_the_loop_that_started() -> None:
    """All async listeners of a life run on the application's loop, sync ones in its thread."""
    engine = Engine()
    loops: list[object] = []
    threads: list[int] = []
    for channel in ("start", "drain", "stop", "exit"):

        @engine.subscribe(channel)
        async def listen() -> None:
            loops.append(asyncio.get_running_loop())

        engine.subscribe(channel, lambda: threads.append(threading.get_ident()))

    async def main() -> None:
        await engine.start_async()
        await engine.exit_async()
        assert loops == [asyncio.get_running_loop()] * 4

    asyncio.run(main())
    assert threads == [threading.get_ident()] * 4


def test_async_listeners_of_a_sync_life_run_on_one_loop_of_the_engine() -> None:
    """Without a loop of the application's all of a life run on one loop, in a daemon thread."""
    engine = Engine()
    loops: list[object] = []
    threads: list[threading.Thread] = []

    async def listen() -> None:
        loops.append(asyncio.get_running_loop())
        threads.append(threading.current_thread())

    for channel in ("start", "drain", "stop"):
        engine.subscribe(channel, listen)
    engine.start()
    engine.stop()
    assert len(loops) == 3
    assert len(set(loops)) == len(set(threads)) == 1
    assert threads[0].daemon
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_threads_that_publish_at_once_share_one_loop() -> None:
    """The first publish to an async listener starts the loop; those at the same time do not."""
    engine = Engine()
    loops: list[object] = []

    @engine.subscribe("work")
    async def listen() -> None:
        loops.append(asyncio.get_running_loop())

    for _ in range(5):
        loops.clear()
        engine.start()
        assert at_once([lambda: engine.publish("work")] * 16) == [[None]] * 16
        engine.exit()
        assert len(loops) == 16
        assert len(set(loops)) == 1


def test_publish_finds_another_loop_when_the_applications_ends(
    notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A publish that the application's loop has not come to when it ends is heard all the same."""
    engine = Engine()
    asked, go_on = threading.Event(), threading.Event()
    engine.subscribe("work", noting(notes, "sync"))

    @engine.subscribe("work")
    async def listen() -> None:
        notes.append("async")

    async def main() -> None:
        await engine.start_async()
        asked.set()
        go_on.wait(10)  # with it the loop

    loop = asyncio.new_event_loop()
    application = Call(lambda: loop.run_until_complete(main()))
    assert asked.wait(10)
    publish = Call(lambda: engine.publish("work"))
    wait_until(lambda: notes == ["sync"] and loop._ready)  # type: ignore[attr-defined]  # what it is to do next
    go_on.set()
    application.end()
    assert publish.end().error is None
    assert notes == ["sync", "async"]
    assert "the application's loop is gone" in caplog.text
    engine.exit()
    end_loop(loop)


def test_loop_of_the_engine_ends_with_an_async_exit_listener() -> None:
    """The loop that an async exit listener was given is gone once the exit is complete."""
    engine = Engine()
    threads: list[threading.Thread] = []

    @engine.subscribe("exit")
    async def listen() -> None:
        threads.append(threading.current_thread())

    engine.start()
    engine.exit()
    assert len(threads) == 1
    assert not threads[0].is_alive()


def test_loop_that_a_publish_needed_ends_with_the_life(notes: list[str]) -> None:
    """A publish to an async listener before the start leaves no second loop behind."""
    engine = Engine()
    threads: list[threading.Thread] = []

    @engine.subscribe("work")
    async def listen() -> None:
        threads.append(threading.current_thread())

    engine.publish("work")
    engine.start()
    engine.publish("work")
    engine.exit()
    assert [thread.is_alive() for thread in threads] == [False, False]


def test_async_failures_and_roll_back_are_as_sync(notes: list[str]) -> None:
    """An async start listener that fails rolls back what started, sync or async."""
    engine = Engine()

    class Database:
        async def start(self) -> None:
            notes.append("database.start")

        async def stop(self) -> None:
            notes.append("database.stop")

    class Broken(Database):
        async def start(self) -> None:
            raise ValueError("async")

    for owner in (Database(), Broken()):
        engine.subscribe("start", owner.start)
        engine.subscribe("stop", owner.stop)
    Part("later", notes).on(engine, *ALL)
    group = failed(engine.start)
    assert repr(group.exceptions[0]) == "ValueError('async')"
    assert notes == ["database.start", "database.stop"]


def test_system_exit_in_an_async_listener_keeps_its_code(notes: list[str]) -> None:
    """SystemExit from an async start listener comes out of start(), after the roll back."""
    engine = Engine()

    @engine.subscribe("start")
    async def leave() -> None:
        raise SystemExit(3)

    @engine.subscribe("stop")
    async def stop() -> None:
        notes.append("stop")

    with pytest.raises(SystemExit) as caught:
        engine.start()
    assert caught.value.code == 3
    assert notes == ["stop"]


def test_sync_verbs_on_the_applications_loop_say_what_to_await() -> None:
    """stop() and exit() on the loop that they would wait for raise, and change nothing."""
    engine = Engine()

    async def main() -> None:
        await engine.start_async()
        for verb in (engine.stop, engine.exit):
            with pytest.raises(WouldDeadlock, match=rf"await engine\.{verb.__name__}_async\(\)"):
                verb()
        assert engine.state is State.STARTED
        await engine.exit_async()

    asyncio.run(main())


def test_sync_start_on_the_applications_loop_does_nothing_when_started() -> None:
    """There is nothing to wait for, so nothing to refuse."""
    engine = Engine()

    async def main() -> None:
        await engine.start_async()
        engine.start()
        assert engine.state is State.STARTED
        await engine.exit_async()

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["stop", "exit"])
def test_sync_verbs_on_the_engines_own_loop_say_what_to_await(verb: str) -> None:
    """An async listener that runs on the engine's loop must not block it either."""
    engine = Engine()

    @engine.subscribe("work")
    async def work() -> None:
        getattr(engine, verb)()

    engine.start()
    error = Call(lambda: engine.publish("work")).end().error
    assert [type(each) for each in flatten(error)] == [WouldDeadlock]
    assert engine.state is State.STARTED
    engine.exit()


def test_result_of_an_async_call_is_had_from_any_thread_but_the_loops() -> None:
    """A thread gets what the call returns on the engine's loop; that loop's thread is refused."""
    engine = Engine()

    async def which() -> object:
        return asyncio.get_running_loop()

    async def main() -> None:
        await engine.start_async()
        found = await asyncio.to_thread(engine.result_of, which)
        assert found is asyncio.get_running_loop()
        with pytest.raises(WouldDeadlock, match=r"engine\.result_of"):
            engine.result_of(which)
        await engine.exit_async()

    asyncio.run(main())
    engine.start()
    assert engine.result_of(which) is engine.result_of(which)
    engine.exit()


def test_async_exit_on_the_engines_own_loop_completes(notes: list[str]) -> None:
    """The exit that an async listener awaits on the engine's loop ends with all listeners run."""
    engine = Engine()

    async def listen(word: str) -> None:
        await asyncio.sleep(0)
        notes.append(word)

    @engine.subscribe("work")
    async def work() -> None:
        await engine.exit_async()
        notes.append("work")

    @engine.subscribe("stop")
    async def stop() -> None:
        await listen("stop")

    @engine.subscribe("exit")
    async def exit_() -> None:
        await listen("exit")

    engine.start()
    assert Call(lambda: engine.publish("work")).end().error is None
    assert notes == ["stop", "exit", "work"]
    assert engine.state is State.EXITING


def test_cancelled_stop_goes_on_and_ends_cancelled(notes: list[str]) -> None:
    """A task that is cancelled while it stops the engine still runs the later listeners."""
    engine = Engine()

    async def main() -> None:
        reached = asyncio.Event()

        @engine.subscribe("stop")
        async def hold() -> None:
            reached.set()
            await asyncio.Event().wait()

        engine.subscribe("stop", noting(notes, "later"))
        await engine.start_async()
        task = asyncio.create_task(engine.stop_async())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.state is State.STOPPED

    asyncio.run(main())
    assert notes == ["later"]
