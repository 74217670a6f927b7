"""`with engine:` and its kin."""

import asyncio
import gc
import threading
from functools import partial

import pytest
from actors import ALL, Call, Part, within

from engine_bridge import (
    ChannelFailures,
    Engine,
    EngineError,
    StartAborted,
    State,
)
from engine_bridge.core.door import applications, engine_of


def test_with_means_start_and_exit(notes: list[str]) -> None:
    """`with engine:` starts it and exits it, also when the block fails."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)
    with engine as entered:
        assert entered is engine
        assert engine.state is State.STARTED
    assert notes == ["part.start", "part.stop", "part.exit"]
    with pytest.raises(ZeroDivisionError), engine:
        notes.append(str(1 / 0))
    notes[:3] = []
    assert notes == ["part.start", "part.stop", "part.exit"]


def test_async_with_means_start_and_exit(notes: list[str]) -> None:
    """`async with engine:` does it on the running loop."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)

    async def main() -> None:
        async with engine as entered:
            assert entered is engine
            assert engine.state is State.STARTED

    asyncio.run(main())
    assert notes == ["part.start", "part.stop", "part.exit"]


def test_door_that_finds_it_started_leaves_it_alone(notes: list[str]) -> None:
    """Who did not start the engine does not end it."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)
    engine.start()
    with engine:
        pass
    assert engine.state is State.STARTED
    assert notes == ["part.start"]
    engine.exit()


def test_nested_doors_end_with_the_outermost(notes: list[str]) -> None:
    """Of doors within doors, of any kind, the one that started the engine ends it."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)

    async def main() -> None:
        async with engine:
            async with engine.lifespan():
                pass
            async with engine:
                pass
            assert engine.state is State.STARTED

    asyncio.run(main())
    assert notes == ["part.start", "part.stop", "part.exit"]
    notes.clear()
    with engine:
        with engine:
            pass
        assert engine.state is State.STARTED
    assert notes == ["part.start", "part.stop", "part.exit"]


def test_doors_of_two_threads_do_not_mix() -> None:
    """A thread that found the engine STARTED and stays longer neither ends it nor keeps it."""
    engine = Engine()
    entered, left = threading.Event(), threading.Event()

    def visit() -> None:
        with engine:
            entered.set()
            assert left.wait(10)

    with engine:
        visitor = Call(visit)
        assert entered.wait(10)
    assert engine.state is State.EXITING
    left.set()
    assert visitor.end().error is None
    assert engine.state is State.EXITING


def test_doors_of_two_tasks_do_not_mix() -> None:
    """A task that found the engine STARTED and leaves later does not decide its end."""
    engine = Engine()

    async def main() -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def visit() -> None:
            async with engine:
                entered.set()
                await left.wait()

        async with engine:
            task = asyncio.create_task(visit())
            await entered.wait()
        assert engine.state is State.EXITING
        left.set()
        await task

    asyncio.run(main())


def test_door_whose_start_fails_is_not_open(notes: list[str]) -> None:
    """A failing start comes out of `with`; its block does not run, and nothing is left to end."""
    engine = Engine()
    Part("part", notes, {"start": ValueError()}).on(engine, *ALL)
    with pytest.raises(ChannelFailures), engine:
        notes.append("block")
    assert notes == ["part.start"]
    assert engine.state is State.STOPPED


def test_door_of_a_start_that_asked_to_exit_is_not_open(notes: list[str]) -> None:
    """Where a start listener asked for the exit the block does not run."""
    engine = Engine()
    engine.subscribe("start", engine.exit)
    with pytest.raises(StartAborted), engine:
        notes.append("block")
    assert notes == []
    assert engine.state is State.EXITING


def test_lifespan_turns_system_exit_into_an_error() -> None:
    """SystemExit would end the application's loop; as a lifespan it fails the startup instead."""
    engine = Engine()
    engine.subscribe("start", Part("part", [], {"start": SystemExit(3)}).start)

    async def main() -> None:
        async with engine.lifespan():
            pass

    with pytest.raises(EngineError, match="exit with 3"):
        within(lambda: asyncio.run(main()))


def test_lifespan_notes_whose_application_it_is() -> None:
    """An application's engine is found from its first lifespan on, the latest one counts."""

    class Application: ...

    app, other = Application(), Application()
    first, second = Engine(), Engine()

    async def open_lifespan(engine: Engine, app: object) -> None:
        async with engine.lifespan(app):
            pass

    assert engine_of(app) is None
    for engine in (first, second):
        within(partial(asyncio.run, open_lifespan(engine, app)))
        assert engine_of(app) is engine
    assert engine_of(other) is None
    assert any(found is app for found in applications())
    del second, engine
    gc.collect()
    assert engine_of(app) is None, "the application does not keep its engine alive"


@pytest.mark.parametrize("app", [[], object()], ids=["no hash", "no weak references"])
def test_lifespan_does_without_the_note_where_it_cannot_be_made(app: object) -> None:
    """An application that cannot be a weak key is served all the same."""
    engine = Engine()

    async def main() -> None:
        async with engine.lifespan(app):
            assert engine.door == "lifespan"

    within(lambda: asyncio.run(main()))
    assert engine_of(app) is None
