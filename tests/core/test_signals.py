import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from processes import (
    Process,
    assert_once,
    get,
    open_stream,
    publishes,
    run_script,
    run_server,
    start_process,
    start_request,
    start_script,
    wait_gone,
    wait_until,
)
from scripts import script
from servers.launch import CONFIG, GUNICORN

from engine_bridge import Engine
from engine_bridge.core import signals
from engine_bridge.plugins import SignalHandler

LIFE = ["start", "drain", "stop", "exit"]
SWEEP = Path(__file__).with_name("sweep.py")

IN_SLEEP = """
signals.chain(engine)
engine.start()
record("ready")
time.sleep(30)
"""
CHAINED = "from engine_bridge.core import signals\n"


def channels(process: Process, *beside: str) -> list[str]:
    """Return what the script recorded, but for what only the test waited for."""
    return [e.channel for e in process.journal() if e.channel not in {"ready", "blocking", *beside}]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is heard of no more after the test."""
    engine = Engine()
    yield engine
    engine.exit()
    for number in tuple(signals._watchers):
        signals.unwatch(engine, number)


# at any moment


ONE_BY_ONE = [f"{channel}{part}" for channel in LIFE for part in (1, 2)]


def sweep(
    plan: str, sig: int, points: int, times: int = 1, functions: Sequence[str] = ()
) -> list[tuple[str, Any, list[str]]]:
    """Return for each point of a life where it was, how the process ended, what it noted."""
    done = run_script(SWEEP, plan, str(int(sig)), str(points), str(times), *functions, limit=60)
    assert done.returncode == 0, done.stderr
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == points + 1, done.stderr
    assert found[0][1:] == (0, ONE_BY_ONE), done.stderr
    for place, status, _ in found:
        assert status != "deadlock", f"{place}\n{done.stderr}"
    return found[1:]


def is_orderly(noted: list[str]) -> bool:
    """Say whether listeners ran once, in order, and whatever began has been ended."""
    in_order = [word for word in ONE_BY_ONE if word in noted] == noted
    ended = not noted or {"stop1", "stop2", "exit1", "exit2"} <= set(noted)
    return in_order and ended and ("drain1" in noted) == ("drain2" in noted)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("plan", "times"),
    [
        ("in_thread", 1),
        ("in_thread", 2),
        ("in_thread:async", 1),
        ("in_task", 1),
        ("in_task:async", 1),
        ("in_task:async", 2),
        ("in_block", 1),
        ("in_block", 2),
        ("by_wait", 1),
    ],
)
def test_sigterm_at_any_moment_ends_it_once(plan: str, times: int) -> None:
    """Wherever SIGTERM comes: no deadlock, no listener twice, none left out, never swallowed."""
    for place, status, noted in sweep(plan, signal.SIGTERM, 36, times):
        assert is_orderly(noted), (place, noted)
        if not place:  # another thread was quicker, and this point was not reached
            assert status == 0
        elif status == -signal.SIGTERM:  # it came before the start, or after the exit
            assert noted in ([], ONE_BY_ONE), (place, noted)
        else:
            assert status in ({0, 143} if plan == "in_block" else {143}), (place, status)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("plan", ["in_thread", "in_task"])
def test_a_signal_between_two_decisions_breaks_nothing(plan: str, sig: signal.Signals) -> None:
    """Where the engine decides who runs what, no exception of a signal handler gets between."""
    functions = ["_in_thread", "_in_task", "_ask", "_decide", "_run", "_take_steps", "_finish"]
    for place, status, noted in sweep(plan, sig, 40, 1, functions):
        assert is_orderly(noted), (place, noted)
        if not place:
            assert status == 0  # the last point fell behind the end
            continue
        assert status in {143, -sig} if sig == signal.SIGTERM else {-sig}, (place, status)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plan", ["in_thread", "in_task:async", "in_block"])
def test_sigint_at_any_moment_ends_it_once(plan: str) -> None:
    """What holds for SIGTERM holds for SIGINT, which is a KeyboardInterrupt."""
    for place, status, noted in sweep(plan, signal.SIGINT, 30):
        assert is_orderly(noted), (place, noted)
        allowed = {0, -signal.SIGINT} if plan == "in_block" or not place else {-signal.SIGINT}
        assert status in allowed, (place, status)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("plan", ["in_thread", "in_task", "in_block"])
def test_sigusr1_at_any_moment_is_heard_once(plan: str) -> None:
    """Wherever SIGUSR1 comes, `graceful` is published once, and nothing else changes."""
    for place, status, noted in sweep(plan, signal.SIGUSR1, 30):
        graceful = [word for word in noted if word.startswith("graceful")]
        assert [word for word in noted if word not in graceful] == ONE_BY_ONE, (place, noted)
        assert graceful == (["graceful1", "graceful2"] if place else []), (place, noted)
        assert status == 0, place


# SIG_DFL as the predecessor


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("where", ["time.sleep(30)", "block()"])
def test_what_would_kill_stops_first_and_kills_then(sig: signal.Signals, where: str) -> None:
    """Where nobody claims a signal that kills, the engine exits and the status is unchanged."""
    body = CHAINED + IN_SLEEP.replace("time.sleep(30)", where)
    with start_script(script(body, handler=False), apart=True) as process:
        process.wait_asleep("ready" if where == "time.sleep(30)" else "blocking")
        process.signal(sig)
        assert process.wait_exit() == -sig
    assert channels(process) == LIFE
    assert process.errors() == ""


def test_two_engines_are_both_stopped_before_it_kills() -> None:
    """A signal that was put off is sent again once, when the last engine has exited."""
    body = """
    other = Engine()
    for channel in ("start", "stop", "exit"):
        other.subscribe(channel, partial(record, f"other {channel}"))
    def wait_for_the_first():
        while not signals._owed or engine in signals._owed[signal.SIGTERM]:
            time.sleep(0.001)
    other.subscribe("stop", wait_for_the_first, priority=10)
    signals.chain(other)
    other.start()
    """
    with start_script(script(CHAINED, body, IN_SLEEP, handler=False), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == ["other start", *LIFE, "other stop", "other exit"]
    assert process.errors() == ""


def test_the_second_signal_kills_at_once() -> None:
    """While the engine exits because of SIGTERM, a second one has its default action."""
    body = 'engine.subscribe("stop", lambda: (record("stopping"), time.sleep(30)))\n'
    with start_script(script(CHAINED, body, IN_SLEEP, handler=False)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        process.wait_published("stopping")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == ["start", "drain", "stop", "stopping"]


def test_a_signal_that_was_put_off_outlives_the_script() -> None:
    """A script that comes to its end while SIGTERM is put off still dies of it, once stopped."""
    body = """
    stopping = threading.Event()
    over = threading.Event()
    engine.subscribe("stop", lambda: (stopping.set(), over.wait(10)))
    signals.chain(engine)
    engine.start()
    record("ready")
    stopping.wait(10)
    from engine_bridge.core import nets
    frames = lambda: sys._current_frames()[threading.main_thread().ident]
    def outermost(frame):
        return frame if frame.f_back is None else outermost(frame.f_back)
    when(lambda: outermost(frames()).f_code is nets.end_all.__code__, over.set)
    """
    with start_script(script(CHAINED, body, handler=False), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == LIFE
    assert process.errors() == ""


def test_a_signal_at_the_end_of_the_process_lets_the_stop_end() -> None:
    """
    Where nobody heard of SIGTERM before, the stop at interpreter exit is completed all the same.

    uvicorn puts back the default action before its workers end, and signals them once more.
    """
    body = """
    heard = threading.Event()
    engine.subscribe("SIGTERM", heard.set)
    engine.subscribe("stop", lambda: (record("ready"), heard.wait(10)))
    engine.start()
    """
    with start_script(script(body, handler=False), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == LIFE
    assert process.errors() == ""


def test_sigterm_during_a_start_that_nobody_claims() -> None:
    """Without a `SignalHandler` too a start is aborted at once, and the process dies of SIGTERM."""
    body = """
    @engine.subscribe("start", priority=60)
    def slow():
        record("ready")
        engine.aborting.wait(30)
        record("returned")

    signals.chain(engine)
    engine.start()
    """
    with start_script(script(CHAINED, body, handler=False)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        process.wait_published("returned", limit=2)
        process.wait_exit()
    assert channels(process) == ["start", "returned", "stop", "exit"]


# a callable predecessor


def test_the_predecessor_is_called_when_the_note_has_been_left(engine: Engine) -> None:
    """The handler that was there gets the signal and the frame, after the engine was told."""
    seen: list[object] = []

    def theirs(signum: int, frame: object) -> None:
        seen.append((signum, frame is not None, engine.notes.times_told))

    signal.signal(signal.SIGTERM, theirs)
    try:
        signals.chain(engine)
        engine.start()
        signal.raise_signal(signal.SIGTERM)
        assert seen == [(signal.SIGTERM, True, 1)]
        assert engine.draining.wait(5)
        wait_until(lambda: not engine.in_transition)
        assert engine.state.name == "STARTED"
        engine.exit()
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_predecessor_that_raises_is_raised(engine: Engine) -> None:
    """What a server's handler raises goes through, such as the SystemExit of gunicorn's."""

    def theirs(*_: object) -> None:
        sys.exit(7)

    signal.signal(signal.SIGQUIT, theirs)
    try:
        signals.chain(engine)
        engine.start()
        with pytest.raises(SystemExit, match="7"):
            signal.raise_signal(signal.SIGQUIT)
        assert engine.draining.wait(5)
        wait_until(lambda: not engine.in_transition)
        assert not signals._passing
    finally:
        engine.exit()
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def test_the_last_note_is_read_though_its_thread_comes_too_late() -> None:
    """The main thread may be unwound, and at its end, before the thread that reads has begun."""
    body = """
    engine.subscribe("SIGTERM", partial(record, "SIGTERM"), priority=10)
    engine.notes._start_reader = lambda: None
    engine.start()
    record("ready")
    time.sleep(30)
    """
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert channels(process) == ["start", "SIGTERM", "drain", "stop", "exit"]


def test_a_second_signal_while_the_main_thread_waits_for_others_leaves_no_trace() -> None:
    """Unwound by the first signal the main thread waits for other threads; it has no more to do."""
    body = """
    engine.drain_delay = 60
    leave = threading.Event()
    engine.subscribe("stop", leave.set)
    threading.Thread(target=leave.wait).start()
    when(lambda: not threading.main_thread().is_alive(), partial(record, "waiting"))
    engine.start()
    record("ready")
    time.sleep(30)
    """
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        process.wait_published("drain")
        process.wait_asleep("waiting")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert channels(process, "waiting") == LIFE
    assert process.errors() == ""


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["destructor", "weakref"])
def test_a_signal_amid_a_destructor_is_not_dropped(where: str, sig: signal.Signals) -> None:
    """Python drops what is raised there; the main thread leaves all the same, without a word."""
    body = """
    import weakref

    class Thing:
        pass

    def linger(thing=None):
        if not engine.notes.times_told:
            record("ready")
            while not engine.notes.times_told:  # the handler raises out of this
                time.sleep(0.001)
            time.sleep(30)

    engine.start()
    thing = Thing()
    if sys.argv[1] == "destructor":
        Thing.__del__ = linger
    else:
        reference = weakref.ref(thing, linger)
    try:
        del thing
        time.sleep(30)
    except BaseException as exc:
        record(type(exc).__name__)
        raise
    """
    with start_script(script(body), where) as process:
        process.wait_published("ready")
        process.signal(sig)
        status = process.wait_exit()
    found = channels(process)
    if sig == signal.SIGTERM:
        assert (status, process.output()) == (143, "")
    assert found.count("SystemExit" if sig == signal.SIGTERM else "KeyboardInterrupt") == 1
    assert [channel for channel in found if channel in LIFE] == LIFE
    assert "Exception ignored" not in process.output()


def test_a_handler_between_two_of_ours_is_told_once() -> None:
    """A handler set later that calls ours, and that we call, gets one signal once, and so do we."""
    body = """
    previous = signal.getsignal(signal.SIGTERM)

    def theirs(signum, frame):
        record("theirs")
        previous(signum, frame)

    signal.signal(signal.SIGTERM, theirs)
    engine.subscribe("SIGTERM", partial(record, "SIGTERM"), priority=10)
    engine.subscribe("exit", lambda: record("told", times=engine.notes.times_told))
    engine.start()
    record("ready")
    time.sleep(30)
    """
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert sorted(channels(process, "told")) == sorted(["theirs", "SIGTERM", *LIFE])
    [told] = process.wait_published("told")
    assert told.facts == {"times": 1}
    assert process.errors() == ""


def test_a_loop_s_handler_decides() -> None:
    """What `loop.add_signal_handler` was given is called on the loop, and the engine hears too."""
    body = """
    import asyncio

    async def main():
        gone = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, gone.set)
        async with engine:
            record("ready")
            await gone.wait()
            record("gone")

    asyncio.run(main())
    """
    with start_script(script(body), apart=True) as process:
        process.wait_published("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert sorted(channels(process)) == sorted([*LIFE, "gone"])
    assert process.errors() == ""


def test_a_main_thread_that_waits_for_a_lock_still_hears() -> None:
    """With somebody's handler as predecessor a signal interrupts waiting, as it did before."""
    body = """
    signal.signal(signal.SIGTERM, lambda *_: record("theirs"))
    handler.subscribe()
    engine.start()
    done = threading.Lock()
    done.acquire()
    engine.subscribe("exit", done.release, priority=90)
    record("ready")
    done.acquire()
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert sorted(channels(process)) == sorted([*LIFE, "theirs"])


HELD_BY = {
    "start": """
        engine.subscribe("start", lambda: engine.aborting.wait(30), priority=60)
        engine.start()
    """,
    "wait": "engine.start(); engine.wait(State.EXITING)",
    "draining": "engine.start(); engine.draining.wait(30)",
}


@pytest.mark.parametrize("held", HELD_BY)
def test_a_signal_that_does_not_wake_the_main_thread_is_heard(held: str) -> None:
    """Waiting for the engine it wakes by itself: a signal may come as it falls asleep."""
    body = """
    def tell():  # a handler runs in the main thread, which this does not wake
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    when(lambda: engine._changed._waiters, tell)
    """
    with start_script(script(body, HELD_BY[held]), apart=True) as process:
        assert process.wait_exit() == 143
    expected = ["start", "stop", "exit"] if held == "start" else LIFE
    assert channels(process) == expected
    assert process.errors() == ""


# left alone


@pytest.mark.parametrize(
    "present", [signal.SIG_IGN, signal.default_int_handler], ids=["SIG_IGN", "KeyboardInterrupt"]
)
def test_chain_leaves_some_alone(engine: Engine, present: Any) -> None:
    """An ignored signal, and Ctrl-C that raises KeyboardInterrupt, are not ours to hear."""
    before = signal.signal(signal.SIGINT, present)
    try:
        signals.chain(engine)
        assert signal.getsignal(signal.SIGINT) is present
        assert signal.getsignal(signal.SIGABRT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_chain_off_the_main_thread_does_nothing(engine: Engine) -> None:
    """A request in a worker thread may chain: it installs nothing and raises nothing."""
    thread = threading.Thread(target=signals.chain, args=(engine,))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_engine_that_is_gone_is_not_asked() -> None:
    """A handler whose engine was thrown away stands aside."""
    body = """
    import gc
    other = Engine()
    signals.chain(other)
    other.start()
    del other
    from engine_bridge.core import nets
    nets._engines.clear()
    gc.collect()
    record("ready")
    time.sleep(30)
    """
    with start_script(script(CHAINED, body, handler=False)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM


def test_a_forked_child_is_as_without_us() -> None:
    """In a forked child our handlers do what would be done without them, for each signal."""
    body = """
    engine.start()
    children = []
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        pid = os.fork()
        if not pid:
            try:
                signal.raise_signal(signum)
                time.sleep(10)
            except KeyboardInterrupt:
                os._exit(77)
            finally:
                os._exit(78)
        children.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(children)
    """
    done = run_script(script(body))
    assert json.loads(done.stdout) == [-15, 77, -1, -10, -12]
    assert channels(done.process) == LIFE


def test_a_forked_child_may_start_its_own_engine() -> None:
    """A child that starts its engine is heard again, and leaves its parent's alone."""
    body = """
    engine.start()
    if not os.fork():
        engine.start()
        block()
        sys.exit(5)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    """
    with start_script(script(body)) as process:
        [blocking] = process.wait_published("blocking")
        os.kill(blocking.pid, signal.SIGTERM)
        assert process.wait_exit() == 0
    assert process.output() == "5\n"
    assert_once(process, *LIFE, count=2)


# drain_delay under uvicorn

APP = """
import asyncio
from journal import record
from engine_bridge import Engine
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

engine = Engine(drain_delay=DELAY)
for channel in ("start", "drain", "stop", "exit"):
    engine.subscribe(channel, lambda channel=channel: record(channel))

async def ready(request):
    return PlainTextResponse("", 503 if engine.draining.is_set() else 200)

async def events(request):
    async def body():
        yield "data: first\\n\\n"
        await asyncio.Event().wait()
    return StreamingResponse(engine.until_drain(body()), media_type="text/event-stream")

from engine_bridge.frameworks.asgi import EngineMiddleware
app = EngineMiddleware(
    Starlette(routes=[Route("/ready", ready), Route("/events", events)]), engine
)
"""
UVICORN = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}"]


def write_app(folder: Path, delay: float) -> None:
    """Write app.py, whose engine has a `drain_delay` of *delay* seconds."""
    (folder / "app.py").write_text(APP.replace("DELAY", str(delay)))


def test_uvicorn_serves_on_for_drain_delay(tmp_path: Path) -> None:
    """Told to go, uvicorn answers new connections until drain_delay is over, if unready."""
    pytest.importorskip("uvicorn")
    write_app(tmp_path, 1.0)
    with run_server(UVICORN, cwd=tmp_path, ready=publishes("start")) as server:
        assert get(server.port, "/ready").status == 200
        stream = open_stream(server.port, "/events")
        server.signal(signal.SIGTERM)
        [drain] = server.wait_published("drain")
        assert get(server.port, "/ready").status == 503
        assert stream.result().ok
        assert server.wait_exit() == -signal.SIGTERM
    [stop] = server.wait_published("stop")
    assert stop.time - drain.time >= 1.0
    assert_once(server, *LIFE)


SLOW = """
import os
from journal import record
from engine_bridge import engine

for channel in ("start", "drain", "stop", "exit"):
    engine.subscribe(channel, lambda channel=channel: record(channel))

@engine.subscribe("start", priority=60)
def slow():
    record("starting")
    if os.path.exists("slow"):
        engine.aborting.wait(30)
"""
SLOW_ASGI = """
from engine_bridge.frameworks.asgi import EngineMiddleware
from starlette.applications import Starlette

@engine.subscribe("start", priority=70)
async def slow_async():
    import asyncio
    record("starting")
    if os.path.exists("slow"):
        await asyncio.sleep(30)

app = EngineMiddleware(Starlette())
"""
SLOW_LIFESPAN = SLOW_ASGI.replace(
    "EngineMiddleware(Starlette())", "Starlette(lifespan=engine.lifespan)"
)
SLOW_WSGI = """
from engine_bridge.frameworks.wsgi import EngineMiddleware

app = EngineMiddleware(lambda environ, start_response: [start_response("200 OK", []), [b""]][1])
"""


@pytest.mark.parametrize("app", [SLOW_ASGI, SLOW_LIFESPAN], ids=["middleware", "lifespan"])
def test_uvicorn_leaves_although_its_start_takes_long(app: str, tmp_path: Path) -> None:
    """A SIGTERM that uvicorn looks at only after the start aborts that; it is no failed start."""
    pytest.importorskip("uvicorn")
    app = app.replace("import asyncio", "import asyncio; await asyncio.sleep(0)")
    (tmp_path / "app.py").write_text(SLOW.replace("engine.aborting.wait(30)", "pass") + app)
    (tmp_path / "slow").touch()
    with start_process([*UVICORN[:-1], "0"], cwd=tmp_path) as process:
        process.wait_published("starting", 2)
        process.signal(signal.SIGTERM)
        assert process.wait_exit(5) == -signal.SIGTERM
    assert channels(process, "starting") == ["start", "stop", "exit"]
    assert "failed" not in process.output()


@pytest.mark.parametrize(
    ("kind", "app"),
    [("sync", SLOW_WSGI), ("gthread", SLOW_WSGI), ("uvicorn_worker.UvicornWorker", SLOW_ASGI)],
)
def test_gunicorn_survives_a_worker_that_was_told_to_go_while_it_started(
    kind: str, app: str, tmp_path: Path
) -> None:
    """Two reloads in a row end the workers of the first before they are up; the server lives on."""
    pytest.importorskip("gunicorn")
    pytest.importorskip(kind.partition(".")[0] if "." in kind else "gunicorn")
    (tmp_path / "app.py").write_text(
        (SLOW if app == SLOW_WSGI else SLOW.replace("engine.aborting.wait(30)", "pass")) + app
    )
    asynchronous = app == SLOW_ASGI
    command = [*GUNICORN, *CONFIG, "-k", kind, "app:app"]
    with run_server(command, cwd=tmp_path, ready=publishes("start")) as server:
        (tmp_path / "slow").touch()
        server.signal(signal.SIGHUP)
        started = server.wait_published("starting", 4 if asynchronous else 2)
        (tmp_path / "slow").unlink()
        server.signal(signal.SIGHUP)
        server.wait_published("start", 3)
        wait_gone(started[-1].pid)
        assert get(server.port).status in {200, 404}
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert server.published()[started[-1].pid][-2:] == ["stop", "exit"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_hold(tmp_path: Path, second: signal.Signals) -> None:
    """During drain_delay another SIGTERM or SIGINT has uvicorn leave at once."""
    pytest.importorskip("uvicorn")
    write_app(tmp_path, 60)
    with run_server(UVICORN, cwd=tmp_path, ready=publishes("start")) as server:
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        assert get(server.port, "/ready").status == 503
        server.signal(second)
        assert server.wait_exit(5) in {-signal.SIGTERM, -signal.SIGINT}
    assert_once(server, *LIFE)


def test_a_server_that_cannot_be_held_is_not_waited_for() -> None:
    """Where the server has left already, the note that its main thread reads costs no time."""
    body = """
    from engine_bridge.core.host import Host
    engine.drain_delay = 60
    engine.host = Host("worker")
    engine.notes._start_reader = lambda: None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    """
    with start_script(script(CHAINED, body, IN_SLEEP, handler=False), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 7
    assert channels(process) == LIFE


class FakeServer:
    """What of uvicorn's Server matters to us."""

    def __init__(self) -> None:
        self.should_exit = self.force_exit = False

    def handle_exit(self, signum: int, frame: object) -> None:
        self.should_exit = True


def test_the_longest_drain_delay_holds(engine: Engine) -> None:
    """Of several engines the one with the longest drain_delay says when the server is told."""
    server, other = FakeServer(), Engine(drain_delay=30)
    engine.drain_delay = 0.01
    signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        for each in (engine, other):
            signals.chain(each)
            each.start()
        signal.raise_signal(signal.SIGTERM)
        wait_until(lambda: engine.draining.is_set() and other.draining.is_set())
        handler = signal.getsignal(signal.SIGTERM)
        assert isinstance(handler, signals.Handler)
        wait_until(lambda: handler._held_for == {other})
        assert not server.should_exit
        other.hurry()
        wait_until(lambda: server.should_exit)
    finally:
        other.exit()
        engine.exit()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# who reads the notes


def test_notes_of_a_broken_kind_are_told(engine: Engine) -> None:
    """What goes wrong while a note is read reaches the log, and the next note is read."""
    read = threading.Event()
    engine.notes.put(lambda: 1 / 0)
    engine.notes.put(read.set)
    assert read.wait(5)
    wait_until(lambda: any("division" in r.message() for r in engine.last_records))


def test_a_note_that_comes_while_another_is_taken_is_read(engine: Engine) -> None:
    """A handler that still sees the thread in `block` wait starts no other: that thread does."""
    read = threading.Event()
    real = engine.notes._queue

    class LateQueue:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def get(self, timeout: float | None) -> object:
            note = real.get(timeout=timeout)
            engine.notes.put(read.set)
            return note

    real.put(lambda: None)
    engine.notes._queue = LateQueue()  # type: ignore[assignment]  # a fake
    assert engine.notes.get(0) is not None
    assert read.wait(5)


def test_a_note_of_an_earlier_life_ends_no_later_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that gets round to a SIGTERM only when a new life has begun leaves that alone."""
    monkeypatch.setattr(engine.notes, "_start_reader", lambda: None)
    plugin = SignalHandler(engine)
    plugin.subscribe()
    engine.start()
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    engine.exit()
    engine.start()
    engine.notes.work_off()
    assert engine.ready
    plugin.unsubscribe()


def test_sys_exit_in_a_note_ends_no_reader(engine: Engine) -> None:
    """`sys.exit()` of a listener ends the program where somebody waits for it, not the reader."""
    read = threading.Event()
    engine.notes.put(sys.exit)
    engine.notes.put(read.set)
    assert read.wait(5)


@pytest.mark.parametrize("where", ["handler", "thread"])
def test_notes_without_a_thread_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Where no thread can be started any more a note waits for who blocks; nothing is raised."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    read = threading.Event()
    if where == "handler":
        monkeypatch.setattr("_thread.start_new_thread", refuse)
        engine.notes.put(read.set)
    else:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        engine.notes._become_thread()
        engine.notes._queue.put(read.set)
    monkeypatch.undo()
    note = engine.notes.get(0)
    assert note is not None
    note()
    assert read.is_set()


def test_in_flight_is_answered_before_a_hold_ends(tmp_path: Path) -> None:
    """A request that came during the hold is answered although the process was told to go."""
    pytest.importorskip("uvicorn")
    write_app(tmp_path, 0.5)
    with run_server(UVICORN, cwd=tmp_path, ready=publishes("start")) as server:
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        answer = start_request(server.port, "/ready")
        assert answer.result().status == 503
        server.wait_exit()
    assert_once(server, *LIFE)
