import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from actors import Call, Part, failed, flatten, names, noting, within

from engine_bridge import (
    Engine,
    State,
)
from engine_bridge.core.errors import ListenerError, ResourceError


def opened(engine: Engine, name: str, notes: list[str], state: Any = None) -> None:
    """Define a resource that notes its two halves."""

    def resource() -> Iterator[Any]:
        notes.append(f"{name} opens")
        yield state
        notes.append(f"{name} closes")

    engine.resource(resource)


def opened_async(engine: Engine, name: str, notes: list[str], state: Any = None) -> None:
    """Define an async resource that notes its two halves."""

    async def resource() -> AsyncIterator[Any]:
        notes.append(f"{name} opens")
        yield state
        notes.append(f"{name} closes")

    engine.resource(resource)


DEFINE = [opened, opened_async]


def live(engine: Engine, how: str, check: Callable[[], object] = lambda: None) -> None:
    """Start, *check*, stop; by threads or on a loop."""

    async def on_a_loop() -> None:
        await engine.start_async()
        check()
        await engine.stop_async()

    if how == "loop":
        asyncio.run(on_a_loop())
    else:
        engine.start()
        check()
        engine.stop()


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_resources_open_in_order_and_close_in_reverse(how: str, notes: list[str]) -> None:
    """Sync and async, they open as defined and close the other way round, around all else."""
    engine = Engine()
    opened(engine, "a", notes)
    opened_async(engine, "b", notes)
    opened(engine, "c", notes)
    Part("part", notes).on(engine, "start", "stop")
    engine.subscribe("start", noting(notes, "early"), 39)
    engine.subscribe("stop", noting(notes, "before"), 89)
    engine.subscribe("stop", noting(notes, "after"), 91)
    for _ in range(2):
        notes.clear()
        live(engine, how)
        assert notes == [
            "early", "a opens", "b opens", "c opens", "part.start",
            "part.stop", "before", "c closes", "b closes", "a closes", "after",
        ]  # fmt: skip


@pytest.mark.parametrize("define", DEFINE)
@pytest.mark.parametrize("how", ["thread", "loop"])
def test_resource_state_is_the_lifespan_state(
    define: Callable[..., None], how: str, notes: list[str]
) -> None:
    """Mappings that resources yield become one; other values do not; it is gone after the stop."""
    engine = Engine()
    define(engine, "a", notes, {"a": 1, "both": "a"})
    define(engine, "b", notes, {"b": 2, "both": "b"})
    define(engine, "c", notes, object())
    seen: list[dict[str, Any]] = []
    live(engine, how, lambda: seen.append(engine.lifespan_state))
    assert seen == [{"a": 1, "b": 2, "both": "b"}]
    assert engine.lifespan_state == {}


@pytest.mark.parametrize("how", ["thread", "loop"])
@pytest.mark.parametrize("define", DEFINE)
def test_failing_resource_closes_those_that_opened(
    define: Callable[..., None], how: str, notes: list[str]
) -> None:
    """When one fails to open, those before it close in reverse, and those after never open."""
    engine = Engine()
    define(engine, "a", notes)
    define(engine, "b", notes)

    @engine.resource
    def broken() -> Iterator[None]:
        raise ValueError("cannot open")
        yield

    define(engine, "d", notes)
    error = Call(lambda: live(engine, how)).end().error
    assert names(flatten(error)) == ["ValueError"]
    assert notes == ["a opens", "b opens", "b closes", "a closes"]


@pytest.mark.parametrize("how", ["thread", "loop"])
@pytest.mark.parametrize("define", DEFINE)
def test_failing_close_keeps_no_other_from_closing(
    define: Callable[..., None], how: str, notes: list[str]
) -> None:
    """A resource that fails to close is told; all others close."""
    engine = Engine()
    define(engine, "a", notes)

    @engine.resource
    def broken() -> Iterator[None]:
        yield
        raise ValueError("cannot close")

    define(engine, "c", notes)
    error = Call(lambda: live(engine, how)).end().error
    assert names(flatten(error)) == ["ValueError"]
    assert notes == ["a opens", "c opens", "c closes", "a closes"]


def twice() -> Iterator[None]:
    """Yield once too often."""
    try:
        yield
        yield
    finally:
        CLOSED.append("twice")


async def twice_async() -> AsyncIterator[None]:
    """Yield once too often."""
    try:
        yield
        yield
    finally:
        CLOSED.append("twice_async")


def never() -> Iterator[None]:
    """Do not yield."""
    if CLOSED is None:
        yield


async def never_async() -> AsyncIterator[None]:
    """Do not yield."""
    if CLOSED is None:
        yield


CLOSED: list[str] = []


@pytest.mark.parametrize("resource", [twice, twice_async])
def test_resource_that_yields_twice_gets_a_sentence(resource: Callable[[], Any]) -> None:
    """The stop names it and says what it must do; the generator is closed."""
    engine = Engine()
    CLOSED.clear()
    engine.resource(resource)
    engine.start()
    group = failed(engine.stop)
    assert names(group.exceptions) == ["ResourceError"]
    assert str(group.exceptions[0]) == (
        f"the resource {resource.__name__} yielded twice; it must yield exactly once"
    )
    assert [resource.__name__] == CLOSED


@pytest.mark.parametrize("resource", [never, never_async])
def test_resource_that_does_not_yield_fails_the_start(resource: Callable[[], Any]) -> None:
    """The start names it and says what it must do."""
    engine = Engine()
    engine.resource(resource)
    group = failed(engine.start)
    assert isinstance(group.exceptions[0], ResourceError)
    assert "did not yield; it must yield exactly once" in str(group.exceptions[0])
    assert engine.state is State.STOPPED


@pytest.mark.parametrize("wrong", [len, lambda: [1], "resource", None])
def test_resource_that_is_no_generator_gets_a_sentence(wrong: Any) -> None:
    """What is not a generator function is refused where it is defined."""
    with pytest.raises(ListenerError, match="wants a generator function"):
        Engine().resource(wrong)


def test_resource_returns_the_function() -> None:
    """As a decorator it leaves the name bound to the function."""
    engine = Engine()

    def database() -> Iterator[None]:
        yield

    assert engine.resource(database) is database


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_async_resources_of_a_life_share_one_task(how: str) -> None:
    """All async resources are entered and left in one task of the loop, as task groups want it."""
    engine = Engine()
    tasks: list[object] = []

    async def resource() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            tasks.append(asyncio.current_task())
            yield
            tasks.append(asyncio.current_task())

    async def another() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    engine.resource(resource)
    engine.resource(another)
    live(engine, how)
    assert len(tasks) == 4
    assert len(set(tasks)) == 1


def test_exit_asked_for_while_a_resource_closes_follows(notes: list[str]) -> None:
    """The second half of an async resource is inside its transition: an exit there is put off."""
    engine = Engine()

    async def resource() -> AsyncIterator[None]:
        yield
        await engine.exit_async()
        engine.exit()
        notes.append("closed")

    engine.resource(resource)
    engine.subscribe("exit", noting(notes, "exit"))

    async def main() -> None:
        await engine.start_async()
        await engine.stop_async()

    within(lambda: asyncio.run(main()))
    assert notes == ["closed", "exit"]
    assert engine.state is State.EXITING


def test_cancelled_life_task_stops_the_engine(notes: list[str]) -> None:
    """When a task group in an async resource fails, its cancellation performs the stop."""
    engine = Engine()
    fail = asyncio.Event()

    async def child() -> None:
        await fail.wait()
        raise ValueError("a child fails")

    async def resource() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            yield
        notes.append("never")

    engine.resource(resource)
    Part("part", notes).on(engine, "start", "stop")

    async def main() -> None:
        await engine.start_async()
        fail.set()
        await asyncio.to_thread(engine.wait, State.STOPPED, 10)
        assert engine.state is State.STOPPED

    within(lambda: asyncio.run(main()))
    assert notes == ["part.start", "part.stop"]
