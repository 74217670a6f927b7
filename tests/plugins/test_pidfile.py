import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import run_on_mount
from processes import (
    open_files,
    publishes,
    run_script,
    run_server,
    start_script,
    wait_gone,
)

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.core.host import Host
from engine_bridge.plugins import PIDFile, pidfile
from engine_bridge.plugins.pidfile import PIDFileError

NOBODY = 65534
ROOT = os.geteuid() == 0

# A process of its own: starts, says so, exits on SIGTERM.
SCRIPT = """
import sys
from engine_bridge import ChannelFailures, engine
from engine_bridge.plugins import PIDFile, SignalHandler

PIDFile(engine, sys.argv[1]).subscribe()
SignalHandler(engine).subscribe()
try:
    engine.start()
except ChannelFailures as exc:
    sys.exit(str(exc.exceptions[0]))

@engine.subscribe("main")  # by `block`: a signal is answered by that from now on
def up():
    print("up", flush=True)
    engine.unsubscribe("main", up)

engine.block()
"""

# What the programs with workers share. A worker starts when it is made, says so, and leaves at the
# moment that it is told.
WORKERS = """
import logging, os, select, signal, sys, time
from pathlib import Path
from engine_bridge import ChannelFailures, Engine
from engine_bridge.core.host import Host
from engine_bridge.plugins import PIDFile

PATH = Path(sys.argv[1])

logging.disable()  # what fails is told by the worker

class WorkerHost(Host):
    pass

class Worker:
    def __init__(self, main=None):
        main = main or os.getpid()
        leave, self.leave = os.pipe()
        self.up, up = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.leave)
            self.be(main, leave, up)
        os.close(leave)
        os.close(up)

    def be(self, main, leave, up):
        try:
            engine = Engine()
            engine.host = WorkerHost("worker", main)
            PIDFile(engine, PATH).subscribe()
            try:
                engine.start()
            except ChannelFailures as exc:
                os.write(up, str(exc.exceptions[0]).encode())
                os._exit(1)
            os.write(up, b"up")
            at = float(os.read(leave, 100))
            while time.monotonic() < at:
                pass
            engine.exit()
            os._exit(0)
        finally:
            os._exit(2)

    def says(self):
        ready, _, _ = select.select([self.up], [], [], 10)
        return os.read(self.up, 10000).decode() if ready else "nothing within 10 s"

    def ends(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.up)
        os.close(self.leave)
        return code

    def go(self):
        os.write(self.leave, b"0")
        return self.ends()

def workers(number):
    found = [Worker() for _ in range(number)]
    assert [worker.says() for worker in found] == ["up"] * number
    return found

def leave_together(*leaving):
    at = str(time.monotonic() + 0.005).encode()
    for worker in leaving:
        os.write(worker.leave, at)
    return lambda: [worker.ends() for worker in leaving]

def named():
    return PATH.read_text()

me = f"{os.getpid()}\\n"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the PID file is to be."""
    return tmp_path / "app.pid"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    """An engine with a PID file."""
    engine = Engine()
    PIDFile(engine, path).subscribe()
    yield engine
    engine.exit()


def is_locked(path: Path) -> bool:
    """Whether anybody holds a lock on the file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def refusal(start: Callable[[], object]) -> PIDFileError:
    """Return the error of the one listener that failed."""
    with pytest.raises(ChannelFailures) as caught:
        start()
    (error,) = caught.value.exceptions
    assert isinstance(error, PIDFileError)
    return error


@contextmanager
def locked(path: Path, text: str = "") -> Iterator[None]:
    """Hold the file exclusively, as somebody else."""
    path.write_text(text)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def dead_pid() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- one process ---------------------------------------------------------------------------------


def test_pidfile_names_the_process_and_is_gone_after_its_exit(path: Path) -> None:
    """The file holds the number of the running process and a newline, and goes with it."""
    with start_script(SCRIPT, path) as process:
        process.wait_line("^up$")
        assert path.read_text() == f"{process.pid}\n"
        assert is_locked(path)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert not path.exists()


def test_pidfile_may_be_read_by_all_and_written_by_its_owner(path: Path) -> None:
    """The mode is 0644 whatever the umask would allow."""
    engine = Engine()
    PIDFile(engine, path).subscribe()
    before = os.umask(0)
    try:
        engine.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    finally:
        os.umask(before)
        engine.exit()


def test_pidfile_stays_over_a_stop_and_a_second_start(engine: Engine, path: Path) -> None:
    """A stop leaves the file, held; the next start keeps it."""
    engine.start()
    first = path.stat().st_ino
    engine.stop()
    assert path.read_text() == f"{os.getpid()}\n"
    assert is_locked(path)
    engine.start()
    assert path.stat().st_ino == first


def test_pidfile_is_written_again_in_a_new_life(engine: Engine, path: Path) -> None:
    """A start after an exit writes the file anew."""
    for _ in range(2):
        engine.start()
        assert path.read_text() == f"{os.getpid()}\n"
        engine.exit()
        assert not path.exists()


def test_pidfile_that_somebody_removed_is_back_with_the_next_start(
    engine: Engine, path: Path
) -> None:
    """A start after a stop makes sure that the file is there."""
    engine.start()
    engine.stop()
    path.unlink()
    engine.start()
    assert path.read_text() == f"{os.getpid()}\n"
    assert is_locked(path)


def test_pidfile_exit_without_a_start_touches_nothing(engine: Engine, path: Path) -> None:
    """Who has not written the file does not remove it."""
    path.write_text("1\n")
    engine.exit()
    assert path.read_text() == "1\n"


def test_pidfile_exit_is_content_when_the_file_is_gone(engine: Engine, path: Path) -> None:
    """A file that somebody removed already is no error, however often it is let go."""
    engine.start()
    path.unlink()
    engine.publish("exit")
    engine.publish("exit")
    assert not path.exists()


def test_pidfile_exit_is_content_when_the_folder_is_gone(path: Path, tmp_path: Path) -> None:
    """Nor is a directory that somebody removed, or replaced by a file."""
    for replace in (False, True):
        folder = tmp_path / f"run{replace}"
        folder.mkdir()
        engine = Engine()
        PIDFile(engine, folder / "app.pid").subscribe()
        engine.start()
        (folder / "app.pid").unlink()
        folder.rmdir()
        if replace:
            folder.touch()
        engine.exit()


def test_pidfile_says_that_its_folder_was_replaced_meanwhile(tmp_path: Path) -> None:
    """A second start looks whether the file is still there, and says why it cannot be."""
    folder = tmp_path / "run"
    folder.mkdir()
    engine = Engine()
    PIDFile(engine, folder / "app.pid").subscribe()
    engine.start()
    engine.stop()
    (folder / "app.pid").unlink()
    folder.rmdir()
    folder.touch()
    assert f"{folder} is not a directory" in str(refusal(engine.start))
    engine.exit()


def test_pidfile_does_not_remove_what_took_its_place(engine: Engine, path: Path) -> None:
    """A file that somebody put there is not ours to unlink."""
    engine.start()
    path.unlink()
    path.write_text("somebody else's")
    engine.exit()
    assert path.read_text() == "somebody else's"


def test_pidfile_does_not_remove_a_link_that_took_its_place(engine: Engine, path: Path) -> None:
    """Not even if it leads to the very file that we hold."""
    engine.start()
    moved = path.rename(path.with_name("moved.pid"))
    path.symlink_to(moved)
    engine.exit()
    assert path.is_symlink()


def test_pidfile_is_removed_with_the_plugin(path: Path) -> None:
    """A plugin that is turned off holds no file; nothing of it is left on the engine."""
    engine = Engine()
    plugin = PIDFile(engine, path)
    plugin.subscribe()
    plugin.subscribe()
    engine.start()
    plugin.unsubscribe()
    plugin.unsubscribe()
    assert not path.exists()
    engine.stop()
    engine.start()
    assert not path.exists()
    engine.exit()


def test_pidfile_means_the_directory_in_which_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path goes by the directory at construction, at the start and at the exit."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    engine = Engine()
    PIDFile(engine, "app.pid").subscribe()
    monkeypatch.chdir("elsewhere")
    engine.start()
    assert (tmp_path / "app.pid").exists()
    monkeypatch.chdir("/")
    engine.exit()
    assert not (tmp_path / "app.pid").exists()


def test_pidfile_goes_away_when_a_later_listener_fails(engine: Engine, path: Path) -> None:
    """A failed bind, after the file was written, leaves no file."""
    seen = []

    @engine.subscribe("start", priority=75)
    def bind() -> None:
        seen.append(path.read_text())
        raise OSError(errno.EADDRINUSE, "address in use")

    with pytest.raises(ChannelFailures, match="address in use"):
        engine.start()
    assert seen == [f"{os.getpid()}\n"]
    assert engine.state is State.STOPPED
    assert not path.exists()


# -- what is stale, and what is not ----------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "rubbish\n",
        "-1\n",
        "9" * 400,
        "\0" * 5000,
        "١٢\n",
        "{dead}\n",
        "{alive}\n",
        "{me}",
    ],
    ids=[
        "empty",
        "newline",
        "rubbish",
        "negative",
        "huge",
        "nulls",
        "digits",
        "dead",
        "used",
        "me",
    ],
)
def test_pidfile_takes_what_nobody_holds(engine: Engine, path: Path, text: str) -> None:
    """An unlocked file is stale whatever it says, even the number of a living process."""
    text = text.replace("{dead}", str(dead_pid())).replace("{alive}", str(os.getppid()))
    path.write_text(text.replace("{me}", str(os.getpid())))
    before = path.stat()
    engine.start()
    assert int(path.read_text()) == os.getpid()
    assert os.path.samestat(path.stat(), before)  # written in place
    engine.exit()
    assert not path.exists()


def test_pidfile_of_a_killed_process_is_taken_over(path: Path) -> None:
    """What SIGKILL leaves behind is no obstacle."""
    with start_script(SCRIPT, path) as first:
        first.wait_line("^up$")
        first.signal(signal.SIGKILL)
        first.wait_exit()
    assert path.read_text() == f"{first.pid}\n"
    with start_script(SCRIPT, path) as second:
        second.wait_line("^up$")
        assert path.read_text() == f"{second.pid}\n"


def test_pidfile_refuses_a_second_process_and_leaves_the_first_alone(path: Path) -> None:
    """The second is told who holds the file; the file stays the first one's."""
    with start_script(SCRIPT, path) as first:
        first.wait_line("^up$")
        second = run_script(SCRIPT, path)
        assert second.returncode == 1
        assert second.stderr.endswith(
            f"\nno PID file {path}: process {first.pid} holds it, and is running; "
            f"stop that first (kill {first.pid}), or name another\n"
        )
        assert path.read_text() == f"{first.pid}\n"
        assert is_locked(path)


def test_pidfile_refuses_a_second_engine_of_the_process(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines of one process do not share a file, and it does not take long to say so."""
    monkeypatch.setattr(pidfile, "PATIENCE", 3600)
    engine.start()
    second = Engine()
    PIDFile(second, path).subscribe()
    error = refusal(second.start)
    assert error.path == str(path)
    assert error.pid == os.getpid()
    assert "that is this one" in str(error)
    second.exit()
    assert path.read_text() == f"{os.getpid()}\n"
    assert is_locked(path)


@pytest.mark.parametrize("text", ["", "rubbish", "9" * 20, "{dead}\n"])
def test_pidfile_refuses_what_a_nameless_process_holds(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A file that is held and does not say by whom is waited for a moment, then refused."""
    monkeypatch.setattr(pidfile, "PATIENCE", 0.05)
    dead = dead_pid()
    with locked(path, text.replace("{dead}", str(dead))):
        error = refusal(engine.start)
        assert error.pid == (dead if "dead" in text else None)
        assert ("is gone" in str(error)) == ("dead" in text)
        assert "`lslocks`" in str(error)
    assert path.read_text() == text.replace("{dead}", str(dead))


def test_pidfile_waits_for_whoever_is_about_to_leave(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that unlinks the file while we look at it is not held against us."""
    with locked(path, f"{os.getppid()}\n"):
        opened: list[str] = []

        def lstat_once_unlinked(name: str) -> os.stat_result:
            if not opened:
                path.unlink()
            opened.append(name)
            return os.stat(name, follow_symlinks=False)

        monkeypatch.setattr(os, "lstat", lstat_once_unlinked)
        engine.start()
    assert path.read_text() == f"{os.getpid()}\n"


# -- fork ------------------------------------------------------------------------------------------

FORK = """
import os, select, sys
from engine_bridge import engine
from engine_bridge.plugins import PIDFile

PIDFile(engine, sys.argv[1]).subscribe()
engine.start()
woken, wake = os.pipe()
child = os.fork()
if not child:
    os.close(wake)
    if "{how}" == "exit":
        engine.exit()
        sys.exit()  # through atexit
    print("child", os.getpid(), flush=True)
    os.read(woken, 1)
    os._exit(0)
if "{how}" == "exit":
    os.waitpid(child, 0)
print("up", flush=True)
os.read(0, 1) or select.select([], [], [], 10)
"""


def test_pidfile_is_left_alone_by_a_forked_child(path: Path) -> None:
    """A child that exits takes away neither file nor lock."""
    with start_script(FORK.replace("{how}", "exit"), path) as process:
        process.wait_line("^up$")
        assert path.read_text() == f"{process.pid}\n"
        assert is_locked(path)


def test_pidfile_is_not_held_by_a_forked_child(path: Path) -> None:
    """A child that outlives its killed parent does not hold the file in the parent's name."""
    with start_script(FORK.replace("{how}", "stay"), path) as process:
        child = int(process.wait_line(r"^child (\d+)$").group(1))
        process.wait_line("^up$")
        assert is_locked(path)
        process.signal(signal.SIGSTOP)
        assert str(path) not in open_files(child)
        process.signal(signal.SIGKILL)
        process.wait_exit()
        assert not is_locked(path)
        wait_gone(child)


def test_pidfile_means_nothing_to_a_fork_before_the_start(engine: Engine, path: Path) -> None:
    """A child forked by an engine that holds nothing has nothing to forget."""
    engine.publish("fork")
    engine.start()
    assert is_locked(path)


# -- workers ---------------------------------------------------------------------------------------


def test_pidfile_of_workers_names_the_main_process(path: Path) -> None:
    """Three workers hold a file that names their main process; only the last one removes it."""
    script = """
    team = workers(3)
    assert named() == me
    for worker in team[:2]:
        assert worker.go() == 0
        assert named() == me
    late = Worker()
    assert late.says() == "up"
    assert team[2].go() == 0
    assert named() == me
    assert late.go() == 0
    assert not PATH.exists()
    """
    assert_runs(script, path)


def assert_runs(script: str, path: Path) -> None:
    """Run a program with workers; it must end without a complaint."""
    lines = "\n".join(line.removeprefix("    ") for line in script.splitlines())
    done = run_script(WORKERS + lines, path)
    assert (done.returncode, done.stderr) == (0, "")


def test_pidfile_of_killed_workers_is_held_by_the_others(path: Path) -> None:
    """A worker that is killed loses its own hold only; when all were, the file is stale."""
    script = """
    team = workers(3)
    for worker in team[:2]:
        os.kill(worker.pid, signal.SIGKILL)
        worker.ends()
    assert named() == me
    assert team[2].go() == 0
    assert not PATH.exists()
    worker, = workers(1)
    os.kill(worker.pid, signal.SIGKILL)
    worker.ends()
    assert named() == me
    PATH.write_text("123456789\\n")
    worker, = workers(1)
    assert named() == me
    assert worker.go() == 0
    assert not PATH.exists()
    """
    assert_runs(script, path)


def test_pidfile_of_workers_is_refused_to_another_main_process(path: Path) -> None:
    """A worker of another main process, and another script, are told whom the file names."""
    script = """
    team = workers(3)
    stranger = Worker(main=os.getppid())
    said = stranger.says()
    assert f"no PID file {PATH}: process {os.getpid()} holds it, and is running" in said, said
    assert stranger.ends() == 1
    engine = Engine()
    PIDFile(engine, PATH).subscribe()
    try:
        engine.start()
    except ChannelFailures as exc:
        assert exc.exceptions[0].pid == os.getpid()
    else:
        raise AssertionError("two share it")
    assert named() == me
    for worker in team:
        worker.go()
    assert not PATH.exists()
    """
    assert_runs(script, path)


def test_pidfile_of_workers_waits_for_those_of_a_main_process_that_died(path: Path) -> None:
    """Workers that survive their main process hold the file until they leave."""
    script = """
    doomed = os.fork()
    if not doomed:
        os._exit(0)
    os.waitpid(doomed, 0)
    old = Worker(main=doomed)
    assert old.says() == "up"
    late = Worker()
    said = late.says()
    assert f"it names process {doomed}, which is gone, but others still hold it" in said, said
    assert late.ends() == 1
    late = Worker()
    old.go()
    assert late.says() == "up"
    assert named() == me
    late.go()
    assert not PATH.exists()
    """
    assert_runs(script, path)


@pytest.mark.slow
def test_pidfile_of_workers_that_leave_at_once_is_removed_by_exactly_one(path: Path) -> None:
    """However many leave at the same moment, the file stays for those who stay, and no longer."""
    script = """
    for _ in range(20):
        team = workers(4)
        stays, *leave = team
        done = leave_together(*leave)
        assert done() == [0, 0, 0]
        assert named() == me
        leave = [stays, *workers(3)]
        done = leave_together(*leave)
        assert done() == [0, 0, 0, 0]
        assert not PATH.exists()
    """
    assert_runs(script, path)


@pytest.mark.slow
def test_pidfile_of_workers_survives_workers_that_come_while_others_go(path: Path) -> None:
    """One that starts while the last ones leave has the file; one that is refused leaves none."""
    script = """
    team = workers(2)
    for _ in range(30):
        done = leave_together(*team)
        time.sleep(0.004)
        team = [Worker(), Worker()]
        assert [worker.says() for worker in team] == ["up", "up"]
        assert done() == [0, 0]
        assert named() == me
    for _ in range(30):
        stranger = Worker(main=os.getppid())
        done = leave_together(*team)
        stranger.go() if stranger.says() == "up" else stranger.ends()
        assert done() == [0, 0]
        assert not PATH.exists()
        team = workers(2)
    for worker in team:
        worker.go()
    assert not PATH.exists()
    """
    assert_runs(script, path)


class WorkerHost(Host):
    """The host of a worker, as a server's adapter sets it."""


@pytest.mark.parametrize("event", ["unlinked", "taken"])
def test_pidfile_of_workers_bears_others_between_two_locks(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    """What happens between the exclusive lock and the shared one makes a worker begin again."""
    engine.host = WorkerHost("worker", os.getppid())
    flock = fcntl.flock
    happened: list[str] = []

    def once_disturbed(fd: int, kind: int) -> None:
        if kind & fcntl.LOCK_SH and not happened:
            happened.append(event)
            if event == "taken":
                flock(fd, fcntl.LOCK_UN)
                raise BlockingIOError
            path.unlink()
        flock(fd, kind)

    monkeypatch.setattr(fcntl, "flock", once_disturbed)
    engine.start()
    assert happened == [event]
    assert path.read_text() == f"{os.getppid()}\n"
    assert is_locked(path)


def test_pidfile_of_a_worker_is_held_by_its_child_as_well(path: Path) -> None:
    """An engine in a process that a worker has forked counts as one more worker."""
    script = """
    engine = Engine()
    engine.host = WorkerHost("worker", os.getppid())
    PIDFile(engine, PATH).subscribe()
    engine.start()
    named_first = named()
    up, started = os.pipe()
    child = os.fork()
    if not child:
        engine.start()
        os.write(started, b"up")
        time.sleep(30)
    os.read(up, 2)
    engine.exit()
    assert named() == named_first == f"{os.getppid()}\\n"
    os.kill(child, signal.SIGKILL)
    os.wait()
    assert named() == named_first
    """
    assert_runs(script, path)


# -- the main process of a preloaded application -------------------------------------------------


def test_pidfile_of_a_preloaded_application_is_held_by_the_main_process(path: Path) -> None:
    """Forked workers find that their main process holds the file, and hold nothing."""
    script = """
    engine = Engine()
    engine.host = WorkerHost("main")
    PIDFile(engine, PATH).subscribe()
    engine.publish("main_start")
    assert named() == me
    first = os.stat(PATH)
    for _ in range(2):
        pid = os.fork()
        if not pid:
            engine.host = WorkerHost("worker", os.getppid())
            since = time.monotonic()
            engine.start()
            assert time.monotonic() - since < 0.5
            engine.exit()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.path.samestat(os.stat(PATH), first)
    engine.publish("main_exit")
    assert not PATH.exists()
    """
    assert_runs(script, path)


def test_pidfile_is_not_held_twice_where_the_main_process_holds_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was not forked by it finds out too, after waiting for a sibling to move on."""
    monkeypatch.setattr(pidfile, "PATIENCE", 0.05)
    engine = Engine()
    engine.host = WorkerHost("worker", os.getppid())
    PIDFile(engine, path).subscribe()
    with locked(path, f"{os.getppid()}\n"):
        engine.start()
        engine.exit()
        assert path.read_text() == f"{os.getppid()}\n"


APP = """
from journal import record
from engine_bridge import Engine
from engine_bridge.frameworks.wsgi import EngineMiddleware
from engine_bridge.plugins import PIDFile

engine = Engine()
PIDFile(engine, "app.pid").subscribe()
engine.subscribe("start", lambda: record("start"), 90)

def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"hi"]

app = EngineMiddleware(hello, engine)
"""


@pytest.mark.parametrize("preload", [False, True])
def test_pidfile_under_gunicorn_names_its_main_process(tmp_path: Path, preload: bool) -> None:
    """With three workers, preloaded or not, the file names gunicorn, and goes with it."""
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", "3"]
    command += ["-c", "python:engine_bridge.servers.gunicorn", *["--preload"][:preload], "app:app"]
    path = tmp_path / "app.pid"
    with run_server(command, cwd=tmp_path, ready=publishes("start", 3)) as server:
        assert path.read_text() == f"{server.pid}\n"
        family = (server.pid, *server.workers())
        holders = [pid for pid in family if str(path) in open_files(pid)]
        assert holders == ([server.pid] if preload else server.workers())
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert not path.exists()


# -- faults ----------------------------------------------------------------------------------------


def assert_refused(path: Path, *words: str) -> None:
    """Check that a start says, in a sentence with all *words*, what is wrong with *path*."""
    engine = Engine()
    PIDFile(engine, path).subscribe()
    error = refusal(engine.start)
    assert error.path == str(path)
    assert error.pid is None
    assert str(error).startswith(f"no PID file {path}: ")
    for word in words:
        assert word in str(error)
    engine.exit()


def test_pidfile_says_that_the_directory_is_missing(tmp_path: Path) -> None:
    """A directory that does not exist is named."""
    assert_refused(tmp_path / "run" / "x", f"the directory {tmp_path / 'run'} does not exist")


def test_pidfile_says_that_the_directory_is_a_file(tmp_path: Path) -> None:
    """So is one that is none."""
    (tmp_path / "run").touch()
    assert_refused(tmp_path / "run" / "x", f"{tmp_path / 'run'} is not a directory")


def test_pidfile_says_that_it_is_a_directory(tmp_path: Path) -> None:
    """A directory in the place of the file is refused."""
    assert_refused(tmp_path, "that is a directory; name a file in it")


def test_pidfile_follows_no_symbolic_link(tmp_path: Path, path: Path) -> None:
    """What a link leads to is not written."""
    target = tmp_path / "precious"
    target.write_text("precious")
    path.symlink_to(target)
    assert_refused(path, "symbolic link", "name the file itself")
    assert target.read_text() == "precious"


def test_pidfile_does_not_touch_what_is_no_file(path: Path) -> None:
    """A pipe, or a device, is neither written nor unlinked."""
    os.mkfifo(path)
    assert_refused(path, "no file")
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_pidfile_says_what_it_has_no_words_for(tmp_path: Path) -> None:
    """Whatever else the system says is passed on."""
    assert_refused(tmp_path / ("x" * 300), os.strerror(errno.ENAMETOOLONG))


# Faults that root does not have.
AS_NOBODY = """
import logging, os, sys
import engine_bridge.servers  # which a start asks; nobody may not read it where only root may
from engine_bridge import ChannelFailures, Engine
from engine_bridge.plugins import PIDFile

logging.disable()
if os.geteuid() == 0:
    os.setgid({0})
    os.setuid({0})
engine = Engine()
PIDFile(engine, sys.argv[1]).subscribe()
try:
    engine.start()
except ChannelFailures as exc:
    print(exc.exceptions[0])
""".replace("{0}", str(NOBODY))


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A directory that any user can reach, whatever pytest's own look like."""
    folder = Path("/tmp", f"engine-bridge-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir(mode=0o755)
    yield folder
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_pidfile_says_that_the_directory_may_not_be_written(open_folder: Path) -> None:
    """The sentence names the directory and the user."""
    open_folder.chmod(0o555)
    user = NOBODY if ROOT else os.geteuid()
    done = run_script(AS_NOBODY, open_folder / "app.pid", cwd=open_folder)
    assert f"user {user} may not create files in {open_folder}" in done.stdout
    assert done.stderr == ""


def test_pidfile_says_that_it_belongs_to_somebody_else(open_folder: Path) -> None:
    """The sentence names both users and the mode."""
    path = open_folder / "app.pid"
    path.touch(0o444)
    user = NOBODY if ROOT else os.geteuid()
    done = run_script(AS_NOBODY, path, cwd=open_folder)
    found = f"user {user} may not write to it, it belongs to user {os.geteuid()} (mode 444)"
    assert found in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("exists", [False, True])
def test_pidfile_tells_apart_what_may_not_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """A denial is about the file where there is one, else about its directory."""

    def denied(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    if exists:
        path.touch()
    monkeypatch.setattr(os, "open", denied)
    assert_refused(
        path, "may not write to it" if exists else f"may not create files in {path.parent}"
    )


LOSES_RIGHTS = """
import os, sys
from engine_bridge import Engine
from engine_bridge.plugins import PIDFile

engine = Engine()
PIDFile(engine, sys.argv[1]).subscribe()
engine.start()
os.chmod(os.path.dirname(sys.argv[1]), int(sys.argv[2], 8))
if os.geteuid() == 0:
    os.setgid({0})
    os.setuid({0})
engine.stop()
engine.start()
engine.exit()
print("left")
""".replace("{0}", str(NOBODY))


@pytest.mark.parametrize("mode", ["555", "500"])
def test_pidfile_is_emptied_where_it_may_not_be_unlinked(open_folder: Path, mode: str) -> None:
    """With rights dropped, even the right to look, the file is left, empty, and so stale."""
    path = open_folder / "app.pid"
    done = run_script(LOSES_RIGHTS, path, mode, cwd=open_folder)
    assert (done.stdout, done.stderr) == ("left\n", "")
    open_folder.chmod(0o755)
    assert path.read_text() == ""
    assert not is_locked(path)


def say_on_mount(folder: Path, options: str) -> list[str]:
    """Return what a start says on a tiny file system that has been filled, and what is left."""
    script = """
    import logging, os, sys
    from engine_bridge import ChannelFailures, Engine
    from engine_bridge.plugins import PIDFile

    logging.disable()
    if os.access(".", os.W_OK):
        with open("filler", "wb") as file:
            file.write(b"x" * 4096)
    engine = Engine()
    PIDFile(engine, "app.pid").subscribe()
    try:
        engine.start()
    except ChannelFailures as exc:
        print(exc.exceptions[0])
    print(os.listdir())
    """
    process = run_on_mount(folder, options, script)
    assert process.errors() == ""
    return process.output().splitlines()


def test_pidfile_says_that_the_disk_is_full(tmp_path: Path) -> None:
    """No number can be written: the sentence says so, and no empty file is left."""
    said, left = say_on_mount(tmp_path, "size=4096")
    found = "its file system is full; make room there, or name a file elsewhere"
    assert said == f"no PID file {tmp_path}/app.pid: {found}"
    assert left == "['filler']"


def test_pidfile_says_that_the_file_system_is_read_only(tmp_path: Path) -> None:
    """The sentence says so, and where to go."""
    said, left = say_on_mount(tmp_path, "ro")
    found = "its file system is read-only; name a file elsewhere, e.g. in /run"
    assert said == f"no PID file {tmp_path}/app.pid: {found}"
    assert left == "[]"


def test_pidfile_writes_its_number_whole_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a number, which is another process's, counts as a full disk."""
    monkeypatch.setattr(os, "pwrite", lambda fd, text, offset: os.write(fd, text[:1]))
    assert_refused(path, "its file system is full")
    assert not path.exists()


def test_pidfile_says_that_there_are_no_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without flock(2) is named as such; the descriptor is closed."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert_refused(path, "its file system has no locks")


def test_pidfile_stale_file_that_can_be_neither_unlinked_nor_emptied_is_let_go(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit does not fail because of a file: unlocked, it is stale anyway."""
    engine.start()

    def denied(*args: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "unlink", denied)
    monkeypatch.setattr(os, "ftruncate", denied)
    engine.exit()
    assert not is_locked(path)


def test_pidfile_takes_processes_of_other_users_for_living(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not be signalled is there all the same."""

    def kill(pid: int, sig: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "kill", kill)
    with locked(path, "4321\n"):
        assert refusal(engine.start).pid == 4321


def test_pidfile_does_not_care_about_its_folder_vanishing_meanwhile(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that goes between the look and the unlink is gone, that is all."""
    engine.start()
    unlink = os.unlink

    def late(name: str) -> None:
        unlink(name)
        unlink(name)

    monkeypatch.setattr(os, "unlink", late)
    engine.exit()
    assert not path.exists()


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 7, "", "a\0b", ["app.pid"]])
def test_pidfile_wants_a_path(wrong: object) -> None:
    """What is no path is refused at once, with an example."""
    with pytest.raises(EngineError, match=re.escape("PIDFile(engine, '/run/app.pid')")):
        PIDFile(Engine(), wrong)  # type: ignore[arg-type]  # that is the point


def test_pidfile_wants_an_engine(path: Path) -> None:
    """Arguments in the wrong order are noticed."""
    with pytest.raises(EngineError, match=r"PIDFile wants an Engine first, got .*app.pid"):
        PIDFile(path, Engine())  # type: ignore[arg-type]  # that is the point


def test_pidfile_wants_flock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without it is told so at subscribe; nothing is subscribed."""
    monkeypatch.setattr(pidfile, "fcntl", None)
    engine = Engine()
    with pytest.raises(EngineError, match=r"PIDFile needs flock"):
        PIDFile(engine, path).subscribe()
    engine.start()
    assert not path.exists()
    engine.exit()
