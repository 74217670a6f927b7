"""Draining: from being told to go until the last request is answered."""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fakeserver import Answering, Lifespan, ask_asgi, ask_wsgi, lifespan, until
from processes import (
    assert_once,
    open_stream,
    publishes,
    run_server,
    start_request,
    start_script,
)
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from engine_bridge import Engine, State
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.wsgi import EngineMiddleware as WSGIMiddleware

LIMIT = 5.0


def returning(*pieces: bytes) -> Any:
    """Return a WSGI application that answers with *pieces*."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter(pieces)

    return app


@contextlib.contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[None]:
    """Run *function* in a thread; it must have returned by the end."""
    thread = threading.Thread(target=function)
    thread.start()
    yield
    thread.join(LIMIT)
    assert not thread.is_alive()


# Hearing of it


def test_draining_is_heard_by_threads_tasks_and_whoever_looks(engine: Engine) -> None:
    """`engine.draining` is false until the drain, wakes threads and tasks, and stays true."""
    woken: list[str] = []

    async def main() -> None:
        await engine.start_async()
        draining = engine.draining
        assert not draining.is_set()
        assert not draining.wait(0)
        assert not await draining.wait_async(0)
        task = asyncio.create_task(draining.wait_async())
        with in_thread(lambda: woken.append(str(draining.wait(LIMIT)))):
            await asyncio.sleep(0)
            await engine.drain_async()
            assert await task is True
        assert woken == ["True"]
        assert draining.is_set()
        assert await draining.wait_async()
        assert draining.wait()
        assert engine.state is State.STARTED
        assert not engine.ready
        assert engine.alive
        await engine.exit_async()
        assert draining.is_set()

    asyncio.run(main())


def test_draining_ends_with_the_life(engine: Engine) -> None:
    """An engine that starts again does not drain."""
    engine.start()
    engine.drain()
    assert engine.draining.is_set()
    engine.stop()
    engine.start()
    assert not engine.draining.is_set()
    assert engine.ready


def test_draining_that_is_awaited_no_more_is_forgotten(engine: Engine) -> None:
    """A task that was cancelled while it waited, or whose loop is gone, disturbs no drain."""

    async def main() -> None:
        task = asyncio.create_task(engine.draining.wait_async())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await engine.draining.wait_async(0)
        assert engine.draining._calls == []

    engine.start()
    asyncio.run(main())
    loop = asyncio.new_event_loop()
    waiting = engine.draining.wait_async()
    loop.run_until_complete(_begin(waiting))
    stream: Any = engine.until_drain(_endless())
    assert loop.run_until_complete(anext(stream)) == 0
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    engine.drain()
    assert engine.draining.is_set()
    waiting.close()
    with contextlib.suppress(StopIteration):
        stream.aclose().send(None)


async def _begin(coroutine: Any) -> None:
    """Take *coroutine* to its first suspension."""
    coroutine.send(None)


async def _endless(closed: list[str] | None = None) -> AsyncIterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        if closed is not None:
            closed.append("closed")


# Streams that would never end


@pytest.mark.parametrize("where", ["here", "in a thread"])
def test_until_drain_ends_a_stream_that_waits(engine: Engine, where: str) -> None:
    """A stream that waits for its next event ends at the drain, and its iterator is closed."""
    notes: list[object] = []

    async def events() -> AsyncIterator[str]:
        task = asyncio.current_task()
        try:
            with anyio.CancelScope():
                yield "first"
                await asyncio.Event().wait()
        finally:
            notes.append(asyncio.current_task() is task)

    async def main() -> None:
        await engine.start_async()
        received: list[str] = []

        async def consume() -> None:
            async for event in engine.until_drain(events()):
                received.append(event)  # noqa: PERF401  # the test looks at it meanwhile

        consuming = asyncio.create_task(consume())
        await until(lambda: received)
        if where == "here":
            await engine.drain_async()
        else:
            await asyncio.to_thread(engine.drain)
        async with asyncio.timeout(LIMIT):
            await consuming
        assert not consuming.cancelling()
        assert received == ["first"]
        assert notes == [True]
        await engine.exit_async()

    asyncio.run(main())


def test_until_drain_ends_a_stream_that_is_never_idle(engine: Engine) -> None:
    """A stream whose iterator always has a next event ends at the drain, and closes it."""
    closed: list[str] = []

    async def main() -> None:
        await engine.start_async()
        received = 0
        async for number in engine.until_drain(_endless(closed)):
            received += 1
            if number == 3:
                await engine.drain_async()
        assert received == 4
        assert closed == ["closed"]
        await engine.exit_async()

    asyncio.run(main())


def test_until_drain_lets_an_iterator_say_goodbye(engine: Engine) -> None:
    """An iterator that answers its cancellation with a last event has it delivered."""

    async def events() -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield "goodbye"

    async def main() -> None:
        await engine.start_async()
        received: list[str] = []
        async for event in engine.until_drain(events()):
            received.append(event)
            asyncio.get_running_loop().call_soon(
                lambda: tasks.append(asyncio.ensure_future(engine.drain_async()))
            )
        assert received == ["first", "goodbye"]
        await asyncio.gather(*tasks)
        await engine.exit_async()

    tasks: list[asyncio.Future[None]] = []
    asyncio.run(main())


def test_until_drain_begins_nothing_while_draining(engine: Engine) -> None:
    """A stream that is asked for during the drain ends at once."""

    async def main() -> None:
        await engine.start_async()
        await engine.drain_async()
        assert [event async for event in engine.until_drain(_endless())] == []
        await engine.exit_async()

    asyncio.run(main())


def test_until_drain_ends_with_its_iterator(engine: Engine) -> None:
    """A stream that ends by itself ends, also if it is an iterator without `aclose`."""

    class Two:
        number = 0

        def __aiter__(self) -> "Two":
            return self

        async def __anext__(self) -> int:
            if self.number == 2:
                raise StopAsyncIteration
            self.number += 1
            return self.number

    async def main() -> None:
        await engine.start_async()
        assert [number async for number in engine.until_drain(Two())] == [1, 2]
        await engine.exit_async()

    asyncio.run(main())


@pytest.mark.parametrize("error", [LookupError("its own"), TimeoutError("its own")])
@pytest.mark.parametrize("draining", [False, True])
def test_until_drain_passes_errors_of_the_iterator_through(
    engine: Engine, error: Exception, draining: bool
) -> None:
    """What an iterator raises is raised as it is, its own TimeoutError included."""

    async def events() -> AsyncIterator[int]:
        yield 1
        if draining:
            engine.draining.set()  # no step of the loop follows before the error
        raise error

    async def main() -> None:
        await engine.start_async()
        with pytest.raises(type(error)) as caught:
            async for _ in engine.until_drain(events()):
                pass
        assert caught.value is error
        await engine.exit_async()

    asyncio.run(main())


def test_until_drain_passes_cancellation_through_and_closes_the_iterator(engine: Engine) -> None:
    """A client that goes away cancels the stream, not merely ends it."""
    closed: list[str] = []

    async def events() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.append("closed")

    async def main() -> None:
        await engine.start_async()
        received: list[int] = []

        async def consume() -> None:
            async for number in engine.until_drain(events()):
                received.append(number)  # noqa: PERF401  # likewise

        consuming = asyncio.create_task(consume())
        await until(lambda: received)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
        assert closed == ["closed"]
        await engine.exit_async()

    asyncio.run(main())


# Waiting for requests


def test_stop_waits_for_the_requests_in_flight(engine: Engine, heard: list[str]) -> None:
    """A stop has published `drain` and stays STARTED until the last request is answered."""
    app = WSGIMiddleware(returning(b"one", b"two"), engine)
    requests = [Answering(app) for _ in range(3)]
    with in_thread(engine.stop):
        assert engine.draining.wait(LIMIT)
        for request in requests:
            assert engine.state is State.STARTED
            assert b"".join(request.body) == b"onetwo"
            assert engine.state is State.STARTED
            request.close()
    assert heard == ["start", "drain", "stop"]
    assert engine.state is State.STOPPED


def test_stop_waits_no_longer_than_drain_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """Requests that outlast drain_timeout are given up; the log says how many."""
    engine = Engine(drain_timeout=0.05)
    app = WSGIMiddleware(returning(b"one"), engine)
    # Elsewhere than here: a request of this thread's own would not be waited for.
    with ThreadPoolExecutor(1) as pool:
        requests = list(pool.map(Answering, [app, app]))
    with caplog.at_level(logging.WARNING, "engine_bridge"):
        engine.exit()
    assert engine.state is State.EXITING
    assert engine.in_flight == 2
    assert any("2 still in flight" in text for text in caplog.messages)
    for request in requests:
        request.close()
    assert engine.in_flight == 0


def test_stop_async_lets_the_requests_of_its_loop_finish(engine: Engine) -> None:
    """A stop on the application's loop does not block the requests that it waits for."""

    async def main() -> None:
        go_on = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await go_on.wait()
            await send({"type": "http.response.body", "body": b"finished"})

        asking = asyncio.create_task(ask_asgi(EngineMiddleware(app, engine)))
        await until(lambda: engine.in_flight == 1)
        stopping = asyncio.create_task(engine.exit_async())
        assert await engine.draining.wait_async(LIMIT)
        assert not stopping.done()
        go_on.set()
        assert (await asking).body == b"finished"
        await stopping
        assert engine.state is State.EXITING

    asyncio.run(main())


@pytest.mark.parametrize("name", ["stop", "exit"])
def test_wsgi_request_that_stops_the_engine_is_not_waited_for(engine: Engine, name: str) -> None:
    """A request may stop the engine itself: its own end is not waited for, others' are."""
    reached = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        reached.set()
        getattr(engine, name)()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"stopped"])

    other = Answering(WSGIMiddleware(returning(b"other"), engine))
    replies: list[object] = []
    with in_thread(lambda: replies.append(ask_wsgi(WSGIMiddleware(app, engine)))):
        assert reached.wait(LIMIT)
        assert engine.draining.wait(LIMIT)
        assert engine.state is State.STARTED
        other.close()
    assert replies == [(200, {"content-type": "text/plain"}, b"stopped")]
    assert engine.state is (State.STOPPED if name == "stop" else State.EXITING)


def test_two_requests_that_stop_the_engine_do_not_wait_for_each_other(
    engine: Engine, heard: list[str]
) -> None:
    """Of two requests that stop the engine at once neither waits for the other's end."""
    both = threading.Barrier(2)

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        both.wait(LIMIT)
        engine.exit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"stopped"])

    middleware = WSGIMiddleware(app, engine)
    with in_thread(lambda: ask_wsgi(middleware)), in_thread(lambda: ask_wsgi(middleware)):
        pass
    assert heard == ["start", "drain", "stop", "exit"]


async def stop_in_task(engine: Engine) -> None:
    """Stop on the loop."""
    await engine.stop_async()


async def stop_in_subtask(engine: Engine) -> None:
    """Stop in a task that the request has made."""
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.stop_async())


async def stop_by_anyio(engine: Engine) -> None:
    """Stop in one of anyio's worker threads."""
    await anyio.to_thread.run_sync(engine.stop)


async def stop_by_starlette(engine: Engine) -> None:
    """Stop in a thread of Starlette's pool."""
    await run_in_threadpool(engine.stop)


async def stop_by_asyncio(engine: Engine) -> None:
    """Stop in a thread of the loop's executor."""
    await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize(
    "stop",
    [stop_in_task, stop_in_subtask, stop_by_anyio, stop_by_starlette, stop_by_asyncio],
    ids=lambda function: function.__name__,
)
def test_asgi_request_that_stops_the_engine_is_not_waited_for(
    engine: Engine, heard: list[str], stop: Callable[[Engine], Any]
) -> None:
    """A request may stop the engine, on the loop or in whatever thread the frameworks use."""

    async def show(request: Request) -> PlainTextResponse:
        await stop(engine)
        return PlainTextResponse(str(engine.state))

    async def main() -> None:
        app = EngineMiddleware(Starlette(routes=[Route("/", show)]), engine)
        async with asyncio.timeout(LIMIT - 1):
            assert (await ask_asgi(app)).body == b"STOPPED"
        await engine.exit_async()

    asyncio.run(main())
    assert heard == ["start", "drain", "stop", "exit"]


def test_starlettes_sync_endpoint_that_stops_the_engine_is_not_waited_for(
    engine: Engine, heard: list[str]
) -> None:
    """A `def` endpoint runs in a worker thread; it may call `engine.exit()`."""

    def show(request: Request) -> PlainTextResponse:
        engine.exit()
        return PlainTextResponse(str(engine.state))

    async def main() -> None:
        app = EngineMiddleware(Starlette(routes=[Route("/", show)]), engine)
        async with lifespan(app):
            assert (await ask_asgi(app)).body == b"EXITING"
            assert (await ask_asgi(app)).status == 503

    asyncio.run(main())
    assert heard == ["start", "drain", "stop", "exit"]


# Once, and before the stop


def test_drain_is_published_once_whatever_asks(engine: Engine) -> None:
    """A signal's drain, the lifespan's end and a dozen exits at once publish `drain` once."""
    order: list[str] = []

    @engine.subscribe("drain")
    async def drain() -> None:
        order.append("drain begins")
        await asyncio.sleep(0)
        order.append("drain ends")

    engine.subscribe("stop", lambda: order.append("stop"), priority=0)

    async def ignoring(scope: Any, receive: Any, send: Any) -> None: ...

    async def main() -> None:
        server = Lifespan(EngineMiddleware(ignoring, engine))
        await server.startup()
        calls = [engine.drain, engine.stop, engine.exit] * 4
        threads = [asyncio.to_thread(call) for call in calls]
        await asyncio.gather(*threads, engine.drain_async(), engine.exit_async())
        await server.shutdown()

    asyncio.run(main())
    assert order == ["drain begins", "drain ends", "stop"]


def test_drain_of_a_stopped_engine_is_nothing(engine: Engine, heard: list[str]) -> None:
    """There is nothing to drain before the start and after the stop."""
    engine.drain()
    engine.start()
    engine.stop()
    engine.drain()
    assert heard == ["start", "drain", "stop"]


def test_failing_drain_listener_does_not_keep_the_engine_from_stopping(
    engine: Engine, heard: list[str]
) -> None:
    """A `drain` listener that fails is told; the stop goes on."""

    @engine.subscribe("drain", priority=10)
    def fail() -> None:
        raise LookupError("no bus")

    engine.start()
    with pytest.raises(ExceptionGroup, match="no bus"):
        engine.stop()
    assert heard == ["start", "drain", "stop"]
    assert engine.state is State.STOPPED


def test_async_drain_runs_on_the_applications_loop_when_a_thread_asks(engine: Engine) -> None:
    """The drain that a signal begins in a thread of ours has async listeners where they belong."""
    loops: list[object] = []

    @engine.subscribe("drain")
    async def drain() -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        await engine.start_async()
        await asyncio.to_thread(engine.drain)
        assert loops == [asyncio.get_running_loop()]
        await engine.exit_async()

    asyncio.run(main())


# In processes of their own


SCRIPT = """
import threading, time
from journal import record
from engine_bridge import Engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import SignalHandler

engine = Engine(drain_delay=DELAY, drain_timeout=60)
SignalHandler(engine).subscribe()

def app(environ, start_response):
    start_response("200 OK", [])
    return iter(())

@engine.subscribe("start")
def start():
    record("start")

@engine.subscribe("drain")
def drain():
    record("drain", time=time.monotonic())

@engine.subscribe("stop")
def stop():
    record("stop", time=time.monotonic())

engine.start()
REQUEST
record("ready")
engine.block()
"""


def script(*, delay: float, request: bool) -> str:
    """Return a script that serves, perhaps with a request in flight that never ends."""
    held = "held = EngineMiddleware(app, engine)({}, lambda *args: None)" if request else ""
    return SCRIPT.replace("DELAY", str(delay)).replace("REQUEST", held)


def test_drain_delay_passes_in_a_script_before_it_stops() -> None:
    """A script goes on serving for drain_delay seconds, for load balancers that must notice."""
    with start_script(script(delay=0.3, request=False)) as process:
        process.wait_published("ready")
        process.signal(15)
        process.wait_exit()
    assert_once(process, "start", "drain", "stop")
    times = {entry.channel: entry.facts.get("time") for entry in process.journal()}
    assert times["stop"] - times["drain"] >= 0.3  # type: ignore[operator]  # JSON has no types


@pytest.mark.parametrize(("delay", "request_"), [(60, False), (0, True)])
def test_second_signal_ends_the_drain(delay: float, request_: bool) -> None:
    """A second SIGTERM ends drain_delay, and the wait for a request; the stop follows in order."""
    with start_script(script(delay=delay, request=request_)) as process:
        process.wait_published("ready")
        process.signal(15)
        process.wait_published("drain")
        assert process.process.poll() is None
        process.signal(15)
        process.wait_exit()
    assert_once(process, "start", "drain", "stop")


SSE = """
import asyncio
from journal import record
from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

for channel in ("start", "drain", "stop", "exit"):
    engine.subscribe(channel, lambda channel=channel: record(channel))

async def ticks():
    yield "data: first\\n\\n"
    try:
        await asyncio.Event().wait()
    finally:
        record("stream left")

async def stream(request):
    return StreamingResponse(engine.until_drain(ticks()), media_type="text/event-stream")

async def slow(request):
    record("slow")
    await engine.draining.wait_async()
    record("slow goes on")
    return PlainTextResponse("answered")

app = Starlette(routes=[Route("/stream", stream), Route("/slow", slow)])
app = EngineMiddleware(app)
"""


@pytest.mark.parametrize("wrapped", ["middleware", "lifespan"])
def test_uvicorn_with_an_open_stream_leaves_on_sigterm(tmp_path: Path, wrapped: str) -> None:
    """An SSE stream ends on drain, the request in flight is answered, uvicorn leaves."""
    source = SSE
    if wrapped == "lifespan":
        source = source.replace("app = EngineMiddleware(app)\n", "")
        source = source.replace("slow)])", "slow)], lifespan=engine.lifespan)")
    (tmp_path / "app.py").write_text(source)
    command = [sys.executable, "-m", "uvicorn", "--port={port}", "app:app"]
    with (
        run_server(command, cwd=tmp_path, ready=publishes("start")) as server,
        open_stream(server.port, "/stream") as stream,
    ):
        assert stream.wait_first() == b"data: first\n\n"
        slow = start_request(server.port, "/slow")
        server.wait_published("slow")
        server.signal(15)
        answer = slow.result()
        assert (answer.status, answer.body) == (200, b"answered")
        assert stream.wait_end().status == 200
        assert server.wait_exit() == -15
    assert_once(server, "start", "drain", "stop", "exit", count=1)
    assert_once(server, "start", "stream left", "stop", count=1)
