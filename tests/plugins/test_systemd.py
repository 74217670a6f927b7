import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

import pytest
from actors import Call
from manager import Manager, manager
from processes import (
    free_port,
    publishes,
    run_script,
    run_server,
    start_process,
    start_script,
    wait_until,
)
from scripts import script

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.core.host import Host
from engine_bridge.core.records import Message, SignalCaught
from engine_bridge.core.transition import Progress
from engine_bridge.plugins import Systemd, systemd
from engine_bridge.plugins.systemd import listen_sockets, watchdog_seconds

VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "SYSTEMD_EXEC_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)
STARTING = ["STATUS=starting"]
SERVING = ["READY=1", "STATUS=serving"]
LEAVING = [
    ["STOPPING=1", "STATUS=draining, 0 in flight"],
    ["STATUS=stopping"],
]
NEVER = 1000.0  # seconds; a test that is over in less sees no extension
QUICK = 0.2  # seconds; extensions come ten times as often


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service manager but the one of the test."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(systemd, "_handed_over", None)


@pytest.fixture
def sd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that has started this process."""
    with manager(tmp_path) as found:
        monkeypatch.setenv("NOTIFY_SOCKET", found.environment["NOTIFY_SOCKET"])
        yield found


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that has exited after the test, with its plugins turned off."""
    engine = Engine(slow_after=NEVER)
    yield engine
    engine.exit()
    for observer in engine.observers:
        if isinstance(plugin := getattr(observer, "__self__", None), Systemd):
            plugin.unsubscribe()


def report(engine: Engine, *, extend: float = NEVER, **arguments: object) -> Systemd:
    """Return a plugin that is turned on."""
    plugin = Systemd(engine, extend=extend, **arguments)  # type: ignore[arg-type]  # `check` only
    plugin.subscribe()
    return plugin


def said(engine: Engine, level: int = 30) -> list[str]:
    """Return the sentences of *level* that the engine has said."""
    return [r.text for r in engine.last_records if isinstance(r, Message) and r.level == level]


def without_time(messages: list[list[str]]) -> list[list[str]]:
    """Return *messages* without the lines that tell a time."""
    return [[line for line in lines if "MONOTONIC_USEC" not in line] for lines in messages]


# -- the order of messages -------------------------------------------------------------------------


def test_ready_is_said_once_the_engine_has_started(engine: Engine, sd: Manager) -> None:
    """Not when the last start listener runs, and not after it, but when the engine is STARTED."""
    report(engine)
    before: list[list[list[str]]] = []
    engine.subscribe("start", lambda: before.append(sd.waiting()), priority=float("inf"))
    engine.start()
    assert before == [[STARTING]]
    assert sd.waiting() == [SERVING]


def test_a_whole_life_in_order(engine: Engine, sd: Manager) -> None:
    """From start to exit each change is one datagram; STOPPING=1 comes once, with the drain."""
    plugin = report(engine)
    plugin.subscribe()
    engine.start()
    engine.start()
    engine.exit()
    engine.exit()
    assert sd.waiting() == [STARTING, SERVING, *LEAVING]


def test_a_failing_start_is_never_ready(engine: Engine, sd: Manager) -> None:
    """The status says who failed and why, in one line that can assign nothing else, and ERRNO."""
    report(engine)

    @engine.subscribe("start")
    def bind() -> None:
        raise OSError(98, "in use\nREADY=1\0\x1b[31m")

    with pytest.raises(ChannelFailures):
        engine.start()
    failed = f"STATUS=start failed: {__name__}.test_a_failing_start_is_never_ready.<locals>.bind: "
    expected = [STARTING, ["ERRNO=98", f"{failed}OSError: [Errno 98] in use READY=1  [31m"]]
    assert sd.waiting() == expected
    engine.exit()
    assert sd.waiting() == [["STOPPING=1"]]


def test_a_failing_start_tells_the_error_behind_the_error(engine: Engine, sd: Manager) -> None:
    """ERRNO is that of the cause; without one there is none; a later start begins anew."""
    report(engine)
    errors: list[Exception] = [ValueError("x" * 5000), RuntimeError("no file")]
    errors[1].__cause__ = PermissionError(13, "denied")

    @engine.subscribe("start")
    def fail() -> None:
        if errors:
            raise errors.pop(0)

    for _ in range(2):
        with pytest.raises(ChannelFailures):
            engine.start()
    engine.start()
    first, long, second, third, last, ready = sd.waiting()
    assert first == second == last == STARTING
    assert len(long) == 1
    assert len(long[0]) < 600
    assert (third[0], third[1][-21:]) == ("ERRNO=13", "RuntimeError: no file")
    assert ready == SERVING


def test_a_listener_that_never_returns_fails_the_start(sd: Manager) -> None:
    """Its time is extended while it is within its limit, and no longer; the status names it."""
    engine = Engine(start_timeout=0.3, slow_after=0.2)
    plugin = report(engine, extend=QUICK)
    returned = threading.Event()

    @engine.subscribe("start")
    def hang() -> None:
        returned.wait(20)

    call = Call(engine.start)
    assert sd.read_until("STATUS=starting") == [STARTING]
    assert engine.wait(State.STOPPED, 10)
    messages = sd.waiting()
    returned.set()
    assert isinstance(call.end().error, ChannelFailures)
    name = f"{__name__}.test_a_listener_that_never_returns_fails_the_start.<locals>.hang"
    extension = f"EXTEND_TIMEOUT_USEC={QUICK * 1e6:.0f}"
    assert [extension, f"STATUS=starting: {name}"] in messages
    failed = [lines for lines in messages if lines[-1].startswith("STATUS=start failed")]
    assert re.fullmatch(
        rf"STATUS=start failed: {re.escape(name)} still ran after 0\.\d s", failed[0][-1]
    )
    assert messages[-1] in failed, "an extension after the limit"
    assert not any("READY=1" in lines for lines in messages)
    plugin.unsubscribe()
    engine.exit()


def test_no_time_is_asked_for_beyond_a_limit(sd: Manager) -> None:
    """A transition that is past its limit, and still there, is not covered up."""

    class Late(Engine):
        """As it is for a moment, before the engine goes on without the listener."""

        @property
        def progress(self) -> Progress | None:
            return Progress("start", "hang", 9.0, left)

    left = 1.0
    engine = Late()
    plugin = report(engine, extend=QUICK)
    go_on = threading.Event()
    engine.subscribe("start", lambda: go_on.wait(20))
    call = Call(engine.start)
    extension = f"EXTEND_TIMEOUT_USEC={QUICK * 1e6:.0f}"
    sd.read_until(extension)
    left = -1.0
    sd.hears_nothing(QUICK / 5)
    assert sd.hears_nothing(QUICK)
    go_on.set()
    call.end()
    engine.exit()
    plugin.unsubscribe()


def test_a_slow_listener_gets_more_time(engine: Engine, sd: Manager) -> None:
    """In a start and in a stop, again and again, in a thread; none once it is over."""
    report(engine, extend=QUICK)
    go_on = [threading.Event(), threading.Event()]
    engine.subscribe("start", lambda: go_on[0].wait(20))
    engine.subscribe("stop", lambda: go_on[1].wait(20))
    extension = f"EXTEND_TIMEOUT_USEC={QUICK * 1e6:.0f}"
    for verb, event in zip((engine.start, engine.exit), go_on, strict=True):
        call = Call(verb)
        for _ in range(3):
            sd.read_until(extension)
        event.set()
        call.end()
        sd.waiting()
    name = f"{__name__}.test_a_slow_listener_gets_more_time.<locals>.<lambda>"
    slow = [lines for lines in sd.messages if lines[-1].endswith(name)]
    assert slow == [
        [extension, f"STATUS=starting: {name}"],
        [extension, f"STATUS=stopping: {name}"],
    ]
    kinds = [lines[0] for lines in sd.messages if lines[0] != extension]
    assert kinds[:3] == ["STATUS=starting", "READY=1", "STOPPING=1"]
    assert sd.messages[-1][0] in {extension, "STATUS=stopping"}


def test_signals_do_not_keep_a_slow_listener_from_its_time(engine: Engine, sd: Manager) -> None:
    """However many come: what is asked for depends on the clock alone."""
    report(engine, extend=QUICK)
    go_on = threading.Event()
    engine.subscribe("start", lambda: go_on.wait(20))
    call = Call(engine.start)
    sd.read_until("STATUS=starting")
    for _ in range(20):
        engine.tell(SignalCaught(name="SIGUSR1"))
        sd.hears_nothing(QUICK / 20)
    go_on.set()
    call.end()
    sd.waiting()
    assert [lines[0] for lines in sd.messages if "EXTEND" in lines[0]]


def test_without_a_thread_to_be_had_the_start_goes_on(
    engine: Engine, sd: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started any more, the log says what that means."""
    plugin = report(engine)

    def refuse(self: threading.Thread) -> None:
        if self.name == "engine systemd":
            raise RuntimeError("can't start new thread")
        start(self)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    engine.start()
    assert sd.waiting() == [STARTING, SERVING]
    why = "the watchdog is not fed, and no slow listener gets more time"
    assert said(engine) == [f"{why}: can't start new thread"]
    plugin.unsubscribe()


def test_time_is_not_extended_where_that_is_not_wanted(engine: Engine, sd: Manager) -> None:
    """With `extend=0` systemd's own limits hold."""
    report(engine, extend=0)
    engine.start()
    engine.exit()
    assert sd.waiting() == [STARTING, SERVING, *LEAVING]


def test_an_aborted_start_says_stopping_only(engine: Engine, sd: Manager) -> None:
    """An exit asked for during the start is no failure."""
    report(engine)
    starting = threading.Event()

    @engine.subscribe("start")
    def slow() -> None:
        starting.set()
        engine.aborting.wait(10)

    call = Call(engine.start)
    starting.wait(10)
    engine.exit()
    call.end()
    assert sd.waiting() == [
        STARTING,
        ["STATUS=stopping"],
        ["STATUS=stopped"],
        ["STOPPING=1", "STATUS=stopping"],
    ]


def test_a_stop_without_an_exit_is_not_final(engine: Engine, sd: Manager) -> None:
    """To systemd STOPPING=1 would be the end; an engine may be stopped and started again."""
    report(engine)
    engine.start()
    engine.stop()
    engine.start()
    assert sd.waiting() == [
        STARTING,
        SERVING,
        ["STATUS=draining, 0 in flight"],
        ["STATUS=stopping"],
        ["STATUS=stopped"],
        STARTING,
        SERVING,
    ]


def test_a_drain_tells_how_many_are_left(engine: Engine, sd: Manager) -> None:
    """The status follows the number of requests in flight."""
    report(engine, extend=QUICK)
    engine.start()
    engine.requests.open.update({1: None, 2: None})
    call = Call(engine.exit)
    assert sd.read_until("STATUS=draining, 2 in flight")[-1][0] == "STOPPING=1"
    engine.requests.end(1)
    sd.read_until("STATUS=draining, 1 in flight")
    engine.requests.end(2)
    call.end()
    sd.read_until("STATUS=stopping")


def test_graceful_is_a_reload(engine: Engine, sd: Manager) -> None:
    """RELOADING=1, with the time, before the first listener, READY=1 after the last."""
    engine.subscribe("graceful", lambda: heard.append(sd.waiting()), priority=-1e9)
    engine.subscribe("graceful", lambda: 1 / 0)
    engine.subscribe("graceful", lambda: heard.append(sd.waiting()), priority=1e9)
    heard: list[list[list[str]]] = []
    report(engine)
    engine.start()
    sd.waiting()
    before = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    with pytest.raises(ChannelFailures):
        engine.graceful()
    after = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    [[[word, time, status]], nothing] = heard
    assert (word, status, nothing) == ("RELOADING=1", "STATUS=reloading", [])
    assert before <= int(time.removeprefix("MONOTONIC_USEC=")) <= after
    assert sd.waiting() == [SERVING]


def test_two_reloads_at_once_are_ready_when_both_are(engine: Engine, sd: Manager) -> None:
    """READY=1 comes after the last of them only."""
    report(engine)
    engine.start()
    barrier = threading.Barrier(2)
    alone = threading.Event()
    engine.subscribe("graceful", lambda: barrier.wait(10), priority=1)
    engine.subscribe(
        "graceful", lambda: alone.wait(10) if threading.current_thread().daemon else None
    )
    sd.waiting()
    call = Call(engine.graceful)  # in a daemon thread: the slower one
    engine.graceful()
    assert [lines[0] for lines in sd.waiting()] == ["RELOADING=1"] * 2
    alone.set()
    call.end()
    assert sd.waiting() == [SERVING]


@pytest.mark.parametrize("moment", ["before", "starting", "draining", "after"])
def test_graceful_is_no_reload_unless_it_serves(engine: Engine, sd: Manager, moment: str) -> None:
    """An engine that has not started, or is about to leave, does not say READY=1 for it."""
    report(engine)
    if moment == "starting":
        engine.subscribe("start", engine.graceful)
    if moment == "draining":
        engine.subscribe("drain", engine.graceful)
    if moment == "before":
        engine.graceful()
    engine.start()
    engine.exit()
    if moment == "after":
        engine.graceful()
    assert sd.waiting() == [STARTING, SERVING, *LEAVING]


def test_subscribed_late_it_is_ready_at_once(engine: Engine, sd: Manager) -> None:
    """A plugin that finds the engine STARTED says so; turned off, it says nothing more."""
    engine.start()
    plugin = report(engine)
    assert sd.waiting() == [SERVING]
    plugin.unsubscribe()
    plugin.unsubscribe()
    engine.graceful()
    engine.stop()
    assert sd.waiting() == []
    assert not any(isinstance(getattr(o, "__self__", None), Systemd) for o in engine.observers)


def test_stop_without_a_start_says_nothing(engine: Engine, sd: Manager) -> None:
    """An engine that never started just says that it leaves."""
    report(engine)
    engine.stop()
    assert sd.waiting() == []
    engine.exit()
    assert sd.waiting() == [["STOPPING=1", "STATUS=stopping"]]


# -- processes -------------------------------------------------------------------------------------

SERVICE = """
from engine_bridge.plugins import Systemd
Systemd(engine, extend=1000).subscribe()
engine.subscribe("stop", lambda: record("stopping"))
engine.start()
block()
"""


def test_a_script_that_gets_sigterm(tmp_path: Path) -> None:
    """READY=1 and later STOPPING=1, from the process that was started."""
    with manager(tmp_path) as sd, start_script(script(SERVICE), env=sd.environment) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        assert sd.waiting() == [STARTING, SERVING, *LEAVING]


def test_a_restart_is_a_reload_to_systemd(tmp_path: Path) -> None:
    """By SIGHUP: RELOADING=1 and no STOPPING=1, then the new program's READY=1, in order."""
    with manager(tmp_path) as sd, start_script(script(SERVICE), env=sd.environment) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGHUP)
        process.wait_published("blocking", 2)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        assert without_time(sd.waiting()) == [
            STARTING,
            SERVING,
            ["RELOADING=1", "STATUS=restarting: draining, 0 in flight"],
            ["STATUS=restarting: stopping"],
            STARTING,
            SERVING,
            *LEAVING,
        ]
        assert any(line.startswith("MONOTONIC_USEC=") for line in sd.messages[2])


def test_sigterm_during_a_restart_is_stopping(tmp_path: Path) -> None:
    """A restart that turns into an exit says STOPPING=1 as soon as it does."""
    body = """
    gone = threading.Event()
    engine.subscribe("stop", lambda: (record("in stop"), gone.wait(20)))
    engine.subscribe("SIGTERM", gone.set, priority=10)
    """
    source = script(body, SERVICE)
    with manager(tmp_path) as sd, start_script(source, env=sd.environment) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGHUP)
        process.wait_published("in stop")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        assert without_time(sd.waiting())[2:] == [
            ["RELOADING=1", "STATUS=restarting: draining, 0 in flight"],
            ["STATUS=restarting: stopping"],
            ["STOPPING=1", "STATUS=stopping"],
        ]


def test_a_forked_child_is_silent(tmp_path: Path) -> None:
    """A child whose engine starts as well tells systemd nothing, and its log why."""
    body = """
    from engine_bridge.plugins import Systemd
    Systemd(engine).subscribe()
    engine.start()
    if not os.fork():
        engine.start()
        engine.graceful()
        engine.exit()
        print(*(r.message() for r in engine.last_records if r.level == 10 and hasattr(r, "text")))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    engine.exit()
    """
    with manager(tmp_path) as sd:
        done = run_script(script(body, handler=False), env=sd.environment)
        assert sd.waiting() == [STARTING, SERVING, *LEAVING]
    assert done.stdout == (
        "systemd is told nothing by this process: it watches the one that forked it\n"
    )


APP = """
from engine_bridge import engine
from engine_bridge.frameworks.{kind} import EngineMiddleware
from engine_bridge.plugins import Systemd
from functools import partial
from journal import record

Systemd(engine, extend=1000).subscribe()
for channel in ("start", "stop"):
    engine.subscribe(channel, partial(record, channel))

{app}
"""
WSGI = """
@EngineMiddleware
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
"""
ASGI = """
@EngineMiddleware
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
"""


def test_under_uvicorn_it_speaks_for_the_server(tmp_path: Path) -> None:
    """A single uvicorn is the process that systemd watches: READY=1 by lifespan, STOPPING=1."""
    pytest.importorskip("uvicorn")
    (tmp_path / "app.py").write_text(APP.format(kind="asgi", app=ASGI))
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}"]
    with (
        manager(tmp_path) as sd,
        run_server(command, cwd=tmp_path, env=sd.environment, ready=publishes("start")) as server,
    ):
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
        assert sd.waiting() == [STARTING, SERVING, *LEAVING]


@pytest.mark.parametrize("server", ["gunicorn", "gunicorn --preload", "uvicorn"])
def test_workers_are_silent(tmp_path: Path, server: str) -> None:
    """With two workers only the main process speaks, if it does: gunicorn's own READY=1."""
    name, *options = server.split()
    pytest.importorskip(name)
    (tmp_path / "app.py").write_text(
        APP.format(kind="wsgi", app=WSGI)
        if name == "gunicorn"
        else APP.format(kind="asgi", app=ASGI)
    )
    command = [sys.executable, "-m", name, "app:app", "--workers", "2", *options]
    if name == "gunicorn":
        command += ["--bind", "127.0.0.1:{port}", "--no-control-socket"]
        command += ["-c", "python:engine_bridge.servers.gunicorn"]
    else:
        command += ["--port", "{port}"]
    with (
        manager(tmp_path) as sd,
        run_server(command, cwd=tmp_path, env=sd.environment, ready=publishes("start", 2)) as run,
    ):
        run.signal(signal.SIGTERM)
        assert run.wait_exit() == 0
        words = [line for lines in sd.waiting() for line in lines if "STATUS" not in line]
    assert words == (["READY=1"] if name == "gunicorn" else [])


# -- who speaks ------------------------------------------------------------------------------------


def test_a_worker_says_in_its_log_why_it_is_silent(engine: Engine, sd: Manager) -> None:
    """Under a server's main process nothing is sent, and no thread started."""
    report(engine)
    engine.host = Host("worker", 7)
    engine.start()
    engine.graceful()
    why = "it watches process 7, and hears no other (NotifyAccess=main)"
    assert said(engine, 10) == [f"systemd is told nothing by this worker: {why}"]
    assert "engine systemd" not in [thread.name for thread in threading.enumerate()]
    engine.exit()
    assert sd.waiting() == []


def test_a_worker_that_systemd_has_started_speaks(
    engine: Engine, sd: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom $SYSTEMD_EXEC_PID names is the one, whatever else it is."""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    report(engine)
    engine.host = Host("worker", 7)
    engine.start()
    assert sd.waiting() == [STARTING, SERVING]


def test_mainpid_is_said_where_systemd_started_another_process(
    engine: Engine, sd: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon, or a child of a wrapper, names itself together with READY=1."""
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "7")
    report(engine)
    engine.start()
    assert sd.waiting() == [STARTING, ["READY=1", f"MAINPID={os.getpid()}", "STATUS=serving"]]


def test_without_a_service_manager_it_does_nothing(engine: Engine) -> None:
    """No listener, no observer, no thread, and `socket` is not even imported."""
    before = engine.observers
    report(engine)
    assert engine.observers == before
    engine.start()
    assert not engine._listeners.get("graceful")
    source = "import sys, engine_bridge.plugins as p, engine_bridge as e\n"
    source += "p.Systemd(e.engine).subscribe(); e.engine.start(); print('socket' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True)
    assert done.stdout == b"False\n"


def test_an_abstract_socket_is_reached(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that begins with @ is a name, not a path."""
    sd = Manager(f"@engine-bridge-{os.getpid()}-{os.urandom(4).hex()}")
    monkeypatch.setenv("NOTIFY_SOCKET", sd.environment["NOTIFY_SOCKET"])
    report(engine)
    engine.start()
    assert sd.waiting() == [STARTING, SERVING]
    sd.close()


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["run/notify", "vsock:2:1234", "ä", "NOTIFY"])
def test_an_address_that_is_none_gets_a_sentence(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """It is said at once what was found; the application runs without."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    report(engine)
    engine.start()
    found = f"NOTIFY_SOCKET={address!r} is neither a path from / nor a name with @"
    assert said(engine) == [f"{found}; the service manager is told nothing"]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/nowhere/notify", "No such file or directory"),
        ("/dev/null", "Connection refused"),
        ("/" + "x" * 200, "AF_UNIX path too long"),
        ("@nobody", "Connection refused"),
    ],
)
def test_a_manager_that_is_not_there_gets_one_warning(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    """The start goes on, and so does everything else."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    report(engine)
    engine.start()
    engine.graceful()
    engine.exit()
    assert said(engine) == [f"the service manager does not hear us at {address}: {why}"]


def test_a_manager_that_goes_and_comes_back_is_told_again(
    engine: Engine, sd: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens while nobody reads is lost; the next message arrives, a new loss is told."""
    path = Path(sd.environment["NOTIFY_SOCKET"])
    report(engine)
    engine.start()
    sd.close()
    engine.graceful()
    assert len(said(engine)) == 1
    path.unlink()
    again = Manager(str(path))
    engine.graceful()
    assert without_time(again.waiting()) == [["RELOADING=1", "STATUS=reloading"], SERVING]
    again.close()
    engine.graceful()
    assert len(said(engine)) == 2


def fill(sd: Manager) -> int:
    """Send datagrams until there is no room for more; return how many."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        for number in range(10000):
            try:
                filler.sendto(b"filler", sd.environment["NOTIFY_SOCKET"])
            except BlockingIOError:
                return number
    pytest.skip("a queue without a limit")


def test_a_full_queue_holds_nothing_up(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 finds no room: the start is over nevertheless, and READY=1 comes later, in order."""
    monkeypatch.setattr(systemd, "RETRY", 0.01)
    with manager(tmp_path, reads=False) as sd:
        address = sd.environment["NOTIFY_SOCKET"]
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        number = fill(sd)
        report(engine)
        Call(engine.start).end()
        assert engine.state is State.STARTED
        reason = "its queue is full, what is to be said is sent later"
        assert said(engine) == [f"the service manager does not hear us at {address}: {reason}"]
        assert sd.waiting() == [["filler"]] * number
        wait_until(lambda: sd.waiting() and sd.messages[-1] == SERVING)
        assert sd.messages[number:] == [STARTING, SERVING]


def test_what_waits_for_room_does_not_grow(engine: Engine, sd: Manager) -> None:
    """Of what a manager never takes only the last is kept."""
    plugin = report(engine)
    plugin._send = lambda message: False  # type: ignore[method-assign]  # a queue that stays full
    engine.start()
    for _ in range(50):
        engine.graceful()
    assert len(plugin._unsent) <= systemd.KEPT + 1


def test_an_observer_may_end_the_engine_when_it_is_warned(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning is told with no lock held: another thread may do what it likes meanwhile."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    report(engine)
    calls: list[Call] = []

    @engine.observe
    def observer(record: object) -> None:
        if isinstance(record, Message) and not calls:
            calls.append(Call(engine.graceful).end(5))

    engine.start()
    assert calls[0].error is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"extend": -1}, "Systemd(extend=…) wants seconds, 0 or more; got -1"),
        ({"extend": True}, "got True"),
        ({"extend": "10"}, "got '10'"),
        ({"extend": float("nan")}, "got nan"),
        ({"extend": float("inf")}, "got inf"),
        ({"check": 7}, "Systemd(check=…) wants a function to call, got 7"),
    ],
)
def test_wrong_arguments_get_a_sentence(
    engine: Engine, arguments: dict[str, object], words: str
) -> None:
    """They are refused at construction."""
    with pytest.raises(EngineError, match=re.escape(words)):
        Systemd(engine, **arguments)  # type: ignore[arg-type]  # that is the point


# -- the watchdog ----------------------------------------------------------------------------------

PING = ["WATCHDOG=1"]


@pytest.fixture
def watched(sd: Manager, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """A manager that expects to hear from us every 60 ms."""
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    return sd


def starve(sd: Manager, engine: Engine) -> str:
    """Wait until the log says that the watchdog is not fed; return what it says."""
    deadline = threading.Event()
    told: list[str] = []

    @engine.observe
    def look(record: object) -> None:
        if isinstance(record, Message) and "watchdog is not fed" in record.text:
            told.append(record.text)
            deadline.set()

    assert deadline.wait(10)
    engine.unobserve(look)
    assert sd.hears_nothing(0.2)  # several intervals; only silence can tell of silence
    return told[0]


def test_the_watchdog_is_fed_at_half_its_interval(engine: Engine, watched: Manager) -> None:
    """From the start until the exit, by a daemon thread."""
    plugin = report(engine)
    assert plugin._interval == 0.03
    engine.start()
    assert "engine systemd" in [t.name for t in threading.enumerate() if t.daemon]
    for _ in range(4):
        watched.read_until("WATCHDOG=1")
    engine.exit()
    assert "engine systemd" not in [thread.name for thread in threading.enumerate()]
    assert watched.hears_nothing(0.1)
    assert ["STATUS=stopping"] in watched.messages


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("3000000", None, 3.0),
        ("3000000", "own", 3.0),
        ("3000000", "1", 0.0),
        ("", None, 0.0),
        ("0", None, 0.0),
        ("-5", None, 0.0),
        ("1e6", None, 0.0),
        ("²", None, 0.0),
        ("9" * 5000, None, 0.0),
    ],
)
def test_the_watchdog_may_be_meant_for_another(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, seconds: float
) -> None:
    """WATCHDOG_PID is heeded; what is no number of microseconds is none."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert watchdog_seconds() == seconds


def test_the_watchdog_starves_when_a_listener_never_returns(watched: Manager) -> None:
    """An engine that has left a listener behind is not alive; the log has all stacks."""
    engine = Engine(start_timeout=NEVER, stop_timeout=0.1, slow_after=0.1)
    plugin = report(engine)
    returned = threading.Event()
    engine.subscribe("stop", lambda: returned.wait(20))
    engine.start()
    watched.read_until("WATCHDOG=1")
    call = Call(engine.stop)
    text = starve(watched, engine)
    assert text.startswith("systemd's watchdog is not fed, and ends this process: a listener has")
    assert " in wait\n" in text
    returned.set()
    call.end()
    plugin.unsubscribe()
    engine.exit()


def test_the_watchdog_starves_when_the_loop_hangs(engine: Engine, watched: Manager) -> None:
    """Async code that blocks the loop is found out, named in the log, and forgiven."""
    report(engine)
    go_on = threading.Event()

    async def hang() -> None:
        go_on.wait(20)

    @engine.subscribe("start")
    async def listener() -> None:
        """Have the engine bring a loop."""

    engine.start()
    loop = engine.loop
    assert loop is not None
    watched.read_until("WATCHDOG=1")
    future = asyncio.run_coroutine_threadsafe(hang(), loop)
    text = starve(watched, engine)
    assert "the event loop has not gone round for 0.03 s" in text
    assert " in hang\n" in text
    go_on.set()
    future.result(10)
    watched.read_until("WATCHDOG=1")
    watched.read_until("WATCHDOG=1")


def test_the_watchdog_starves_when_the_applications_loop_hangs(
    engine: Engine, watched: Manager
) -> None:
    """Under ASGI the loop is the server's, and a handler that blocks it is what hangs most."""
    report(engine)
    go_on = threading.Event()

    async def main() -> None:
        async with engine:
            await asyncio.to_thread(watched.read_until, "WATCHDOG=1")
            go_on.wait(20)
            await asyncio.to_thread(watched.read_until, "WATCHDOG=1")

    call = Call(lambda: asyncio.run(main()))
    text = starve(watched, engine)
    assert "the event loop has not gone round" in text
    assert " in main\n" in text
    go_on.set()
    assert call.end().error is None


def test_the_watchdog_bears_a_listener_that_blocks_the_loop(
    engine: Engine, watched: Manager
) -> None:
    """A sync start listener on the loop's thread is within its limit: that is work, no hang."""
    report(engine)
    pings: list[list[list[str]]] = []

    @engine.subscribe("start")
    def slow() -> None:
        pings.extend(watched.read_until("WATCHDOG=1") for _ in range(4))

    async def main() -> None:
        async with engine:
            pass

    asyncio.run(main())
    assert len(pings) == 4
    assert said(engine) == []


def test_the_watchdog_starves_when_somebody_sits_on_the_lock(
    engine: Engine, watched: Manager
) -> None:
    """An engine whose lock is never given back can do nothing any more."""
    report(engine)
    engine.start()
    with engine._changed:
        text = starve(watched, engine)
    assert "a thread sits on the engine's lock" in text
    watched.read_until("WATCHDOG=1")


@pytest.mark.parametrize("how", ["false", "raises"])
def test_the_watchdog_starves_when_the_check_fails(
    engine: Engine, watched: Manager, how: str
) -> None:
    """What the application says of itself counts, whatever it raises; later it may be well."""
    well = threading.Event()
    well.set()

    def check() -> bool:
        if how == "raises" and not well.is_set():
            raise ValueError("no heartbeat")
        return well.is_set()

    report(engine, check=check)
    engine.start()
    watched.read_until("WATCHDOG=1")
    well.clear()
    text = starve(watched, engine)
    assert ("ValueError: no heartbeat" if how == "raises" else "not alive") in text
    well.set()
    watched.read_until("WATCHDOG=1")


def test_the_watchdog_is_fed_through_a_restart(tmp_path: Path) -> None:
    """The last thing before the new program is WATCHDOG=1, so that this has a whole interval."""
    body = """
    from engine_bridge.plugins import Systemd
    os.environ.setdefault("WATCHDOG_PID", str(os.getpid()))
    Systemd(engine, extend=1000).subscribe()
    engine.start()
    block()
    """
    with manager(tmp_path) as sd:
        environment = {**sd.environment, "WATCHDOG_USEC": "100000000"}
        with start_script(script(body), env=environment) as process:
            process.wait_published("blocking")
            process.signal(signal.SIGHUP)
            process.wait_published("blocking", 2)
            process.signal(signal.SIGTERM)
            assert process.wait_exit() == 0
        words = [lines[0] for lines in sd.waiting()]
    first = words[: words.index("RELOADING=1")]
    assert sorted(first) == sorted(["STATUS=starting", "WATCHDOG=1", "READY=1"])
    rest = words[len(first) :]
    assert rest[:4] == [
        "RELOADING=1",
        "STATUS=restarting: stopping",
        "WATCHDOG=1",
        "STATUS=starting",
    ]
    assert rest.count("WATCHDOG=1") == 2


# -- sockets that were handed over -----------------------------------------------------------------

TAKES = """
from engine_bridge.plugins.systemd import listen_sockets

def facts():
    return {
        name: [[s.family.name, s.type.name, s.getsockname(), s.get_inheritable()] for s in sockets]
        for name, sockets in listen_sockets().items()
    }

life = os.environ.setdefault("LIFE", "first")
os.environ["LIFE"] = "second"
record(life, found=facts(), again=facts(), env=os.environ.get("LISTEN_PID") == str(os.getpid()))
[web] = listen_sockets()["web"]
"""


def test_sockets_are_taken_by_name_and_kept_over_a_restart(tmp_path: Path) -> None:
    """From systemd's own tool: TCP and Unix, found out, not inherited, there again."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("needs systemd-socket-activate")
    port, path = free_port(), tmp_path / "admin.sock"
    program = tmp_path / "program.py"
    program.write_text(
        script(
            TAKES,
            """
            engine.start()
            if life == "first":
                engine.restart()
            connection, _ = web.accept()  # the one that has woken us
            connection.sendall(b"hello")
            connection.close()
            """,
            handler=False,
        )
    )
    command: list[str | Path] = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-l", path]
    command += ["--fdname=web:admin"]
    for name in ("PATH", "PYTHONPATH", "ENGINE_BRIDGE_TEST_JOURNAL", "ENGINE_BRIDGE_TEST_RUN"):
        command += ["-E", name]
    with start_process([*command, sys.executable, program]) as process:
        process.wait_line("Listening on .*admin")
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(10)
            assert client.recv(10) == b"hello"
        assert process.wait_exit() == 0
        first, second = (e for e in process.journal() if e.channel in {"first", "second"})
    assert first.pid == second.pid == process.pid
    assert first.facts == second.facts
    found = {
        "web": [["AF_INET", "SOCK_STREAM", ["127.0.0.1", port], False]],
        "admin": [["AF_UNIX", "SOCK_STREAM", str(path), False]],
    }
    assert first.facts == {"found": found, "again": found, "env": True}


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Three sockets and a pipe, numbered in a row, as if a manager had handed them over."""
    first = 900
    made: list[socket.socket] = []
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix,
    ):
        reader, writer = os.pipe()
        numbers = (tcp.fileno(), udp.fileno(), reader, unix.fileno())
        for offset, number in enumerate(numbers):
            os.dup2(number, first + offset)
        os.close(reader)
        os.close(writer)
    monkeypatch.setattr(systemd, "LISTEN_FDS_START", first)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "4")
    yield made
    for each in made:
        each.detach()
    for number in range(4):
        os.close(first + number)


def take(made: list[socket.socket]) -> dict[str, list[socket.socket]]:
    """Return what there is; the fixture closes it."""
    found = listen_sockets()
    made[:] = [each for sockets in found.values() for each in sockets]
    return found


def test_sockets_are_of_the_kind_they_are(handed_over: list[socket.socket]) -> None:
    """Family and type are found out; unnamed they are `unknown`; what is no socket is left."""
    [sockets] = take(handed_over).values()
    assert [(each.family, each.type) for each in sockets] == [
        (socket.AF_INET, socket.SOCK_STREAM),
        (socket.AF_INET6, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
    ]
    assert [each.fileno() for each in sockets] == [900, 901, 903]
    assert listen_sockets() == {"unknown": sockets}


def test_sockets_of_one_name_stay_together(
    handed_over: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names may be given twice, and be empty."""
    monkeypatch.setenv("LISTEN_FDNAMES", "web::pipe:web")
    found = take(handed_over)
    assert {name: [each.fileno() for each in of] for name, of in found.items()} == {
        "web": [900, 903],
        "": [901],
    }


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_PID": "", "LISTEN_FDS": ""},
        {"LISTEN_PID": ""},
        {"LISTEN_PID": "1"},
        {"LISTEN_FDS": ""},
        {"LISTEN_FDS": "0"},
    ],
)
def test_sockets_for_another_process_are_not_ours(
    handed_over: list[socket.socket], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Without variables, or with those of somebody else, there are none."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert take(handed_over) == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"LISTEN_PID": "me"}, "LISTEN_PID='me' is not the number of a process; unset"),
        ({"LISTEN_FDS": "many"}, "LISTEN_FDS='many' is not a number of descriptors; unset"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS='-1' is not a number"),
        ({"LISTEN_FDS": "²"}, "is not a number"),
        ({"LISTEN_FDS": "9" * 5000}, "is not a number"),
        ({"LISTEN_FDS": "5"}, "LISTEN_FDS='5' counts descriptor 904, which is closed"),
        ({"LISTEN_FDS": "999999999"}, "counts descriptor 904, which is closed"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES='a:b' does not name 4 descriptors"),
    ],
)
def test_sockets_that_cannot_be_get_a_sentence(
    handed_over: list[socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: str,
) -> None:
    """What does not fit together is named, and nothing has been closed."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match=re.escape(words)):
        listen_sockets()
    os.fstat(900)
