"""The ASGI lifespan, and on which loop and in which task async listeners run."""

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from fakeserver import LIMIT, Communicator, Lifespan, ask_asgi, ask_wsgi, lifespan, name_of, until
from processes import assert_once, attempt, get, publishes, run_server, wait_until
from starlette.testclient import TestClient

from engine_bridge import ChannelFailures, Engine, EngineError, StartAborted, State
from engine_bridge.core.aio import CANCEL_GRACE
from engine_bridge.core.errors import WouldDeadlock
from engine_bridge.frameworks import asgi
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.wsgi import EngineMiddleware as WSGIMiddleware

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


async def answer(scope: Scope, send: Send) -> None:
    """Answer a request with the state that it got."""
    body = repr(sorted(scope.get("state", {}).items())).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


# Applications, by what they make of a lifespan


async def ignoring(scope: Scope, receive: Receive, send: Send) -> None:
    """Return at once from whatever is no request."""
    if scope["type"] == "http":
        await answer(scope, send)


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """Do as Django does."""
    if scope["type"] != "http":
        raise ValueError(f"Django can only handle ASGI/HTTP connections, not {scope['type']}.")
    await answer(scope, send)


async def taking_all_for_requests(scope: Scope, receive: Receive, send: Send) -> None:
    """Never look at the type of the scope."""
    await answer(scope, send)


class RefusingAsgi2:
    def __init__(self, scope: Scope) -> None:
        if scope["type"] != "http":
            raise ValueError("no lifespan")
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        await answer(self.scope, send)


async def returning(scope: Scope, receive: Receive, send: Send) -> None:
    """Return once the server has asked for the startup, without an answer."""
    if scope["type"] != "http":
        await receive()
        return
    await answer(scope, send)


class Supporting:
    """An application that answers the lifespan, in a loop as the specification shows it."""

    def __init__(
        self,
        notes: list[str],
        *,
        state: dict[str, object] | None = None,
        startup: BaseException | str | None = None,
        shutdown: BaseException | str | None = None,
        endless: bool = False,
    ) -> None:
        self.notes = notes
        self.state = state or {}
        self.plans = {"startup": startup, "shutdown": shutdown}
        self.endless = endless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await answer(scope, send)
            return
        while True:
            kind = (await receive())["type"].removeprefix("lifespan.")
            self.notes.append(f"app {kind}")
            plan = self.plans[kind]
            if isinstance(plan, BaseException):
                raise plan
            if plan is not None:
                await send({"type": f"lifespan.{kind}.failed", "message": plan})
            else:
                scope["state"].update(self.state)
                await send({"type": f"lifespan.{kind}.complete"})
            if kind == "shutdown" and not self.endless:
                return


@pytest.mark.parametrize(
    "app", [ignoring, refusing, RefusingAsgi2, returning, taking_all_for_requests], ids=name_of
)
def test_lifespan_is_answered_for_applications_that_have_none(
    engine: Engine, heard: list[str], app: Any
) -> None:
    """Applications that ignore a lifespan or refuse it, as Django does, just work."""

    async def main() -> None:
        middleware = EngineMiddleware(app, engine)
        async with lifespan(middleware):
            assert engine.door == "lifespan"
            assert (await ask_asgi(middleware)).status == 200
        assert engine.state is State.EXITING

    asyncio.run(main())
    assert heard == ["start", "drain", "stop", "exit"]


@pytest.mark.parametrize("endless", [False, True])
def test_lifespan_is_forwarded_within_that_of_the_engine(
    engine: Engine, heard: list[str], endless: bool
) -> None:
    """The engine starts before the application and drains before it; it stops after it."""

    async def main() -> None:
        async with lifespan(EngineMiddleware(Supporting(heard, endless=endless), engine)):
            assert heard == ["start", "app startup"]

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


def test_lifespan_of_an_asgi_2_application_is_forwarded(engine: Engine, heard: list[str]) -> None:
    """An application of two calls has its lifespan as one of a single call has."""
    supporting = Supporting(heard)

    def app(scope: Scope) -> Callable[[Receive, Send], Awaitable[None]]:
        return functools.partial(supporting, scope)

    async def main() -> None:
        async with lifespan(EngineMiddleware(app, engine)):
            pass

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


def test_lifespan_scope_reaches_the_application_with_all_its_keys(engine: Engine) -> None:
    """The application sees what the server says of itself; the state is the server's own."""
    seen: list[Scope] = []
    given: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
    given |= {"state": {}, "own": object()}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def main() -> None:
        talk = Communicator(EngineMiddleware(app, engine), given)
        for kind in ("startup", "shutdown"):
            await talk.send_input({"type": f"lifespan.{kind}"})
            assert await talk.receive_output(LIMIT) == {"type": f"lifespan.{kind}.complete"}
        await talk.wait(LIMIT)

    asyncio.run(main())
    assert seen == [given]
    assert seen[0]["state"] is given["state"]


def test_unknown_event_of_the_lifespan_is_ignored(engine: Engine, heard: list[str]) -> None:
    """An event that later versions of the protocol may bring is no shutdown."""

    async def main() -> None:
        async with lifespan(EngineMiddleware(Supporting(heard), engine)) as server:
            for _ in range(2):
                await server.talk.send_input({"type": "lifespan.unknown"})
            await until(server.talk.input_queue.empty)  # it still listens, after the first
            assert engine.state is State.STARTED

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


@pytest.mark.parametrize("with_state", [True, False], ids=["server has state", "server has none"])
def test_lifespan_state_of_resources_and_application_reaches_each_request(
    engine: Engine, with_state: bool
) -> None:
    """What resources yield merges with what the application adds; the application's wins."""
    engine.resource(_yielding({"database": "engine's", "cache": "engine's"}))
    app = EngineMiddleware(Supporting([], state={"database": "application's", "own": 1}), engine)
    expected = [("cache", "engine's"), ("database", "application's"), ("own", 1)]

    async def main() -> None:
        async with lifespan(app, with_state=with_state) as server:
            if with_state:
                assert sorted(server.state.items()) == expected  # type: ignore[union-attr]  # it has one
                return
            for _ in range(2):
                assert (await ask_asgi(app)).body == repr(expected).encode()

    asyncio.run(main())


def test_lifespan_state_is_a_copy_for_each_request(engine: Engine) -> None:
    """Under a server without lifespan state a request cannot spoil the next one's state."""
    engine.resource(_yielding({"database": "connected"}))

    async def spoiling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(scope, send)
            scope["state"].clear()

    async def main() -> None:
        app = EngineMiddleware(spoiling, engine)
        async with lifespan(app, with_state=False):
            for _ in range(2):
                assert b"connected" in (await ask_asgi(app)).body

    asyncio.run(main())


def test_lifespan_off_gives_the_state_of_resources_too(engine: Engine) -> None:
    """A server that is told to leave lifespans alone still has resources in the state."""
    engine.resource(_yielding({"database": "connected"}))

    async def main() -> None:
        app = EngineMiddleware(ignoring, engine)
        for _ in range(2):
            assert b"connected" in (await ask_asgi(app)).body
        await engine.exit_async()

    asyncio.run(main())


def _yielding(state: dict[str, object]) -> Callable[[], AsyncIterator[dict[str, object]]]:
    async def resource() -> AsyncIterator[dict[str, object]]:
        yield state

    return resource


# Failures


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (LookupError("no database"), ["LookupError: no database", "raise plan"]),
        (SystemExit(3), ["SystemExit: 3", "raise plan"]),
        ("no database, says the application", ["no database, says the application"]),
        ("", ["no reason was given"]),
    ],
)
def test_lifespan_failure_of_the_application_is_reported_and_ends_the_engine(
    engine: Engine, heard: list[str], plan: BaseException | str, told: list[str]
) -> None:
    """An application that fails to start up, in whatever way, is told with its traceback."""

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard, startup=plan), engine))
        message = await server.startup()
        assert message["type"] == "lifespan.startup.failed"
        for text in told:
            assert text in message["message"]
        assert server.error is not None
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "stop", "exit"]


@pytest.mark.parametrize("when", ["startup", "shutdown"])
def test_lifespan_failure_is_raised_for_a_test_client(engine: Engine, when: str) -> None:
    """Starlette's TestClient, which looks at no message, gets what failed, and does not hang."""
    plans: dict[str, Any] = {when: LookupError("no database")}
    app = EngineMiddleware(Supporting([], **plans), engine)
    with pytest.raises(EngineError, match=f"raised in its lifespan {when}"), TestClient(app):
        assert when == "shutdown"


@pytest.mark.parametrize("late", ["startup", "shutdown"])
def test_lifespan_that_an_application_does_not_answer_is_logged_with_its_stack(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """An application that lets the server wait is named in the log, with the line it stands in."""

    def answer_within(seconds: float) -> None:
        monkeypatch.setattr(asgi, "SLOW_AFTER", seconds)

    async def dawdling(scope: Scope, receive: Receive, send: Send) -> None:
        if late == "shutdown":
            await receive()
            answer_within(0.01)
            await send({"type": "lifespan.startup.complete"})
        kind = (await receive())["type"]
        await until(lambda: caplog.text)  # stands here
        answer_within(60)  # a busy machine is slow as well
        await send({"type": f"{kind}.complete"})

    if late == "startup":
        answer_within(0.01)

    async def main() -> None:
        async with lifespan(EngineMiddleware(dawdling, engine)):
            pass

    asyncio.run(main())
    (told,) = caplog.messages
    assert f"has not answered its lifespan {late} for 0.01 s" in told
    assert "await until(lambda: caplog.text)  # stands here" in told


@pytest.mark.parametrize("error", [LookupError("no database"), SystemExit("no database")])
@pytest.mark.parametrize("is_async", [False, True])
def test_lifespan_failure_of_a_start_listener_is_reported_with_its_traceback(
    engine: Engine, heard: list[str], error: BaseException, is_async: bool
) -> None:
    """A start listener that fails, or asks to exit, becomes a startup failure and ends no loop."""

    def connect() -> None:
        raise error

    async def connect_async() -> None:
        raise error

    engine.subscribe("start", connect_async if is_async else connect, priority=60)

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard), engine))
        message = await server.startup()
        assert message["type"] == "lifespan.startup.failed"
        assert f"{type(error).__name__}: no database" in message["message"]
        assert "raise error" in message["message"]
        assert server.error is not None

    asyncio.run(main())
    assert heard == ["start", "stop"]
    assert engine.state is State.STOPPED


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (LookupError("no database"), ["LookupError: no database", "raise plan"]),
        (SystemExit(3), ["SystemExit: 3"]),
        ("cannot say goodbye", ["cannot say goodbye"]),
    ],
)
def test_lifespan_failure_of_the_applications_shutdown_is_reported(
    engine: Engine, heard: list[str], plan: BaseException | str, told: list[str]
) -> None:
    """An application that fails to shut down is told, and the engine exits all the same."""

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard, shutdown=plan), engine))
        await server.startup()
        message = await server.shutdown()
        assert message["type"] == "lifespan.shutdown.failed"
        for text in told:
            assert text in message["message"]

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


@pytest.mark.parametrize("error", [LookupError("no goodbye"), SystemExit("no goodbye")])
@pytest.mark.parametrize("channel", ["drain", "stop", "exit"])
def test_lifespan_failure_of_a_listener_at_the_end_is_reported(
    engine: Engine, heard: list[str], channel: str, error: BaseException
) -> None:
    """A listener that fails on the way out is told with its traceback; everything else has run."""

    @engine.subscribe(channel, priority=40)
    def fail() -> None:
        raise error

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard), engine))
        await server.startup()
        message = await server.shutdown()
        assert message["type"] == "lifespan.shutdown.failed"
        assert f"{type(error).__name__}: no goodbye" in message["message"]
        assert "raise error" in message["message"]

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


def test_lifespan_failures_of_both_sides_are_reported_together(engine: Engine) -> None:
    """When the application and the engine fail at the end, both tracebacks are told."""

    @engine.subscribe("stop")
    def fail() -> None:
        raise LookupError("the engine's")

    async def main() -> None:
        app = Supporting([], shutdown=LookupError("the application's"))
        server = Lifespan(EngineMiddleware(app, engine))
        await server.startup()
        message = await server.shutdown()
        assert "LookupError: the engine's" in message["message"]
        assert "LookupError: the application's" in message["message"]

    asyncio.run(main())


def test_lifespan_that_is_cancelled_ends_application_and_engine(
    engine: Engine, heard: list[str]
) -> None:
    """A server that only cancels the lifespan, or a loop that ends, gets the whole shutdown."""

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard), engine))
        await server.startup()
        server.talk.future.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server.talk.future

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


def test_lifespan_that_is_cancelled_at_its_end_completes_it(
    engine: Engine, heard: list[str]
) -> None:
    """A server that loses patience with a slow drain still has application and engine ended."""
    draining = asyncio.Event()

    @engine.subscribe("drain")
    async def slow() -> None:
        draining.set()
        await asyncio.Event().wait()

    async def main() -> None:
        server = Lifespan(EngineMiddleware(Supporting(heard), engine))
        await server.startup()
        await server.talk.send_input({"type": "lifespan.shutdown"})
        await draining.wait()
        server.talk.future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server.talk.future

    asyncio.run(main())
    assert heard == ["start", "app startup", "drain", "app shutdown", "stop", "exit"]


@pytest.mark.parametrize("app", [ignoring, Supporting([])], ids=name_of)
def test_lifespan_on_a_loop_that_ends_exits(
    engine: Engine, heard: list[str], caplog: pytest.LogCaptureFixture, app: Any
) -> None:
    """The end of `asyncio.run` cancels everything at once; the engine exits nevertheless."""

    async def main() -> None:
        kept.append(Lifespan(EngineMiddleware(app, engine)))
        await kept[0].startup()

    kept: list[Lifespan] = []
    since = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - since < CANCEL_GRACE, "two tasks waited for each other"
    assert caplog.messages == []
    assert engine.state is State.EXITING
    assert heard == ["start", "drain", "stop", "exit"]


def test_lifespan_that_is_cancelled_during_the_startup_undoes_it(
    engine: Engine, heard: list[str]
) -> None:
    """A server that gives up on a slow application's startup leaves neither it nor the engine."""
    cancelled: list[str] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise

    async def main() -> None:
        server = Lifespan(EngineMiddleware(slow, engine))
        starting = asyncio.create_task(server.startup())
        await waiting.wait()
        starting.cancel()
        server.talk.future.cancel()
        await asyncio.wait({starting, server.talk.future})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    waiting = asyncio.Event()
    asyncio.run(main())
    assert cancelled == ["slow"]
    assert heard == ["start", "drain", "stop", "exit"]


# On which loop, in which task


def test_async_listeners_run_on_the_applications_loop(engine: Engine) -> None:
    """From the start to the exit async listeners run on the loop of the lifespan."""
    loops: set[object] = set()
    for channel in ("start", "drain", "stop", "exit"):

        @engine.subscribe(channel)
        async def note() -> None:
            loops.add(asyncio.get_running_loop())

    async def main() -> None:
        async with lifespan(EngineMiddleware(ignoring, engine)):
            pass
        assert loops == {asyncio.get_running_loop()}

    asyncio.run(main())


def test_async_listeners_run_on_the_applications_loop_when_another_thread_stops(
    engine: Engine,
) -> None:
    """A stop in a worker thread, or by a signal, has async listeners run where they belong."""
    loops: list[object] = []

    @engine.subscribe("stop")
    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        await engine.start_async()
        await asyncio.to_thread(engine.stop)
        assert loops == [asyncio.get_running_loop()]
        await engine.exit_async()

    asyncio.run(main())


def test_async_listeners_run_on_the_engines_own_loop_under_wsgi(engine: Engine) -> None:
    """Without a loop of the application there is one, in a daemon thread, from start to stop."""
    places: list[tuple[object, str, bool]] = []
    for channel in ("start", "before_request", "stop"):

        @engine.subscribe(channel)
        async def note() -> None:
            thread = threading.current_thread()
            places.append((asyncio.get_running_loop(), thread.name, thread.daemon))

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    assert ask_wsgi(WSGIMiddleware(app, engine)).status == 200
    engine.stop()
    assert len(places) == 3
    assert len(set(places)) == 1
    assert places[0][1:] == ("engine loop", True)


TASK_GROUPS: dict[str, Callable[[], Any]] = {
    "asyncio": asyncio.TaskGroup,
    "anyio": anyio.create_task_group,
}


@pytest.fixture(params=sorted(TASK_GROUPS))
def task_group(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Return what opens a task group, of asyncio's and of anyio's."""
    return TASK_GROUPS[request.param]


def spawn(group: Any, function: Callable[[], Any]) -> None:
    """Start *function* in a task group of either kind."""
    if isinstance(group, asyncio.TaskGroup):
        group.create_task(function())
    else:
        group.start_soon(function)


@pytest.mark.parametrize("world", ["asgi", "wsgi"])
def test_task_group_in_a_resource_is_left_in_the_task_that_entered_it(
    engine: Engine, task_group: Callable[[], Any], world: str
) -> None:
    """An async resource may hold a task group open, on the application's loop and on our own."""
    tasks: list[object] = []
    ended: list[str] = []

    @engine.resource
    async def workers() -> AsyncIterator[None]:
        stop = asyncio.Event()

        async def work() -> None:
            await stop.wait()
            ended.append("worker")

        async with task_group() as group:
            tasks.append(asyncio.current_task())
            spawn(group, work)
            yield
            tasks.append(asyncio.current_task())
            stop.set()
        ended.append("group")

    @engine.resource
    async def within() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    async def main() -> None:
        async with lifespan(EngineMiddleware(ignoring, engine)):
            pass

    if world == "asgi":
        asyncio.run(main())
    else:
        with engine:
            pass
    assert len(tasks) == 4
    assert len(set(tasks)) == 1
    assert ended == ["worker", "group"]


@pytest.mark.parametrize("world", ["asgi", "wsgi"])
def test_task_group_whose_child_crashes_stops_the_engine(
    engine: Engine,
    heard: list[str],
    caplog: pytest.LogCaptureFixture,
    task_group: Callable[[], Any],
    world: str,
) -> None:
    """A resource whose background task has crashed stops the engine; its error is in the log."""
    crash: asyncio.Event
    loop: asyncio.AbstractEventLoop

    @engine.resource
    async def workers() -> AsyncIterator[None]:
        nonlocal crash, loop
        crash, loop = asyncio.Event(), asyncio.get_running_loop()

        async def work() -> None:
            await crash.wait()
            raise LookupError("the worker broke")

        async with task_group() as group:
            spawn(group, work)
            yield

    async def main() -> None:
        app = EngineMiddleware(ignoring, engine)
        server = Lifespan(app)
        await server.startup()
        assert (await ask_asgi(app)).status == 200
        crash.set()
        await until(lambda: engine.state is State.STOPPED)
        assert (await ask_asgi(app)).status == 503
        await server.shutdown()

    if world == "asgi":
        asyncio.run(main())
    else:
        engine.start()
        loop.call_soon_threadsafe(crash.set)
        assert engine.wait(State.STOPPED, 5)
        engine.exit()
    assert heard == ["start", "drain", "stop", "exit"]
    assert "the worker broke" in caplog.text


def test_task_group_whose_child_crashes_during_the_start_fails_it(
    engine: Engine, heard: list[str], task_group: Callable[[], Any]
) -> None:
    """What broke is what the start raises, though another resource was cancelled for it."""

    @engine.resource
    async def workers() -> AsyncIterator[None]:
        async def work() -> None:
            await entering.wait()
            raise LookupError("the worker broke")

        async with task_group() as group:
            spawn(group, work)
            yield

    @engine.resource
    async def slow() -> AsyncIterator[None]:
        entering.set()
        await asyncio.Event().wait()
        yield

    async def main() -> None:
        with pytest.raises(ChannelFailures) as caught:
            await engine.start_async()
        assert caught.value.subgroup(lambda exc: isinstance(exc, LookupError))
        assert engine.state is State.STOPPED

    entering = asyncio.Event()
    asyncio.run(main())
    assert heard == ["stop"]


def test_end_of_asyncio_run_stops_on_the_right_loop(engine: Engine, heard: list[str]) -> None:
    """A program whose loop ends with a started engine has it stopped on that loop, not later."""
    loops: list[object] = []

    @engine.resource
    async def database() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.Event().wait())
            loops.append(asyncio.get_running_loop())
            yield
            loops.append(asyncio.get_running_loop())
            task.cancel()

    @engine.subscribe("stop")
    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    asyncio.run(engine.start_async())
    assert engine.state is State.STOPPED
    assert heard == ["start", "drain", "stop"]
    assert len(loops) == 3
    assert len(set(loops)) == 1


def test_loop_that_is_gone_is_replaced_with_a_warning(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the application's loop runs no more, async stop listeners run on a fresh one."""
    loops: list[asyncio.AbstractEventLoop] = []

    @engine.subscribe("stop")
    async def note() -> None:
        loops.append(asyncio.get_running_loop())

    with asyncio.Runner() as runner:
        runner.run(engine.start_async())
        with caplog.at_level(logging.WARNING, "engine_bridge"):
            engine.stop()
        assert len(loops) == 1
        assert loops[0] is not runner.get_loop()
    assert any("loop is gone" in text for text in caplog.messages)


# Calls that would block the loop on which they wait


@pytest.mark.parametrize("name", ["stop", "exit", "drain"])
def test_sync_call_on_the_applications_loop_says_what_to_call(engine: Engine, name: str) -> None:
    """A transition that is asked for by a blocking call on the loop's thread is refused."""

    async def main() -> None:
        await engine.start_async()
        with pytest.raises(WouldDeadlock, match=rf"engine\.{name}\(\).*await engine\.{name}_async"):
            getattr(engine, name)()
        assert engine.ready
        await engine.exit_async()

    asyncio.run(main())


def test_sync_publish_to_an_async_listener_on_its_loop_says_what_to_call(engine: Engine) -> None:
    """A blocking publish to an async listener is refused on its loop, before anybody is called."""
    calls: list[str] = []

    @engine.subscribe("news", priority=10)
    def first() -> None:
        calls.append("first")

    @engine.subscribe("news")
    async def listen() -> str:
        calls.append("listen")
        return "heard"

    async def main() -> None:
        await engine.start_async()
        with pytest.raises(WouldDeadlock, match=r"'news'.*listen.*await engine\.publish_async"):
            engine.publish("news")
        assert calls == []
        assert await engine.publish_async("news") == [None, "heard"]
        assert await asyncio.to_thread(engine.publish, "news") == [None, "heard"]
        await engine.exit_async()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["stop", "exit"])
def test_sync_call_on_the_engines_own_loop_says_what_to_call(engine: Engine, name: str) -> None:
    """Background tasks under WSGI run on the engine's loop; a blocking call there is refused."""
    results: list[object] = []
    asked = threading.Event()

    @engine.subscribe("start")
    async def spawn_task() -> None:
        kept.append(asyncio.create_task(work()))

    async def work() -> None:
        await asyncio.to_thread(started.wait)
        try:
            getattr(engine, name)()
        except WouldDeadlock as exc:
            results.append(exc)
        asked.set()

    @engine.subscribe("stop")
    async def stop() -> None: ...

    kept: list[object] = []
    started = threading.Event()
    engine.start()
    started.set()
    assert asked.wait(5)
    assert len(results) == 1
    assert engine.state is State.STARTED


def test_task_on_the_engines_own_loop_can_await_the_exit(engine: Engine, heard: list[str]) -> None:
    """A background task under WSGI may await `exit_async`, though its loop ends with that."""

    @engine.subscribe("start")
    async def spawn_task() -> None:
        kept.append(asyncio.create_task(work()))

    async def work() -> None:
        await asyncio.to_thread(started.wait)
        await engine.exit_async()

    @engine.subscribe("exit")
    async def exit_listener() -> None:
        heard.append("async exit")

    kept: list[object] = []
    started = threading.Event()
    engine.start()
    started.set()
    assert engine.wait(State.EXITING, 5)
    wait_until(lambda: not engine.in_transition, 5)
    assert heard == ["start", "drain", "stop", "exit", "async exit"]


# Limits and cancellation of async listeners


def test_cancelled_start_async_rolls_back_and_propagates(engine: Engine, heard: list[str]) -> None:
    """A start that is cancelled lets the listener tidy up, stops what started, and raises."""
    reached = asyncio.Event()

    @engine.subscribe("start", priority=60)
    async def slow() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            heard.append("slow tidied up")

    async def main() -> None:
        starting = asyncio.create_task(engine.start_async())
        await reached.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert engine.state is State.STOPPED
        assert heard == ["start", "slow tidied up", "stop"]

    asyncio.run(main())


def test_cancelled_start_async_leaves_the_resources_that_were_entered(
    engine: Engine, heard: list[str]
) -> None:
    """Resources that had been entered are left, one that was being entered is cancelled."""
    reached = asyncio.Event()

    @engine.resource
    async def first() -> AsyncIterator[None]:
        async with asyncio.TaskGroup():
            heard.append("enter first")
            yield
            heard.append("leave first")

    @engine.resource
    async def second() -> AsyncIterator[None]:
        reached.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            heard.append("cancelled second")

    async def main() -> None:
        starting = asyncio.create_task(engine.start_async())
        await reached.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert engine.state is State.STOPPED

    asyncio.run(main())
    assert heard == ["enter first", "cancelled second", "stop", "leave first"]


@pytest.mark.parametrize("kind", ["listener", "resource"])
def test_exit_from_another_thread_cancels_an_async_start(
    engine: Engine, heard: list[str], kind: str
) -> None:
    """`exit()` during an async start cancels the listener; the start raises StartAborted."""
    reached = threading.Event()

    async def slow() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def resource() -> AsyncIterator[None]:
        await slow()
        yield

    if kind == "listener":
        engine.subscribe("start", slow, priority=60)
    else:
        engine.resource(resource)

    async def main() -> None:
        with pytest.raises(StartAborted):
            await engine.start_async()
        await asyncio.to_thread(leaving.join)

    def leave() -> None:
        assert reached.wait(5)
        engine.exit()

    leaving = threading.Thread(target=leave)
    leaving.start()
    asyncio.run(main())
    assert engine.state is State.EXITING
    assert [note for note in heard if note != "start"] == ["cancelled", "stop", "exit"]


@pytest.mark.parametrize("world", ["asgi", "wsgi"])
def test_async_listener_past_its_budget_is_cancelled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, world: str
) -> None:
    """An async listener that outlasts its budget is cancelled, may tidy up, and is named."""
    for name in ("aio.CANCEL_GRACE", "life.OTHER_LOOP_GRACE"):
        monkeypatch.setattr(f"engine_bridge.core.{name}", 10.0)  # a loop may be starved for long
    engine = Engine(stop_timeout=0.2)
    heard: list[str] = []

    @engine.subscribe("start")
    async def have_a_loop() -> None: ...

    @engine.subscribe("stop")
    async def lingering() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            heard.append("tidied up")

    engine.subscribe("stop", lambda: heard.append("next"), priority=60)

    async def main() -> None:
        await engine.start_async()
        with pytest.raises(ChannelFailures):
            await engine.stop_async()
        assert engine.alive  # it was cancelled, nothing is stuck
        heard.clear()
        await engine.start_async()
        await engine.exit_async()

    def start_and_exit() -> None:
        engine.start()
        engine.exit()

    with pytest.raises(ChannelFailures, match="lingering") as caught:
        asyncio.run(main()) if world == "asgi" else start_and_exit()
    assert "was cancelled" in str(caught.value.exceptions[0])
    assert "stop_timeout" in str(caught.value.exceptions[0])
    assert heard == ["tidied up", "next"]
    assert engine.state is State.EXITING
    assert "asyncio.Event().wait()" in caplog.text


def test_async_listener_that_swallows_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An async listener that will not be cancelled is named; the others run, the state moves on."""
    engine = Engine(stop_timeout=0.2)
    heard: list[str] = []
    release: asyncio.Event

    @engine.subscribe("stop")
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    engine.subscribe("stop", lambda: heard.append("next"), priority=60)

    async def main() -> None:
        nonlocal release
        release = asyncio.Event()
        await engine.start_async()
        with pytest.raises(ChannelFailures, match="stubborn"):
            await engine.stop_async()
        assert heard == ["next"]
        assert engine.state is State.STOPPED
        assert not engine.alive
        release.set()
        await engine.exit_async()

    asyncio.run(main())
    assert "stubborn" in caplog.text
    assert "release.wait()" in caplog.text


# The same, under real servers


ASGI = """
import asyncio
from contextlib import suppress
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware

crash = asyncio.Event()

async def work():
    await crash.wait()
    raise LookupError("the worker broke")

@engine.resource
async def workers():
    task = asyncio.current_task()
    async with asyncio.TaskGroup() as group:
        worker = group.create_task(work())
        yield {"greeting": "hello from the state"}
        record("left", same_task=asyncio.current_task() is task)
        worker.cancel()

def note(channel):
    async def listener():
        record(channel, loop=id(asyncio.get_running_loop()))
    engine.subscribe(channel, listener)

for channel in ("start", "drain", "stop", "exit"):
    note(channel)

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("only requests")
    if scope["path"] == "/crash":
        crash.set()
    record("request", loop=id(asyncio.get_running_loop()))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["state"]["greeting"].encode()})

app = EngineMiddleware(app)
"""

UVICORN = [sys.executable, "-m", "uvicorn", "--port={port}", "app:app"]


@pytest.mark.parametrize("option", ["--lifespan=on", "--lifespan=off"])
def test_uvicorn_runs_async_listeners_on_its_own_loop(tmp_path: Path, option: str) -> None:
    """Under uvicorn, with its lifespan or without, listeners and requests share one loop."""
    (tmp_path / "app.py").write_text(ASGI)
    with run_server([*UVICORN, option], cwd=tmp_path) as server:
        for _ in range(2):
            assert get(server.port).body == b"hello from the state"
        server.signal(15)
        server.wait_published("exit")
    assert_once(server, "start", "drain", "stop", "left", "exit", count=1)
    loops = {
        entry.facts["loop"]
        for entry in server.journal()
        if entry.channel in {"start", "request", "drain", "stop"}
    }
    assert len(loops) == 1
    [left] = [entry for entry in server.journal() if entry.channel == "left"]
    assert left.facts == {"same_task": True}


def test_uvicorn_answers_503_once_a_resource_has_crashed(tmp_path: Path) -> None:
    """A crashed task group stops the engine; uvicorn goes on, and its requests get 503."""
    (tmp_path / "app.py").write_text(ASGI)
    with run_server(UVICORN, cwd=tmp_path, ready=publishes("start")) as server:
        assert get(server.port, "/crash").status == 200
        server.wait_published("stop")
        wait_until(lambda: attempt(server.port).status == 503)
        assert int(attempt(server.port).headers["retry-after"]) >= 1
        assert "the worker broke" in server.output()
    assert_once(server, "start", "drain", "stop", "exit", count=1)


def test_uvicorn_reports_a_failing_start_and_leaves(tmp_path: Path) -> None:
    """Uvicorn prints the traceback of a start listener that asks to exit, and leaves."""
    (tmp_path / "app.py").write_text(
        "import sys\n" + ASGI + "engine.subscribe('start', lambda: sys.exit('no database'))\n"
    )
    with run_server(UVICORN, cwd=tmp_path, ready=lambda server: True) as server:
        assert server.wait_exit() == 3
        assert "SystemExit: no database" in server.output()
        assert "Application startup failed" in server.output()
    assert server.published()[server.pid] == ["start", "stop", "left", "exit"]


WSGI = """
import asyncio, threading
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.wsgi import EngineMiddleware

@engine.resource
async def workers():
    task = asyncio.current_task()
    async with asyncio.TaskGroup() as group:
        worker = group.create_task(asyncio.Event().wait())
        yield
        record("left", same_task=asyncio.current_task() is task)
        worker.cancel()

def note(channel):
    async def listener():
        loop = id(asyncio.get_running_loop())
        record(channel, loop=loop, thread=threading.current_thread().name)
    engine.subscribe(channel, listener)

for channel in ("start", "before_request", "drain", "stop", "exit"):
    note(channel)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

app = EngineMiddleware(app)
"""


def test_waitress_has_async_listeners_run_on_the_engines_loop(tmp_path: Path) -> None:
    """Under waitress async listeners share the engine's own loop, from start to stop."""
    (tmp_path / "app.py").write_text(WSGI)
    command = [sys.executable, "-m", "waitress", "--listen=127.0.0.1:{port}", "app:app"]
    with run_server(command, cwd=tmp_path) as server:
        assert get(server.port).body == b"hello"
        server.signal(15)
        server.wait_exit()
    assert_once(server, "start", "before_request", "drain", "stop", "left", "exit", count=1)
    entries = {entry.channel: entry.facts for entry in server.journal()}
    assert entries["left"] == {"same_task": True}
    assert {entries[channel]["thread"] for channel in ("start", "before_request", "stop")} == {
        "engine loop"
    }
    loops = {entries[channel]["loop"] for channel in ("start", "before_request", "drain", "stop")}
    assert len(loops) == 1
