import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Process, exists, run_script, start_script, wait_until
from scripts import script

from engine_bridge import Engine, EngineError
from engine_bridge.core import signals
from engine_bridge.core.records import INFO, WARNING, Message
from engine_bridge.plugins import SignalHandler

LIFE = ["start", "drain", "stop", "exit"]

IN_BLOCK = """
engine.start()
block()
"""
ELSEWHERE = """
engine.start()
record("ready")
while True:
    time.sleep(10)
"""
IN_START = """
@engine.subscribe("start", priority=60)
def slow():
    record("starting")
    engine.aborting.wait(30)
    record("returned")

engine.start()
record("started")
"""
IN_ASYNC_START = """
import asyncio

@engine.subscribe("start", priority=60)
async def slow():
    record("starting")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        record("returned")
        raise

engine.start()
record("started")
"""
IN_START_ON_A_LOOP = """
import asyncio

@engine.subscribe("start", priority=60)
async def slow():
    record("starting")
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        record("returned")
        raise

async def main():
    async with engine:
        record("started")

asyncio.run(main())
"""


def channels(process: Process) -> list[str]:
    """Return what the script recorded, without what only the test waited for."""
    beside = {"blocking", "ready", "starting"}
    return [entry.channel for entry in process.journal() if entry.channel not in beside]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is not heard of any more after the test."""
    engine = Engine()
    yield engine
    engine.exit()
    for number in tuple(signals._watchers):
        signals.unwatch(engine, number)


def told(engine: Engine, level: int) -> list[str]:
    """Return the sentences of *level* that the engine has said."""
    return [
        record.text
        for record in engine.last_records
        if isinstance(record, Message) and record.level == level
    ]


# in block


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_block_ends_the_script(sig: signal.Signals) -> None:
    """SIGTERM and SIGINT make `block` return once the exit is complete; the exit status is 0."""
    with start_script(script(IN_BLOCK), apart=True) as process:
        process.wait_published("blocking")
        process.signal(sig)
        assert process.wait_exit() == 0
    assert channels(process) == LIFE
    assert process.errors() == ""


def test_a_failing_stop_listener_is_told_once_and_fails_the_script() -> None:
    """After SIGTERM a failure of the exit is raised by `block`, and in the log it stands once."""
    body = """
    @engine.subscribe("stop", priority=40)
    def fail():
        raise OSError("no space")
    """
    with start_script(script(body, IN_BLOCK), apart=True) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 1
    assert channels(process) == LIFE
    assert process.errors().count("__main__.fail failed on 'stop': OSError: no space") == 1
    assert "SIGTERM" not in process.errors()


def test_exit_code_of_a_stop_listener_is_kept() -> None:
    """`sys.exit(3)` in a stop listener ends a blocked script with 3 after SIGTERM."""
    body = 'engine.subscribe("stop", lambda: sys.exit(3))\n'
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 3
    assert channels(process) == LIFE


def test_sigusr1_is_graceful() -> None:
    """SIGUSR1 publishes `graceful` and changes no state."""
    with start_script(script(IN_BLOCK)) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGUSR1)
        process.wait_published("graceful")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert channels(process) == ["start", "graceful", *LIFE[1:]]


# elsewhere


def test_sigterm_unwinds_a_script_that_does_not_block() -> None:
    """SIGTERM ends whatever the main thread does with SystemExit(143); the engine exits once."""
    body = """
    engine.start()
    record("ready")
    try:
        while True:
            time.sleep(10)
    finally:
        record("unwound")
    """
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert sorted(channels(process)) == sorted([*LIFE, "unwound"])
    assert process.errors() == ""


def test_sigint_interrupts_a_script_that_does_not_block() -> None:
    """SIGINT raises KeyboardInterrupt in the main thread, as Python does; the engine exits once."""
    with start_script(script(ELSEWHERE), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGINT)
        assert process.wait_exit() == -signal.SIGINT
    assert channels(process) == LIFE
    assert process.errors().endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize(
    "waiting",
    [
        "engine.wait(State.EXITING)",
        "engine.wait(State.STARTING, 30)",
        "threading.Event().wait()",
        "sleeper.join()",
        "asyncio.run(asyncio.sleep(30))",
    ],
)
def test_sigterm_ends_whatever_the_main_thread_waits_for(waiting: str) -> None:
    """SIGTERM gets a main thread out of each kind of wait, `engine.wait()` included."""
    body = f"""
    import asyncio
    sleeper = threading.Thread(target=time.sleep, args=(30,), daemon=True)
    sleeper.start()
    engine.start()
    record("ready")
    {waiting}
    time.sleep(30)
    """
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert channels(process) == LIFE
    assert process.errors() == ""


def test_a_script_that_has_not_started_dies_of_sigterm() -> None:
    """Before the engine has begun there is nothing to end: SIGTERM does what it does by default."""
    with start_script(script('record("ready")\ntime.sleep(30)')) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == []


def test_a_script_that_has_stopped_still_exits_on_sigterm() -> None:
    """Stopped is not exited: parts that listen to `exit` hear of it on SIGTERM."""
    body = """
    engine.start()
    engine.stop()
    record("ready")
    time.sleep(30)
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 143
    assert channels(process) == LIFE


# during a start


@pytest.mark.parametrize("body", [IN_START, IN_ASYNC_START, IN_START_ON_A_LOOP])
def test_sigterm_during_a_start_is_honoured_at_once(body: str) -> None:
    """A start of 30 s ends when SIGTERM comes: rolled back, exited, status 143, not a word."""
    with start_script(script(body), apart=True) as process:
        process.wait_asleep("starting")
        process.signal(signal.SIGTERM)
        process.wait_published("returned", limit=2)
        assert process.wait_exit() == 143
    assert channels(process) == ["start", "returned", "stop", "exit"]
    assert process.errors() == ""


def test_sigint_during_a_start_is_a_keyboard_interrupt() -> None:
    """A start that Ctrl-C aborts ends as any Python program that Ctrl-C ends."""
    with start_script(script(IN_START), apart=True) as process:
        process.wait_asleep("starting")
        process.signal(signal.SIGINT)
        assert process.wait_exit() == -signal.SIGINT
    assert channels(process) == ["start", "returned", "stop", "exit"]
    assert process.errors().endswith("KeyboardInterrupt\n")
    assert "StartAborted" not in process.errors().rsplit("Traceback", 1)[1]


# the second and the third


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_drain(second: signal.Signals) -> None:
    """A request in flight holds the exit up, until SIGTERM or SIGINT comes once more."""
    body = """
    engine.drain_timeout = 60
    engine.requests.open[object()] = None
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        process.wait_published("drain")
        process.signal(second)
        assert process.wait_exit(5) == 0
    assert channels(process) == LIFE


@pytest.mark.parametrize("body", [IN_BLOCK, ELSEWHERE])
def test_the_third_signal_kills(body: str) -> None:
    """A script whose stop does not end is killed by the third SIGTERM."""
    stuck = """
    @engine.subscribe("stop", priority=60)
    def stuck():
        record("stuck")
        while True:
            try:
                time.sleep(0.05)  # a signal that comes just as it falls asleep is heard after it
            except BaseException:
                pass

    engine.observe(lambda record: record.level == 20 and print(record.message(), flush=True))
    """
    with start_script(script(stuck, body)) as process:
        process.wait_asleep("blocking" if body == IN_BLOCK else "ready")
        process.signal(signal.SIGTERM)
        process.wait_published("stuck")
        process.signal(signal.SIGTERM)
        process.wait_line("Caught SIGTERM", 2)
        assert exists(process.pid)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == ["start", "drain", "stop", "stuck"]


def test_a_new_life_counts_anew() -> None:
    """A signal of an earlier life does not shorten the drain of the next."""
    body = """
    engine.start()
    record("ready")
    try:
        time.sleep(30)
    except SystemExit:
        pass
    engine.exit()
    engine.drain_timeout = 0.3
    engine.start()
    engine.requests.open[object()] = None
    block()
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert channels(process) == LIFE * 2
    assert "drain ended after 0.3 s with 1 still in flight" in process.output()


# SIGHUP


@pytest.mark.parametrize("where", ["block()", "time.sleep(30)"])
def test_sighup_restarts_a_detached_script_in_place(where: str) -> None:
    """Without a terminal SIGHUP has the program begin anew, in the same process."""
    body = f"""
    engine.start()
    record("ready", life=os.environ.setdefault("LIFE", "1"))
    os.environ["LIFE"] = "2"
    {where}
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGHUP)
        first, second = process.wait_published("ready", 2)
        assert (first.facts["life"], second.facts["life"]) == ("1", "2")
        assert first.pid == second.pid == process.pid
        process.signal(signal.SIGKILL)
    assert channels(process) == [*LIFE, "start"]


def test_sighup_ends_a_script_whose_terminal_went_away(tmp_path: Path) -> None:
    """When the terminal hangs up, the script in front of it exits, wherever its main thread is."""
    driver = """
    import os, pty, sys
    for where in ("block", "sleep"):
        pid, master = pty.fork()
        if not pid:
            os.execv(sys.executable, [sys.executable, sys.argv[1], where])
        while b"ready" not in os.read(master, 1000):
            pass
        os.close(master)
        print(where, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    """
    body = """
    engine.start()
    ready = lambda: os.write(1, b"ready")
    if sys.argv[1] == "block":
        when(lambda: engine.notes._waiting, ready)
        engine.block()
    else:
        ready()
        for _ in range(600):
            time.sleep(0.05)  # a signal that comes just as it falls asleep is heard after it
    """
    path = tmp_path / "script.py"
    path.write_text(script(body))
    done = run_script(driver, path)
    assert done.stdout.split() == ["block", "0", "sleep", "129"], done.stdout + done.stderr
    lives = done.process.published()
    assert list(lives.values()) == [LIFE, LIFE]


def test_sigterm_during_a_restart_has_the_last_word() -> None:
    """A process that is told to go while it stops for a restart goes, and does not come back."""
    body = """
    engine.subscribe("stop", lambda: (record("stopping"), gone.wait(20)))
    gone = threading.Event()
    engine.subscribe("SIGTERM", gone.set, priority=10)
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGHUP)
        process.wait_published("stopping")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert [c for c in channels(process) if c != "stopping"] == LIFE


def test_a_restart_that_is_refused_leaves_the_script_running() -> None:
    """SIGHUP to a script that cannot be started again changes nothing but the log."""
    with start_script(script(IN_BLOCK)) as process:
        process.wait_published("blocking")
        path = process.argv[-1]
        with open(path, "a") as file:
            file.write("\n}")
        process.signal(signal.SIGHUP)
        process.wait_line(r"SIGHUP: no restart: .*script.py does not compile, line \d+: unmatched")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert channels(process) == LIFE


# SIGUSR2


def test_sigusr2_dumps_threads_and_tasks_and_records() -> None:
    """SIGUSR2 logs the stacks of all threads and tasks, the state, and what happened last."""
    body = """
    import asyncio

    async def forever():
        await asyncio.sleep(30)

    @engine.subscribe("start")
    async def spawn():
        engine.task = asyncio.create_task(forever(), name="the task")

    def in_a_thread():
        time.sleep(30)

    threading.Thread(target=in_a_thread, name="the thread", daemon=True).start()
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGUSR2)
        process.wait_line(r"^task the task:")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    output = process.output()
    assert re.search(r"<Engine STARTED, pid \d+>\n(.*\n)*Engine STARTED\n", output)
    assert re.search(r"thread the thread \(\d+\):\n(.*\n)*?.*in_a_thread\n", output)
    assert re.search(r"thread MainThread \(\d+\):\n(.*\n)*?.* in block\n", output)
    assert re.search(r"task the task:\n.*line \d+, in forever\n(.*\n)*?.* in sleep\n", output)


@pytest.mark.parametrize("channel", ["start", "stop", "exit"])
def test_sigusr2_answers_in_the_midst_of_a_transition(channel: str) -> None:
    """A transition that hangs in the main thread is seen in the stacks that SIGUSR2 logs."""
    body = f"""
    go_on = threading.Event()

    @engine.subscribe("{channel}", priority=60)
    def hanging_listener():
        record("hanging")
        go_on.wait(20)

    engine.subscribe("SIGUSR2", go_on.set, priority=90)
    engine.start()
    engine.exit()
    """
    with start_script(script(body)) as process:
        process.wait_asleep("hanging")
        process.signal(signal.SIGUSR2)
        assert process.wait_exit() == 0
    state = {"start": "STARTING", "stop": "STOPPING", "exit": "EXITING"}[channel]
    assert f"<Engine {state}, pid {process.pid}>" in process.output()
    assert " in hanging_listener\n" in process.output()
    assert [c for c in channels(process) if c != "hanging"] == LIFE


def test_sigusr2_answers_after_the_exit() -> None:
    """A process that hangs once its engine has exited still shows its stacks."""
    body = """
    engine.start()
    engine.exit()
    def hangs_the_end():
        threading.main_thread().join()
        record("ready")
        seen.wait(20)
    seen = threading.Event()
    engine.subscribe("SIGUSR2", seen.set, priority=90)
    threading.Thread(target=hangs_the_end).start()
    record("ready")
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready", 2)
        process.signal(signal.SIGUSR2)
        assert process.wait_exit() == 0
    assert " in hangs_the_end\n" in process.output()


def test_sigusr2_shows_the_tasks_of_loops_in_other_threads() -> None:
    """Each loop has its tasks in the dump, whoever runs it, the one that runs just now as well."""
    body = """
    import asyncio

    async def innermost(event):
        await event.wait()

    async def waits(event):
        await innermost(event)

    async def spins(number):
        record("spins", number=number)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pass

    async def main(number):
        event = asyncio.Event()
        task = asyncio.create_task(waits(event), name=f"waits {number}")
        await asyncio.sleep(0)
        if number == 2:
            await asyncio.create_task(spins(number), name=f"spins {number}")
        record("spins", number=number)
        await task

    for number in (1, 2):
        threading.Thread(
            target=asyncio.run, args=(main(number),), name=f"loop {number}", daemon=True
        ).start()
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("spins", 2)
        process.wait_published("blocking")
        process.signal(signal.SIGUSR2)
        process.wait_line(r"^task spins 2:")
        process.wait_line(r"^task waits [12]:", 2)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    output = process.output()
    for number in (1, 2):
        stack = rf"task waits {number}:\n(  .*\n)*?.*, in waits\n(  .*\n)*?.*, in innermost\n"
        assert re.search(stack, output)
        assert re.search(rf"thread loop {number} \(\d+\):\n", output)
    assert re.search(r"task spins 2:\n(  .*\n)*?.*, in spins\n", output)


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param("while not seen: sum(range(1000))", id="computes"),
        pytest.param("lock.acquire(timeout=20)", id="waits"),
        pytest.param("while not seen: gc.collect()", id="collects"),
        pytest.param("while not seen: logging.warning('busy')", id="logs"),
        pytest.param("while not seen: engine.publish('app')", id="publishes"),
        pytest.param("while not seen: hold()", id="holds"),
    ],
)
def test_sigusr2_answers_from_a_busy_main_thread(busy: str) -> None:
    """Whatever the main thread does, even if it holds what the log needs for a moment."""
    body = f"""
    import gc, logging
    logging.basicConfig()
    own = threading.Lock()

    class Locked(logging.Handler):
        def emit(self, entry):
            with own:
                pass

    def hold():
        with own:
            sum(range(100000))

    logging.getLogger("engine_bridge").addHandler(Locked())
    seen = []
    lock = threading.Lock()
    lock.acquire()
    engine.subscribe("app", lambda: None)
    engine.subscribe("SIGUSR2", lambda: (seen.append(1), lock.release()), priority=90)

    def works():
        record("busy")
        {busy}

    engine.start()
    works()
    engine.exit()
    """
    with start_script(script(body)) as process:
        if "acquire" in busy:
            process.wait_asleep("busy")
        else:
            process.wait_published("busy")
        process.signal(signal.SIGUSR2)
        assert process.wait_exit() == 0
    assert re.search(r"thread MainThread \(\d+\):\n(  .*\n)*?.*, in works\n", process.output())


@pytest.mark.parametrize(
    "broken",
    [
        "sys.stderr = None",
        "sys.stderr.close()",
        "os.close(2)",
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    ],
)
@pytest.mark.parametrize(
    "log", ["", "from engine_bridge.plugins import Log; Log(engine).subscribe()"]
)
def test_sigusr2_does_no_harm_without_a_standard_error(broken: str, log: str) -> None:
    """A dump that cannot be written is lost, and the process goes on."""
    body = f"""
    {broken}
    {log}
    engine.subscribe("SIGUSR2", partial(record, "dumped"), priority=90)
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        for count in (1, 2):
            process.signal(signal.SIGUSR2)
            process.wait_published("dumped", count)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert [c for c in channels(process) if c != "dumped"] == LIFE


def test_sigusr2_again_and_again_breaks_nothing() -> None:
    """Many in a row, and some amid transitions, break none of these."""
    body = """
    engine.subscribe("SIGUSR2", partial(record, "dumped"), priority=90)
    engine.subscribe("start", lambda: os.kill(os.getpid(), signal.SIGUSR2), priority=2)
    engine.subscribe("stop", lambda: os.kill(os.getpid(), signal.SIGUSR2))
    engine.subscribe("exit", lambda: os.kill(os.getpid(), signal.SIGUSR2))
    """
    with start_script(script(body, IN_BLOCK)) as process:
        process.wait_published("blocking")
        for _ in range(20):
            process.signal(signal.SIGUSR2)
        process.wait_published("dumped", 2)
        process.signal(signal.SIGTERM)
        process.wait_published("exit")
        assert process.wait_exit() == 0
    assert [c for c in channels(process) if c != "dumped"] == LIFE


# what it installs, and what not


def test_the_map_is_plain_data(engine: Engine) -> None:
    """Listeners are exchanged in `handlers`, added to it, or None to leave a signal alone."""
    seen: list[str] = []
    plugin = SignalHandler(engine)
    plugin.handlers["SIGHUP"] = None
    plugin.handlers["SIGUSR1"] = lambda: seen.append("mine")
    plugin.handlers["SIGWINCH"] = lambda: seen.append("resized")
    plugin.subscribe()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    for sig in (signal.SIGUSR1, signal.SIGWINCH):
        signal.raise_signal(sig)
    wait_until(lambda: sorted(seen) == ["mine", "resized"])
    plugin.handlers["SIGWINCH"] = None
    plugin.subscribe()
    assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL
    assert isinstance(signal.getsignal(signal.SIGUSR1), signals.Handler)
    plugin.unsubscribe()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_listener_of_ones_own_decides_alone() -> None:
    """A script that maps SIGTERM to something else is neither ended nor unwound by it."""
    body = """
    handler.handlers["SIGTERM"] = partial(record, "mine")
    handler.subscribe()
    """
    with start_script(script(body, ELSEWHERE)) as process:
        for count in (1, 2, 3, 4):
            process.wait_asleep("ready")
            process.signal(signal.SIGTERM)
            process.wait_published("mine", count)
        process.wait_asleep("ready")
        process.signal(signal.SIGINT)
        assert process.wait_exit() == -signal.SIGINT
    assert channels(process) == ["start", *["mine"] * 4, *LIFE[1:]]


def test_anybody_may_listen_to_the_channel() -> None:
    """Listeners of channel SIGTERM run before the exit or after it, by priority, and may fail."""
    body = """
    engine.subscribe("SIGTERM", partial(record, "before"), priority=10)
    engine.subscribe("SIGTERM", partial(record, "after"), priority=90)
    engine.subscribe("SIGTERM", lambda: 1 / 0, priority=20)
    """
    with start_script(script(body, IN_BLOCK), apart=True) as process:
        process.wait_published("blocking")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert channels(process) == ["start", "before", *LIFE[1:], "after"]
    assert "SIGTERM: 'SIGTERM' failed: ZeroDivisionError" in process.errors()


@pytest.mark.parametrize("name", ["SIGTREM", "SIG_DFL", "TERM", "__doc__", 15])
def test_an_unknown_signal_gets_a_sentence(engine: Engine, name: Any) -> None:
    """A name that is no signal's is refused, with those that are, before anything is installed."""
    plugin = SignalHandler(engine)
    plugin.handlers[name] = print
    with pytest.raises(
        EngineError, match=f"^no signal {name!r} on this system; known: SIG.*SIGINT"
    ):
        plugin.subscribe()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_subscribed_twice_is_as_good_as_once(engine: Engine) -> None:
    """The second `subscribe()` changes nothing, and one `unsubscribe()` undoes both."""
    found = {number: signal.getsignal(number) for number in (1, 2, 10, 12, 15)}
    plugin = SignalHandler(engine)
    plugin.subscribe()
    handlers = {number: signal.getsignal(number) for number in found}
    plugin.subscribe()
    assert {number: signal.getsignal(number) for number in found} == handlers
    assert all(isinstance(handler, signals.Handler) for handler in handlers.values())
    plugin.unsubscribe()
    assert {number: signal.getsignal(number) for number in found} == found
    assert not engine._listeners["SIGTERM"]
    plugin.unsubscribe()


def test_a_handler_that_is_no_longer_ours_is_not_replaced(engine: Engine) -> None:
    """`unsubscribe()` puts back the old handler only where ours is still in place."""

    def theirs(*_: object) -> None:
        """Do nothing."""

    plugin = SignalHandler(engine)
    plugin.subscribe()
    signal.signal(signal.SIGHUP, theirs)
    plugin.unsubscribe()
    try:
        assert signal.getsignal(signal.SIGHUP) is theirs
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_unsubscribed_in_another_thread_it_stands_aside() -> None:
    """Where handlers cannot be put back ours remain, as good as not there."""
    body = """
    engine.start()
    thread = threading.Thread(target=handler.unsubscribe)
    thread.start()
    thread.join()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        record("interrupted")
    record("ready")
    time.sleep(30)
    """
    with start_script(script(body)) as process:
        process.wait_asleep("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
    assert channels(process) == ["start", "interrupted"]


def test_subscribed_off_the_main_thread_it_is_loud(engine: Engine) -> None:
    """Where no handler can be installed the log says so for each signal; the start repairs it."""
    plugin = SignalHandler(engine)
    thread = threading.Thread(target=plugin.subscribe)
    thread.start()
    thread.join()
    sentence = (
        "no handler for {}: only the main thread can install it; subscribe the SignalHandler there"
    )
    assert told(engine, WARNING) == [sentence.format(name) for name in plugin.handlers]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    engine.start()
    assert isinstance(signal.getsignal(signal.SIGTERM), signals.Handler)
    plugin.unsubscribe()


def test_sigkill_gets_a_sentence(engine: Engine) -> None:
    """A signal that nobody can catch is named in the log."""
    plugin = SignalHandler(engine)
    plugin.handlers = {"SIGKILL": print}
    plugin.subscribe()
    assert told(engine, WARNING) == ["no handler for SIGKILL: the system lets nobody catch it"]


def test_an_ignored_signal_stays_ignored(engine: Engine) -> None:
    """What nohup asked for is left alone, and mentioned."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    plugin = SignalHandler(engine)
    plugin.subscribe()
    plugin.unsubscribe()
    try:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert told(engine, INFO) == [
        "SIGHUP was ignored when this process began, e.g. by nohup, and stays so"
    ]
    assert told(engine, WARNING) == []


def test_a_handler_written_in_c_is_left_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python cannot call a handler from C, so it is not replaced, and that is said loudly."""
    real = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGHUP else real(number)
    )
    plugin = SignalHandler(engine)
    plugin.subscribe()
    plugin.unsubscribe()
    assert real(signal.SIGHUP) is signal.SIG_DFL
    assert told(engine, WARNING) == [
        "no handler for SIGHUP: code written in C has one, which is left alone"
    ]


def test_sigusr2_is_only_taken_where_it_is_free(engine: Engine) -> None:
    """Somebody's handler of SIGUSR2 stays; a listener of one's own is installed nevertheless."""

    def theirs(*_: object) -> None:
        """Do nothing."""

    signal.signal(signal.SIGUSR2, theirs)
    try:
        plugin = SignalHandler(engine)
        plugin.subscribe()
        assert signal.getsignal(signal.SIGUSR2) is theirs
        plugin.handlers["SIGUSR2"] = engine.graceful
        plugin.subscribe()
        assert isinstance(signal.getsignal(signal.SIGUSR2), signals.Handler)
        plugin.unsubscribe()
        assert signal.getsignal(signal.SIGUSR2) is theirs
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@pytest.mark.parametrize("stdin", [None, "closed"])
def test_without_a_standard_input_there_is_no_terminal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, stdin: str | None
) -> None:
    """A daemon's closed or missing standard input means: detached."""
    if stdin:
        with open("/dev/null") as file:
            monkeypatch.setattr("sys.stdin", file)
    else:
        monkeypatch.setattr("sys.stdin", None)
    assert SignalHandler(engine)._tty is False
