import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounts import on_mount
from processes import (
    Entry,
    Finished,
    Process,
    exists,
    run_script,
    start_process,
    start_script,
    wait_gone,
    wait_line,
    wait_until,
)
from scripts import script

from engine_bridge import ChannelFailures, Engine, EngineError
from engine_bridge.core.host import Host
from engine_bridge.plugins import Daemonizer, daemonize

LIFE = ["start", "drain", "stop", "exit"]

# What the scripts share: who this process is, and where.
DAEMON = """
from engine_bridge import ChannelFailures, EngineError
from engine_bridge.plugins import Daemonizer, PIDFile

LAUNCHER = os.getpid()
record("launcher")

def tell(channel="daemon"):
    umask = os.umask(0)
    os.umask(umask)
    record(
        channel, launcher=LAUNCHER, parent=os.getppid(), session=os.getsid(0), cwd=os.getcwd(),
        umask=umask, streams=[os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
        threads=[each.name for each in threading.enumerate()],
        variable=os.environ.get("ENGINE_BRIDGE_DAEMON"),
    )

"""
STARTS = """
engine.start()
tell()
block()
"""


def program(*parts: str, handler: bool = True) -> str:
    """Return the source of a script that can daemonize."""
    return script(DAEMON, *parts, handler=handler)


@contextmanager
def launched(source: str, *args: str | Path, **options: Any) -> Iterator[Process]:
    """Run a script; in the end, end its daemons too, by SIGTERM."""
    with start_script(source, *args, **options) as process:
        try:
            yield process
        finally:
            for info in process.family():
                if info.pid != process.pid:
                    os.kill(info.pid, signal.SIGTERM)


def the_daemon(process: Process) -> Entry:
    """Return what the one daemon told of itself."""
    [entry] = process.wait_published("daemon")
    return entry


def channels(process: Process, pid: int) -> list[str]:
    """Return the lifecycle channels that were published in *pid*."""
    return [each for each in process.published().get(pid, []) if each in LIFE]


# -- a launch that succeeds ------------------------------------------------------------------------


def test_daemonizer_leaves_the_terminal_and_says_so_once_started(tmp_path: Path) -> None:
    """The command returns 0, but not before the start is complete; the daemon is on its own."""
    source = program(
        """
        Daemonizer(engine).subscribe()
        PIDFile(engine, "app.pid").subscribe()

        @engine.subscribe("start", priority=80)
        def wait():
            record("waiting")
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.001)
        """,
        STARTS,
    )
    env = {daemonize.VARIABLE: "1"}  # of another daemon
    with launched(source, tmp_path / "go", cwd=tmp_path, env=env) as process:
        [waiting] = process.wait_published("waiting")
        assert process.process.poll() is None
        assert (tmp_path / "app.pid").read_text() == f"{waiting.pid}\n"
        (tmp_path / "go").touch()
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        assert daemon.pid == waiting.pid != process.pid == daemon.facts["launcher"]
        assert daemon.facts["parent"] != process.pid
        assert daemon.facts["session"] not in {process.pid, daemon.pid}
        assert daemon.facts["cwd"] == "/"
        assert daemon.facts["umask"] == 0o022
        assert daemon.facts["streams"] == ["/dev/null"] * 3
        assert daemon.facts["threads"] == ["MainThread"]
        assert daemon.facts["variable"] is None
        assert sorted(process.published()) == sorted({process.pid, daemon.pid})
        process.wait_published("blocking")
        os.kill(daemon.pid, signal.SIGTERM)
        wait_gone(daemon.pid)
    assert channels(process, process.pid) == []
    assert channels(process, daemon.pid) == LIFE
    assert not (tmp_path / "app.pid").exists()
    assert process.output() == ""


def test_daemonizer_has_the_directory_and_umask_that_it_is_given(tmp_path: Path) -> None:
    """They hold for start listeners too; paths and modules are meant from where it was begun."""
    (tmp_path / "late.py").touch()
    (tmp_path / "home").mkdir()
    source = program(
        """
        sys.path.insert(0, "")
        Daemonizer(engine, stdout="out", umask=0o027, directory="home").subscribe()

        @engine.subscribe("start")
        def start():
            import late
            tell("starts")
        """,
        STARTS,
    )
    with launched(source, cwd=tmp_path) as process:
        assert process.wait_exit() == 0, process.report()
        [starts] = process.wait_published("starts")
        daemon = the_daemon(process)
        for entry in (starts, daemon):
            assert entry.facts["cwd"] == str(tmp_path / "home")
            assert entry.facts["umask"] == 0o027
        assert daemon.facts["streams"] == ["/dev/null", str(tmp_path / "out"), "/dev/null"]


def test_daemonizer_tells_the_terminal_too_until_it_has_started(tmp_path: Path) -> None:
    """What is printed and logged by then is read in both places; the rest in the files only."""
    source = program(
        """
        import logging
        print("before", end=" ")
        print("errors before", end=" ", file=sys.stderr)
        logging.basicConfig(format="%(message)s")
        Daemonizer(engine, stdout="out", stderr="err").subscribe()

        @engine.subscribe("start")
        def start():
            print("starting")
            sys.stderr.writelines(["errors ", "meanwhile\\n"])
            logging.warning("logged")
            logging.getLogger("late").addHandler(logging.StreamHandler())

        engine.start()
        print("started")
        print("errors after", file=sys.stderr)
        logging.warning("logged after")
        logging.getLogger("late").propagate = False
        logging.getLogger("late").warning("logged late")
        """
    )
    (tmp_path / "out").write_text("kept\n")
    done = run_script(source, cwd=tmp_path, env={"PYTHONUNBUFFERED": ""})
    assert done.returncode == 0
    assert done.stdout == "before starting\n"
    assert done.stderr == "errors before errors meanwhile\nlogged\n"
    out = wait_line(tmp_path / "out", "started").string
    assert out == "kept\nstarting\nstarted\n"
    after = ["errors after", "logged after", "logged late"]
    assert (tmp_path / "err").read_text().splitlines() == ["errors meanwhile", "logged", *after]
    assert stat.S_IMODE((tmp_path / "err").stat().st_mode) == 0o644


def test_daemonizer_opens_its_files_anew_on_graceful(tmp_path: Path) -> None:
    """After a rename SIGUSR1 begins a new file; one that cannot be opened stays as it is."""
    source = program(
        """
        Daemonizer(engine, stdout="out/out", stderr="out/err").subscribe()
        engine.subscribe("graceful", lambda: (print("again", flush=True), record("again")), 90)
        """,
        STARTS,
    )
    folder = tmp_path / "out"
    folder.mkdir()
    with launched(source, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        (folder / "out").rename(folder / "old")
        os.kill(daemon.pid, signal.SIGUSR1)
        process.wait_published("again")
        assert (folder / "out").read_text() == "again\n"
        assert (folder / "old").read_text() == ""
        folder.rename(tmp_path / "moved")
        os.kill(daemon.pid, signal.SIGUSR1)
        process.wait_published("again", 2)
        assert (tmp_path / "moved" / "out").read_text() == "again\nagain\n"
        wait_line(tmp_path / "moved" / "err", "cannot open .*out/out as stdout: No such file")


def test_daemonizer_happens_once_in_a_process() -> None:
    """A stop and a new start, and a new life after an exit, go on in the same daemon."""
    source = program(
        """
        plugin = Daemonizer(engine)
        plugin.subscribe()
        plugin.subscribe()
        engine.start()
        engine.stop()
        engine.start()
        engine.exit()
        os.chdir("/tmp")
        engine.start()
        tell()
        """
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        wait_gone(daemon.pid)
    assert channels(process, daemon.pid) == ["start", "drain", "stop", *LIFE, *LIFE]
    assert daemon.facts["cwd"] == "/"
    assert len(process.published()) == 2


def test_daemonizer_is_content_in_what_a_daemon_forks() -> None:
    """A child of the daemon that starts the engine is detached already."""
    source = program(
        """
        Daemonizer(engine).subscribe()
        engine.start()
        if not os.fork():
            engine.start()
            tell("child")
            sys.exit()
        os.wait()
        tell()
        """
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        wait_gone(daemon.pid)
    [child] = process.wait_published("child")
    assert child.facts["parent"] == daemon.pid
    assert channels(process, child.pid) == channels(process, daemon.pid) == LIFE


def test_daemonizer_goes_with_async_listeners() -> None:
    """Their loop is the daemon's: it begins after the fork."""
    source = program(
        """
        Daemonizer(engine).subscribe()

        @engine.subscribe("start")
        async def start():
            record("async", threads=[each.name for each in threading.enumerate()])
        """,
        STARTS,
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        [entry] = process.wait_published("async")
        assert entry.pid == daemon.pid
        assert entry.facts["threads"] == ["MainThread", "engine watch", "engine loop"]


def test_daemonizer_has_no_child_hold_up_who_reads_from_the_command(tmp_path: Path) -> None:
    """What a start listener launches or forks has the files, so a shell's `$(…)` returns."""
    source = program(
        """
        import subprocess
        Daemonizer(engine, stdout="out").subscribe()

        @engine.subscribe("start")
        def launch():
            print("launching", flush=True)
            child = subprocess.Popen(["sh", "-c", "echo launched; exec sleep 30"])
            record("child", child=child.pid)
            if not os.fork():
                print("forked", flush=True)
                record("child", child=os.getpid())
                signal.pause()

        engine.start()
        """
    )
    driver = """
    import subprocess, sys
    done = subprocess.run([sys.executable, sys.argv[1]], capture_output=True, text=True)
    print(done.returncode, done.stdout.split(), done.stderr.split(), flush=True)
    """
    path = tmp_path / "program.py"
    path.write_text(source)
    with launched(driver, path, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
        assert process.output() == "0 ['launching'] []\n"
        for entry in process.wait_published("child", 2):
            child = entry.facts["child"]
            assert isinstance(child, int)
            assert exists(child)
            os.kill(child, signal.SIGKILL)
        wait_line(tmp_path / "out", "launched")
        wait_line(tmp_path / "out", "forked")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-", ">&-"])
def test_daemonizer_bears_streams_that_are_closed(closed: str, tmp_path: Path) -> None:
    """Closed by who launches it, they are the files all the same."""
    source = program(
        """
        Daemonizer(engine, stdout="out", stderr="err").subscribe()
        engine.start()
        print("out", flush=True)
        print("err", file=sys.stderr, flush=True)
        print("in:", repr(sys.stdin.read()), flush=True)
        tell()
        """
    )
    path = tmp_path / "program.py"
    path.write_text(source)
    with start_process(
        ["sh", "-c", f'exec "$0" "$1" {closed}', sys.executable, path], cwd=tmp_path
    ) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        wait_gone(daemon.pid)
    files = [str(tmp_path / "out"), str(tmp_path / "err")]
    assert daemon.facts["streams"] == ["/dev/null", *files]
    assert (tmp_path / "out").read_text() == "out\nin: ''\n"
    assert (tmp_path / "err").read_text() == "err\n"


def test_daemonizer_renames_the_process_in_what_systemd_says() -> None:
    """Sockets and watchdog that were for the launcher are for the daemon; others' stay theirs."""
    source = program(
        """
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "WATCHDOG_PID": "1"}
        Daemonizer(engine).subscribe()
        engine.start()
        record("daemon", listen=os.environ["LISTEN_PID"], watchdog=os.environ["WATCHDOG_PID"])
        """
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        wait_gone(daemon.pid)
    assert daemon.facts == {"listen": str(daemon.pid), "watchdog": "1"}


def test_daemonizer_tells_a_second_launch_that_the_first_one_lives(tmp_path: Path) -> None:
    """The PID file is the daemon's: the second command names that process, and fails."""
    subscribed = "Daemonizer(engine).subscribe(); PIDFile(engine, 'app.pid').subscribe()"
    with launched(program(subscribed, STARTS), cwd=tmp_path) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        done = run_script(program(subscribed, STARTS), cwd=tmp_path)
        assert done.returncode == 1
        assert f"process {daemon.pid} holds it, and is running" in done.stderr
        assert (tmp_path / "app.pid").read_text() == f"{daemon.pid}\n"


# -- restarts --------------------------------------------------------------------------------------

ON_A_TERMINAL = """
import os, pty, sys
pid, master = pty.fork()
if not pid:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
said = b""
try:
    while more := os.read(master, 1000):
        said += more
except OSError:
    pass  # nobody has the terminal any more
os.close(master)
print(said.decode().strip(), "exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_sighup_restarts_a_daemon_that_was_launched_on_a_terminal(tmp_path: Path) -> None:
    """The same process runs the program anew, stays the daemon it is, and has its PID file."""
    source = program(
        """
        Daemonizer(engine, stdout="out").subscribe()
        PIDFile(engine, "app.pid").subscribe()
        engine.subscribe("start", lambda: print("starts on a terminal:", os.isatty(1), flush=True))
        """,
        STARTS,
    )
    path = tmp_path / "program.py"
    path.write_text(source)
    with launched(ON_A_TERMINAL, path, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
        assert process.output() == "starts on a terminal: False exit 0\n"
        process.wait_published("blocking")
        daemon = the_daemon(process)
        os.kill(daemon.pid, signal.SIGHUP)
        process.wait_published("blocking", 2)
        first, second = process.wait_published("daemon", 2)
        assert first.pid == second.pid == int((tmp_path / "app.pid").read_text())
        assert second.facts["session"] == first.facts["session"]
        assert second.facts["streams"] == ["/dev/null", str(tmp_path / "out"), "/dev/null"]
        assert second.facts["cwd"] == "/"
        assert second.facts["launcher"] == daemon.pid  # the program was begun in the daemon itself
        os.kill(daemon.pid, signal.SIGTERM)
        wait_gone(daemon.pid)
    assert (tmp_path / "out").read_text() == "starts on a terminal: False\n" * 2
    assert channels(process, daemon.pid) == LIFE * 2
    assert not (tmp_path / "app.pid").exists()


def test_children_of_a_daemon_do_not_take_themselves_for_one() -> None:
    """A daemon that a daemon launches, also one that has restarted, is launched as any other."""
    source = program(
        """
        import subprocess
        Daemonizer(engine).subscribe()
        engine.start()
        if len(sys.argv) == 1:
            tell()
            run = lambda: subprocess.run([sys.executable, sys.argv[0], "child"]).returncode
            if "LIFE" not in os.environ:
                os.environ["LIFE"] = "second"
                engine.restart()
            record("code", of=run())
        else:
            tell("child")
        """
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        [child] = process.wait_published("child")
        [code] = process.wait_published("code")
        wait_gone(code.pid)
        wait_gone(child.pid)
    assert {entry.pid for entry in process.wait_published("daemon", 2)} == {code.pid}
    assert code.facts == {"of": 0}
    assert child.facts["launcher"] not in {code.pid, child.pid}


# -- a launch that fails ---------------------------------------------------------------------------


def launch(*parts: str, handler: bool = True, **options: Any) -> Finished:
    """Run a script of which nothing is left when its command returns."""
    subscribed = "Daemonizer(engine).subscribe()\n"
    return run_script(program(subscribed, *parts, handler=handler), **options)


@pytest.mark.parametrize(
    ("failing", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a sentence')", 1, "a sentence"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("os._exit(7)", 7, ""),
        ("os.abort()", 128 + signal.SIGABRT, r"no daemon: process \d+ was killed by SIGABRT"),
        ("os.kill(os.getpid(), 9)", 137, r"no daemon: process \d+ was killed by SIGKILL, not yet"),
        ("os.kill(os.getpid(), 40)", 168, r"was killed by (signal 40|SIGRT\S+), not yet started$"),
        ("os._exit(0)", 1, r"no daemon: process \d+ ended before it had started$"),
    ],
)
def test_daemonizer_passes_on_how_a_failing_start_ended(failing: str, code: int, said: str) -> None:
    """The command has the daemon's exit code, and its errors are in the terminal."""
    done = launch(f"engine.subscribe('start', lambda: {failing})", "engine.start()")
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stderr, re.MULTILINE), done.stderr
    [daemon] = set(done.process.published()) - {done.process.pid}
    if not failing.startswith("os."):
        assert channels(done.process, daemon) == ["start", "stop", "exit"]


def test_daemonizer_passes_on_what_a_script_makes_of_a_failure() -> None:
    """A script that catches it ends with a code and a sentence of its own."""
    done = launch(
        """
        engine.subscribe("start", lambda: 1 / 0)
        try:
            engine.start()
        except ChannelFailures as exc:
            sys.exit(f"sorry, {exc.exceptions[0]}")
        """
    )
    assert done.returncode == 1
    assert done.stderr.endswith("\nsorry, division by zero\n")


def test_daemonizer_waits_for_a_second_try(tmp_path: Path) -> None:
    """A script that tries again after a failure is the same daemon, still at its terminal."""
    source = program(
        """
        Daemonizer(engine).subscribe()
        engine.subscribe("start", lambda: print("trying", os.getpid(), flush=True), 40)
        engine.subscribe("start", lambda: 1 / len(sys.argv[1:]))
        try:
            engine.start()
        except ChannelFailures:
            sys.argv.append("better")
        """,
        STARTS,
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        daemon = the_daemon(process)
        assert process.output().count(f"trying {daemon.pid}\n") == 2


@pytest.mark.parametrize("ignored", [False, True])
def test_daemonizer_knows_the_exit_code_whatever_becomes_of_children(ignored: bool) -> None:
    """Neither an ignored SIGCHLD nor a child that the daemon leaves hides it; both stay its own."""
    source = program(
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)" if ignored else "",
        """
        Daemonizer(engine).subscribe()

        @engine.subscribe("start")
        def leave_a_child():
            record("SIGCHLD", ignored=signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN)
            if not os.fork():
                record("child")
                signal.pause()
            sys.exit(3)

        engine.start()
        """,
    )
    with launched(source) as process:
        assert process.wait_exit() == 3
        [child] = process.wait_published("child")
        [entry] = process.wait_published("SIGCHLD")
        assert entry.facts == {"ignored": ignored}
        os.kill(child.pid, signal.SIGKILL)


HANGS = """
engine.start_timeout = engine.stop_timeout = 0.2

@engine.subscribe("start")
def hang():
    while True:
        time.sleep(1)

engine.start()
"""


def test_daemonizer_ends_a_start_that_hangs() -> None:
    """Past start_timeout its stack is in the terminal, and the daemon is told to go."""
    done = launch(HANGS, handler=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert "hang on 'start': left behind, still running after" in done.stderr
    assert "in hang\n    time.sleep(1)" in done.stderr
    assert done.stderr.endswith("not yet started: a listener never returned\n")


def test_daemonizer_kills_a_daemon_that_neither_starts_nor_ends() -> None:
    """Stuck in a listener it cannot be unwound: past stop_timeout it is killed, which is said."""
    done = launch(HANGS)
    assert done.returncode == 128 + signal.SIGKILL
    assert "did not end when it was told to (a listener never returned): killed" in done.stderr


def test_daemonizer_does_not_wait_for_a_daemon_that_closed_all_descriptors(tmp_path: Path) -> None:
    """One that can no longer tell is left running, after a moment; it writes to no other file."""
    source = program(
        """
        from engine_bridge.plugins import daemonize
        daemonize.MOMENT = 0.1
        Daemonizer(engine).subscribe()

        @engine.subscribe("start")
        def start():
            os.closerange(3, 1000)
            files = [open(f"file {number}", "w") for number in range(20)]
            engine.subscribe("stop", files.clear)  # kept until then
            print("not for them")
        """,
        STARTS,
    )
    source = source.replace("Daemonizer(engine)", "Daemonizer(engine, directory=sys.argv[1])")
    with launched(source, tmp_path) as process:
        assert process.wait_exit() == 1
        daemon = the_daemon(process)
        assert {path.stat().st_size for path in tmp_path.glob("file *")} == {0}
        assert len(list(tmp_path.glob("file *"))) == 20
        said = f"no daemon: process {daemon.pid} runs, but will never tell whether it has started"
        assert said in process.output()


# -- interruptions ---------------------------------------------------------------------------------

WAITS = """
@engine.subscribe("start")
def wait():
    record("waiting", parent=os.getppid())
    engine.aborting.wait(20)

engine.start()
tell()
block()
"""


@pytest.mark.parametrize("handler", [False, True])
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_daemonizer_undoes_a_start_whose_command_is_interrupted(
    sig: signal.Signals, handler: bool, tmp_path: Path
) -> None:
    """Whoever ends the command before it has returned has no daemon, nor its PID file."""
    subscribed = "Daemonizer(engine).subscribe(); PIDFile(engine, 'app.pid').subscribe()"
    source = program(
        subscribed, WAITS.replace('"start")', '"start", priority=80)'), handler=handler
    )
    with launched(source, cwd=tmp_path) as process:
        [waiting] = process.wait_asleep("waiting")
        process.signal(sig)
        assert process.wait_exit() == -sig
        if sig != signal.SIGKILL:
            assert not exists(waiting.pid)
        wait_gone(waiting.pid)
    if handler:
        assert not (tmp_path / "app.pid").exists()
        assert channels(process, waiting.pid) == ["start", "stop", "exit"]
    said = "" if handler else "was killed by SIGTERM, not yet started: the command that launched it"
    assert said in process.output()


def test_daemonizer_lets_a_second_ctrl_c_through() -> None:
    """A daemon that takes its time to go holds up nobody who asks twice."""
    source = program(
        "Daemonizer(engine).subscribe()",
        "engine.subscribe('start', lambda: 0)",
        """
        handler.handlers["SIGTERM"] = lambda: (record("told"), engine.exit())
        handler.subscribe()

        @engine.subscribe("start")
        def wait():
            record("waiting")
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.001)

        engine.start()
        """,
    )
    with start_process(["true"]) as other:
        pass
    go = Path("/tmp", f"engine-bridge-go-{os.getpid()}-{other.marker}")
    try:
        with launched(source, go) as process:
            [waiting] = process.wait_published("waiting")
            process.signal(signal.SIGINT)
            process.wait_published("told")
            assert process.process.poll() is None
            process.signal(signal.SIGINT)
            assert process.wait_exit() == -signal.SIGINT
            go.touch()
            wait_gone(waiting.pid)
    finally:
        go.unlink(missing_ok=True)


def test_daemonizer_runs_no_code_of_the_program_in_the_launcher() -> None:
    """A signal that the program handles means nothing to the command that waits."""
    source = program("Daemonizer(engine).subscribe()", WAITS)
    with launched(source) as process:
        [waiting] = process.wait_asleep("waiting")
        process.signal(signal.SIGUSR1)
        os.kill(waiting.pid, signal.SIGUSR1)
        process.wait_published("graceful")
        process.wait_asleep("waiting")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == -signal.SIGTERM
        wait_gone(waiting.pid)
    assert process.published()[process.pid] == ["launcher"]


def test_daemonizer_says_that_its_keeper_was_killed(tmp_path: Path) -> None:
    """The command does not claim a success that nobody saw; the daemon says it told nobody."""
    source = program(
        "Daemonizer(engine, stderr='err').subscribe()",
        WAITS.replace(
            "engine.aborting.wait(20)",
            "keeper = os.getppid(); os.kill(keeper, 9)\n    while os.getppid() == keeper: pass",
        ),
    )
    with launched(source, cwd=tmp_path) as process:
        assert process.wait_exit() == 137
        [waiting] = process.wait_published("waiting")
        assert f"process {waiting.facts['parent']}, which waited" in process.output()
        the_daemon(process)
        wait_line(tmp_path / "err", "nobody was told of the start")


def test_daemonizer_forks_nothing_that_was_told_to_leave() -> None:
    """A SIGTERM that comes just before the fork ends the script as it would without it."""
    done = launch(
        """
        class Output:
            def flush(self):
                if engine.state is State.STARTING and not engine.notes.times_told:
                    os.kill(os.getpid(), signal.SIGTERM)

        sys.stdout = Output()
        engine.start()
        """
    )
    assert done.returncode == 143
    assert done.stderr == ""
    assert set(done.process.published()) == {done.process.pid}


# -- what is refused -------------------------------------------------------------------------------

REFUSED = """
try:
    engine.start()
except ChannelFailures as exc:
    print(exc.exceptions[0], flush=True)
"""


def refusal(*parts: str) -> str:
    """Return the sentence with which a script's start was refused; nothing may be forked."""
    done = launch("import logging; logging.disable()", *parts, REFUSED)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert set(done.process.published()) == {done.process.pid}
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("thread", "name"),
    [
        ("threading.Thread(target=gone.wait, name='a pool', daemon=True).start()", "'a pool'"),
        ("import _thread; _thread.start_new_thread(gone.wait, ())", r"'thread \d+'"),
        ("engine.subscribe('start', listen, 5)", "'engine loop'"),
    ],
)
def test_daemonizer_refuses_threads(thread: str, name: str) -> None:
    """They would be gone after the fork; the sentence names them, and says what to do."""
    head = "gone = threading.Event()\nasync def listen(): pass\n"
    waits = "" if "listen" in thread else "while len(sys._current_frames()) < 2: pass"
    said = refusal(head, thread, waits)
    assert re.fullmatch(
        "cannot daemonize: threads do not survive a fork, and there are 1 more: "
        f"{name}; start them on `start`, later than priority 10",
        said,
    )


def test_daemonizer_refuses_a_running_loop() -> None:
    """It would be gone after the fork."""
    done = launch(
        """
        import asyncio, logging
        logging.disable()
        async def main():
            try:
                await engine.start_async()
            except ChannelFailures as exc:
                print(exc.exceptions[0], flush=True)
        asyncio.run(main())
        """
    )
    assert done.stdout == (
        "cannot daemonize: an event loop runs, which does not survive a fork; "
        "call engine.start() before asyncio.run(…)\n"
    )
    assert set(done.process.published()) == {done.process.pid}


def test_daemonizer_refuses_another_engine_that_has_started() -> None:
    """What that holds, such as a PID file, would name the wrong process."""
    said = refusal("other = Engine()", "other.start()")
    assert said.startswith("cannot daemonize: another engine of this process has started, and")


def test_daemonizer_tells_of_threads_that_python_does_not_know() -> None:
    """Threads of a C library do not keep it from going on, but the terminal is told of them."""
    source = program(
        """
        import ctypes
        libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
        libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)
        Daemonizer(engine).subscribe()
        """,
        STARTS,
    )
    with launched(source) as process:
        assert process.wait_exit() == 0
        assert "1 threads of C libraries did not survive the fork (python" in process.output()


@pytest.mark.parametrize("role", ["main", "worker", "reloader", "command"])
def test_daemonizer_refuses_a_process_of_a_server(role: str) -> None:
    """Known at subscribe it is refused there, else by the start; the sentence says what to run."""
    engine = Engine()
    plugin = Daemonizer(engine)
    plugin.subscribe()
    engine.host = Host(role, os.getppid())
    sentence = (
        f"Daemonizer is for a process of its own, but this one is a {role} of process "
        f"{os.getppid()}: leave it out here and run `engine-bridge run --daemonize` or "
        "`gunicorn --daemon` instead"
    )
    with pytest.raises(ChannelFailures) as caught:
        engine.start()
    assert str(caught.value.exceptions[0]) == sentence
    with pytest.raises(EngineError) as refused:
        plugin.subscribe()
    assert str(refused.value) == sentence
    engine.exit()


def test_daemonizer_refuses_an_engine_that_a_request_starts() -> None:
    """Under a server that nobody knows, the door shows that the process is not the script's."""
    engine = Engine()
    Daemonizer(engine).subscribe()
    with pytest.raises(ChannelFailures) as caught:
        engine.open_thread_door("wsgi")
    assert "this one is a worker: leave it out" in str(caught.value.exceptions[0])
    engine.exit()


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("gunicorn", ["--no-control-socket", "-b", "127.0.0.1:0", "app:app"]),
        ("uvicorn", ["--port", "0", "app:app"]),
    ],
)
def test_daemonizer_is_refused_under_a_server(
    server: str, words: list[str], tmp_path: Path
) -> None:
    """An application that asks for it does not load, and the server's output says why."""
    pytest.importorskip(server)
    (tmp_path / "app.py").write_text(
        "from engine_bridge import engine\n"
        "from engine_bridge.plugins import Daemonizer\n"
        "Daemonizer(engine).subscribe()\n"
    )
    with start_process([sys.executable, "-m", server, *words], cwd=tmp_path) as process:
        assert process.wait_exit() != 0
    assert f", run by {server}: leave it out here and run" in process.output()


def test_daemonizer_wants_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none it says so at once."""
    monkeypatch.delattr(os, "fork")
    with pytest.raises(EngineError, match=r"Daemonizer needs fork\(2\)"):
        Daemonizer(Engine()).subscribe()


@pytest.mark.parametrize(
    "arguments",
    [
        {"stdin": ""},
        {"stdout": 1},
        {"stderr": "a\0b"},
        {"directory": None},
        {"umask": "022"},
        {"umask": -1},
        {"umask": 0o1000},
        {"umask": True},
    ],
)
def test_daemonizer_wants_paths_and_a_umask(arguments: dict[str, Any]) -> None:
    """Anything else is refused at construction, with an example."""
    with pytest.raises(EngineError, match=r"example: Daemonizer\(engine, "):
        Daemonizer(Engine(), **arguments)


def test_daemonizer_does_nothing_for_what_is_no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has detached, `graceful`, `hand_over`, `fork`, `exit` leave all as it is."""
    engine = Engine()
    plugin = Daemonizer(engine)
    plugin.subscribe()
    before = [os.fstat(fd) for fd in range(3)]
    for channel in ("graceful", "fork", "exit"):
        engine.publish(channel)
    engine.publish("hand_over", 65534, 65534)
    plugin.unsubscribe()
    assert [os.fstat(fd) for fd in range(3)] == before
    assert daemonize.VARIABLE not in os.environ


# -- files and forks that cannot be had ------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "argument", "said"),
    [
        ("pass", "stdout='no/out'", "cannot open {}/no/out as stdout: No such file or directory"),
        ("os.mkdir('d')", "stderr='d'", "cannot open {}/d as stderr: Is a directory"),
        ("os.mkdir('d')", "stdin='d'", "cannot open {}/d as stdin: it is a directory"),
        ("os.mkfifo('f')", "stdout='f'", "cannot open {}/f as stdout: nobody reads from that pipe"),
        ("pass", "stdin='no'", "cannot open {}/no as stdin: No such file"),
        ("pass", "directory='no'", "cannot go to the directory {}/no: No such file or directory"),
    ],
)
def test_daemonizer_says_what_cannot_be_opened(
    spoil: str, argument: str, said: str, tmp_path: Path
) -> None:
    """In the terminal, with the command's exit code; nothing is left running."""
    done = run_script(
        program(spoil, f"Daemonizer(engine, {argument}).subscribe()", "engine.start()"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert f"EngineError: {said.format(tmp_path)}" in done.stderr


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (1, "EngineError: cannot daemonize: no process can be forked: "),
        (2, "no daemon: no process"),
    ],
)
def test_daemonizer_says_that_no_process_can_be_forked(call: int, said: str) -> None:
    """Of the two forks either may fail; the command says so and fails."""
    done = launch(f"""
        fork, calls = os.fork, []
        def failing():
            calls.append(0)
            if len(calls) == {call}:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()
        os.fork = failing
        engine.start()
    """)
    assert done.returncode == 1
    assert f"{said}" in done.stderr
    assert "Resource temporarily unavailable" in done.stderr


def test_daemonizer_reports_a_fault_of_its_own_and_never_returns_twice() -> None:
    """If waiting for the daemon fails in the launcher, that ends there, with a trace."""
    done = launch("""
        from engine_bridge.plugins import daemonize
        daemonize._forget_handlers = lambda: 1 / 0
        engine.subscribe("start", lambda: sys.exit(3))
        engine.start()
        record("returned")
    """)
    assert done.returncode == 1
    assert "the launch of a daemon failed" in done.stderr
    assert all("returned" not in each for each in done.process.published().values())


def launch_on_mount(folder: Path, options: str, source: str) -> Process:
    """Run a script as by `on_mount`, from which all is gone afterwards."""
    with start_process(on_mount(folder, options, source)) as process:
        process.wait_exit()
        wait_until(lambda: not process.family(), what="its end")
    return process


def test_daemonizer_says_that_the_file_system_is_read_only(tmp_path: Path) -> None:
    """A file that cannot be made there is refused in the terminal."""
    source = program("Daemonizer(engine, stdout='out').subscribe()", "engine.start()")
    process = launch_on_mount(tmp_path, "ro", source)
    assert process.process.returncode == 1
    assert f"cannot open {tmp_path}/out as stdout: Read-only file system" in process.output()


def test_daemonizer_outlives_a_full_disk(tmp_path: Path) -> None:
    """The daemon starts and ends properly, only its lines are lost; who prints hears of it."""
    source = program(
        """
        with open("filler", "wb") as file:
            file.write(b"x" * 4096)
        Daemonizer(engine, stdout="out", stderr="out").subscribe()
        engine.start()
        try:
            print("lost", flush=True)
        except OSError as exc:
            record("lost", why=exc.strerror)
        engine.log("lost as well", 40)
        """
    )
    process = launch_on_mount(tmp_path, "size=4096", source)
    assert process.process.returncode == 0
    [lost] = process.wait_published("lost")
    assert lost.facts == {"why": "No space left on device"}
    assert channels(process, lost.pid) == LIFE


# -- the guide -------------------------------------------------------------------------------------


def test_the_program_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    """Launched, restarted by SIGHUP, ended by SIGTERM, it is one process all the while."""
    guide = Path(__file__).parents[2] / "docs/guides/daemonize.md"
    [source] = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    (tmp_path / "app.py").write_text(source)
    with start_process([sys.executable, "app.py"], cwd=tmp_path) as process:
        assert process.wait_exit() == 0
        pid = int((tmp_path / "app.pid").read_text())
        wait_line(tmp_path / "app.out", f"started as process {pid}")
        os.kill(pid, signal.SIGHUP)
        wait_line(tmp_path / "app.out", f"started as process {pid}", 2)
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
    assert not (tmp_path / "app.pid").exists()
    assert process.output() == ""
