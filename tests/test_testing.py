"""`engine_bridge.testing`: what tests of an application with an engine want."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import run_script, start_process
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.test import Client

from engine_bridge import Engine, EngineError, State
from engine_bridge.core import signals
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.starlette import compose
from engine_bridge.frameworks.wsgi import EngineMiddleware as WSGIMiddleware
from engine_bridge.testing import leaks, lifespan, no_leaks, record


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is ended after the test."""
    engine = Engine()
    yield engine
    engine.exit()
    signals.unwatch(engine)


# record


def test_recording_is_the_list_of_channels_in_order(engine: Engine) -> None:
    """It compares with a list, and keeps what was published with each."""
    recording = record(engine, "news", "start")
    with engine:
        engine.publish("news", 1, about="it")
        engine.publish("other")
    assert recording == ["start", "news", "drain", "stop", "exit"]
    assert recording.calls[1] == ("news", (1,), {"about": "it"})
    recording.assert_once("start", "drain", "stop", "exit")
    assert recording.complaints == []


def test_recording_notes_a_channel_whose_first_listener_fails(engine: Engine) -> None:
    """What was published was published, whatever came of it; the complaints tell that."""

    def fail() -> None:
        raise LookupError("no database")

    engine.subscribe("start", fail, priority=0)
    recording = record(engine)
    with pytest.raises(EngineError):
        engine.start()
    assert recording == ["start", "stop"]
    (complaint,) = recording.complaints
    assert "LookupError: no database" in complaint


@pytest.mark.parametrize(
    "wrong", [("drain", "start"), ("start", "start"), ("start", "news"), ("news",)]
)
def test_recording_tells_what_was_published_instead(engine: Engine, wrong: tuple[str]) -> None:
    """Another order, a channel that is missing, or one too many: all are told."""
    recording = record(engine, "news")
    engine.start()
    engine.publish("news")
    engine.publish("news")
    engine.drain()
    with pytest.raises(AssertionError, match=r"published: \['start', 'news', 'news', 'drain'\]"):
        recording.assert_once(*wrong)


def test_recording_waits_for_what_another_thread_publishes(engine: Engine) -> None:
    """`wait` returns once it has been, and fails when the time is up."""
    recording = record(engine, "news")
    thread = threading.Thread(target=lambda: [engine.publish("news") for _ in range(3)])
    thread.start()
    recording.wait("news", 3)
    thread.join()
    with pytest.raises(AssertionError, match="'news' was published 3 times within 0 s, not 4"):
        recording.wait("news", 4, timeout=0)


def test_recording_ends_with_its_block(engine: Engine) -> None:
    """After it nothing is recorded any more, and the engine has nothing of it left."""
    with record(engine) as recording:
        engine.start()
    engine.stop()
    assert recording == ["start"]
    assert not any(engine._listeners.values())
    assert [told.message() for told in recording.records] == ["Engine STARTING", "Engine STARTED"]


def test_recording_refuses_what_is_no_engine() -> None:
    """An application, or a channel in the engine's place, is refused in one sentence."""
    with pytest.raises(EngineError, match=r"record\(…\) wants an engine first, got 'start'"):
        record("start")  # type: ignore[arg-type]  # that is what is wrong


# lifespan


async def show(request: Request) -> PlainTextResponse:
    """Answer with the lifespan state."""
    return PlainTextResponse(request.state.database)


def application(engine: Engine, **plans: BaseException) -> Starlette:
    """Return an application that raises *plans* at startup or shutdown."""

    @asynccontextmanager
    async def own(app: object) -> AsyncIterator[dict[str, str]]:
        if "startup" in plans:
            raise plans["startup"]
        yield {"database": "connected"}
        if "shutdown" in plans:
            raise plans["shutdown"]

    return Starlette(routes=[Route("/", show)], lifespan=compose(engine.lifespan, own))


async def ask(app: Any) -> str:
    """Return the text that *app* answers."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (await client.get("/")).text


def test_lifespan_starts_and_stops_an_application(engine: Engine) -> None:
    """Requests in between get the state; it can be taken again and again."""
    recording = record(engine)
    app = application(engine)

    async def main() -> None:
        for _ in range(2):
            async with no_leaks(), lifespan(app) as served:
                assert served.app is app
                assert served.state == {"database": "connected"}
                assert engine.wait(State.STARTED, 0)
                assert await ask(served) == "connected"
                served.state["database"] = "changed"
                assert await ask(served) == "changed"

    asyncio.run(main())
    assert recording == ["start", "drain", "stop", "exit"] * 2


@pytest.mark.parametrize("half", ["startup", "shutdown"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_lifespan_raises_what_fails(engine: Engine, half: str, wrapped: bool) -> None:
    """A failing half is raised with its words, and with the error itself where it is known."""
    recording = record(engine)
    app: Any = application(engine, **{half: LookupError("no database")})
    if wrapped:
        app = EngineMiddleware(app, engine)

    async def main() -> None:
        async with no_leaks(), lifespan(app):
            assert half == "shutdown"

    with pytest.raises(EngineError, match="LookupError: no database") as caught:
        asyncio.run(main())
    assert wrapped or isinstance(caught.value.__cause__, LookupError)
    recording.assert_once("start", "drain", "stop", "exit")


def test_lifespan_ends_also_when_the_test_fails(engine: Engine) -> None:
    """What a test raises is raised, after the shutdown."""
    recording = record(engine)

    async def main() -> None:
        async with lifespan(application(engine)):
            raise LookupError("the test's own")

    with pytest.raises(LookupError, match="the test's own"):
        asyncio.run(main())
    recording.assert_once("start", "drain", "stop", "exit")


async def knows_none(scope: Any, receive: Any, send: Any) -> None:
    """Do as Django does."""
    raise ValueError("no lifespan")


@pytest.mark.parametrize(
    ("app", "told"),
    [(7, "wants an ASGI application, got 7"), (knows_none, "does not know lifespans")],
)
def test_lifespan_refuses_what_has_none(app: Any, told: str) -> None:
    """What is no application, or knows no lifespan, would be tested for nothing."""

    async def main() -> None:
        async with lifespan(app):
            pass

    with pytest.raises(EngineError, match=told):
        asyncio.run(main())


@pytest.mark.parametrize("half", ["startup", "shutdown"])
def test_lifespan_tells_where_an_application_hangs(half: str) -> None:
    """An application that does not answer in time is told with the line where it stands."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if half == "shutdown":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.Event().wait()  # hangs here

    async def main() -> None:
        async with no_leaks(), lifespan(app, timeout=0.01):
            pass

    with pytest.raises(EngineError) as caught:
        asyncio.run(main())
    assert f"has not completed its lifespan {half} within 0.01 s" in str(caught.value)
    assert "await asyncio.Event().wait()  # hangs here" in str(caught.value)


def test_lifespan_leaves_a_timeout_of_the_test_alone(engine: Engine) -> None:
    """A TimeoutError that is not its own is passed on."""

    async def main() -> None:
        async with asyncio.timeout(0.01), lifespan(application(engine)):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert engine.state is State.EXITING


def test_lifespan_passes_the_state_of_a_client_on(engine: Engine) -> None:
    """What a client has put into the state of its request wins."""

    async def main() -> None:
        async with lifespan(application(engine)) as served:

            async def client(scope: Any, receive: Any, send: Any) -> None:
                await served({**scope, "state": {"database": "the client's"}}, receive, send)

            assert await ask(client) == "the client's"

    asyncio.run(main())


def test_wsgi_application_is_tested_within_its_engine(engine: Engine) -> None:
    """For WSGI `with engine:` is all there is to it."""
    recording = record(engine, "before_request", "after_request")
    app = WSGIMiddleware(PlainWSGI(), engine)
    with no_leaks(), engine:
        assert Client(app).get("/").text == "hello"
        assert engine.in_flight == 0
    recording.assert_once("start", "before_request", "after_request", "drain", "stop", "exit")


class PlainWSGI:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]


# no_leaks


def test_no_leaks_passes_what_ends_in_a_moment() -> None:
    """What is just ending gets a moment; what a cycle holds is collected."""

    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.file = Path(__file__).open()  # noqa: SIM115  # the cycle closes it

        def __del__(self) -> None:
            self.file.close()

    with no_leaks():
        threading.Thread(target=threading.Event().wait, args=[0.05]).start()
        Holder()
    with no_leaks(moment=0):
        Holder()


def test_no_leaks_names_all_that_is_left() -> None:
    """Threads, descriptors and handlers are named; handlers are put back."""
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="forgotten")
    before = signal.getsignal(signal.SIGUSR1)
    reader, writer = os.pipe()
    os.close(writer)
    try:
        with pytest.raises(AssertionError) as caught, no_leaks(moment=0):  # noqa: PT012  # three leaks
            thread.start()
            file = os.dup(reader)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) == before
    finally:
        leave.set()
        thread.join()
        os.close(reader)
        os.close(file)
    first, *rest = str(caught.value).splitlines()
    assert first == "left behind:"
    found = "\n".join(rest)
    assert "handler of SIGUSR1: 1" in found or "handler of SIGUSR1: Handlers.SIG_IGN" in found
    assert "forgotten" in found
    assert f"descriptor {file}: pipe:" in found
    assert len(rest) == 3


def test_no_leaks_gives_a_turn_to_what_a_busy_loop_held_up() -> None:
    """Time in which the loop did nothing else is no time to go."""

    async def end_late() -> None:
        await asyncio.sleep(0.002)  # until the tasks are looked at
        time.sleep(0.05)  # blocks the loop until the moment has passed
        await asyncio.sleep(0.001)

    async def main() -> None:
        async with no_leaks(moment=0.01):
            ending = asyncio.create_task(end_late())
        ending.result()

    asyncio.run(main())


def test_no_leaks_looks_last_after_a_pause_that_began_late() -> None:
    """A pause that takes all the time there is gives nobody a turn."""
    pauses: list[float] = []
    deadline = time.monotonic() + 0.2
    for _ in leaks._looks(lambda: {"always": "there"}, {}, 0.2):
        pauses.append(time.monotonic())
        if len(pauses) == 2:
            time.sleep(0.3)
    assert pauses[-2] > deadline  # the last one follows the last look


def test_no_leaks_sees_tasks_of_the_loop() -> None:
    """`async with` names tasks too, and lets those end that are about to."""

    async def main() -> None:
        async with no_leaks():
            ending: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(0.01))
        assert ending.done()
        with pytest.raises(AssertionError, match=r"task .*name='forgotten'"):
            async with no_leaks(moment=0):
                task: asyncio.Task[Any] = asyncio.create_task(
                    asyncio.Event().wait(), name="forgotten"
                )
        task.cancel()
        await asyncio.wait({task})
        with no_leaks(moment=0):  # cannot wait for a task on its own loop
            task = asyncio.create_task(asyncio.sleep(0))
        await task

    asyncio.run(main())


def test_no_leaks_lets_the_error_of_the_test_through() -> None:
    """A test that fails is not told of what it left besides."""

    async def main() -> None:
        async with no_leaks():
            raise LookupError("async")

    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(LookupError, match="the test's own"), no_leaks():  # noqa: PT012  # both matter
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise LookupError("the test's own")
    assert signal.getsignal(signal.SIGUSR1) == before
    with pytest.raises(LookupError, match="async"):
        asyncio.run(main())


def test_no_leaks_does_not_count_the_handlers_of_an_engine(engine: Engine) -> None:
    """They end with the engine; those of others beneath them count."""
    app = WSGIMiddleware(PlainWSGI(), engine)  # chains the signals
    before = signal.getsignal(signal.SIGTERM)
    with no_leaks():
        with engine:
            assert Client(app).get("/").text == "hello"
        assert signal.getsignal(signal.SIGTERM) != before


def test_no_leaks_where_the_system_lists_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc the threads that Python knows and /dev/fd must do; without that, no list."""
    real = os.listdir
    hidden = ["/proc"]

    def listdir(path: str) -> list[str]:
        if any(path.startswith(folder) for folder in hidden):
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with Path(__file__).open() as file:
        assert ("thread", threading.get_native_id()) in leaks.threads()
        status = os.fstat(file.fileno())
        wanted = f"device {status.st_dev}, inode {status.st_ino}"
        assert ("descriptor", str(file.fileno()), wanted) in leaks.descriptors()
        hidden.append("/dev")
        assert leaks.descriptors() == {}


# The pytest plugin

CONFTEST = 'pytest_plugins = ["engine_bridge.testing"]\n'

PASSING = """
import threading
import pytest
from engine_bridge import State
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.testing import Recording

engines = []

def hello(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]

def test_fresh(engine, recording, no_leaks):
    assert isinstance(recording, Recording)
    assert engine.state is State.STOPPED
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    engine.subscribe("start", thread.start)
    engine.subscribe("stop", leave.set)
    EngineMiddleware(hello, engine)
    engine.start()
    engines.append((engine, recording))  # left STARTED, with a thread and chained signals

def test_exited():
    (engine, recording), = engines
    assert engine.state is State.EXITING
    recording.assert_once("start", "drain", "stop", "exit")

@pytest.mark.usefixtures("no_leaks")
def test_another(engine):
    assert engine is not engines[0][0]
    with engine:
        pass
"""

FAILING = """
import threading
import pytest
from engine_bridge.frameworks.wsgi import EngineMiddleware

def fail(error):
    raise error

def test_stop_fails(engine):
    engine.subscribe("stop", lambda: fail(LookupError("no database")))
    engine.start()

def test_exit_asks_to_leave(engine):
    engine.subscribe("exit", lambda: fail(SystemExit(7)))
    engine.start()

def test_in_flight(engine):
    engine.start()
    body = EngineMiddleware(lambda environ, start_response: iter([b"hello"]), engine)({}, len)
    test_in_flight.body = body  # neither read nor closed

def test_leak(no_leaks):
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()
"""


def run_pytest(folder: Path, source: str) -> tuple[int, str]:
    """Run a project's tests in a process of their own; return status and output."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(source)
    options = ["-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
    base = f"--basetemp={folder}/base"  # else it would remove those of earlier sessions
    command = [sys.executable, "-m", "pytest", base, *options, "."]
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with start_process(command, cwd=folder, env=env) as process:
        status = process.wait_exit(15)
        return status, process.output()


def test_plugin_gives_each_test_an_engine_of_its_own(tmp_path: Path) -> None:
    """Each is ended after its test, before the look for leaks."""
    status, output = run_pytest(tmp_path, PASSING)
    assert "3 passed" in output
    assert status == 0, output


def test_plugin_fails_a_test_whose_engine_does_not_end_well(tmp_path: Path) -> None:
    """A failing stop, a SystemExit, requests in flight and leaks fail the test they belong to."""
    status, output = run_pytest(tmp_path, FAILING)
    assert status == 1, output
    assert "4 passed, 4 errors" in output
    for told in (
        "LookupError: no database",
        "a listener of the engine's stop or exit raised SystemExit(7)",
        "1 requests are in flight: an answer was not read to its end, or not closed",
        "left behind:",
        "forgotten",
    ):
        assert told in output


def test_importing_it_imports_neither_pytest_nor_a_framework() -> None:
    """Outside of pytest it costs next to nothing."""
    finished = run_script(
        """
        import sys
        import engine_bridge.testing
        unwanted = {"pytest", "asyncio", "asgiref", "starlette", "fastapi", "werkzeug", "logging"}
        print(sorted(unwanted & set(sys.modules)))
        """
    )
    assert finished.stdout == "[]\n", finished
