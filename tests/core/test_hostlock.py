"""`scope="host"`: of all processes of the machine one runs the task. Real processes, real kills."""

import os
import signal
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import Process, run_script, start_script, wait_gone, wait_until

from engine_bridge import ChannelFailures, Engine, EngineError
from engine_bridge.core import hostlock
from engine_bridge.core.hostlock import HostLock, our_folders
from engine_bridge.plugins import Monitor

NOBODY = 65534
ROOT = os.geteuid() == 0
NEEDS_ROOT = pytest.mark.skipif(not ROOT, reason="needs root, to be another user")

# A process that notes the begin and the end of each run in a file that all share.
MEMBER = """
import os, sys, threading, time
from engine_bridge import engine
from engine_bridge.plugins import Monitor, SignalHandler

def note(word):
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    os.write(file, f"{word} {os.getpid()}\\n".encode())
    os.close(file)

def run():
    note("begin")
    time.sleep(0.003)
    note("end")

SignalHandler(engine).subscribe()
plugin = Monitor(engine, run, 0.02, sys.argv[2], scope="host", lock=sys.argv[3] or None)
plugin.subscribe()
"""
STAY = """
engine.start()
print("up", flush=True)
engine.block()
"""


class Team:
    """Several processes that share a task, and the file in which they note their runs."""

    def __init__(
        self, folder: Path, stack: ExitStack, name: str = "task", lock: str = "lock"
    ) -> None:
        self.notes = folder / "notes"
        self.lock = str(folder / lock) if lock else ""
        self.name = name
        self._stack = stack

    def join(self, body: str = STAY) -> Process:
        """Return a process that takes part from now on."""
        script = start_script(MEMBER + body, self.notes, self.name, self.lock)
        process = self._stack.enter_context(script)
        process.wait_line("up")
        return process

    def runs(self) -> list[tuple[str, int]]:
        """Return what was noted: a word and a process each."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def wait_leader(self, *, but: int = 0, more: int = 3) -> int:
        """Wait until a process other than *but* has run; return which."""
        start = len(self.runs())

        def leader() -> int:
            new = [pid for word, pid in self.runs()[start:] if word == "end" and pid != but]
            return new[-1] if len(new) >= more else 0

        return wait_until(leader, what="somebody else runs the task")

    def assert_never_two(self, killed: int = 0) -> None:
        """Check that each run ended before the next began, but the last of one that was killed."""
        open_run = 0
        for word, pid in self.runs():
            if word == "begin":
                assert open_run in (0, killed), f"{pid} began while {open_run} ran"
                open_run = pid
            else:
                assert open_run == pid
                open_run = 0


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    """Return a team; its processes end with the test."""
    with ExitStack() as stack:
        yield Team(tmp_path, stack)


def test_one_process_runs_and_another_takes_over(team: Team) -> None:
    """One of four runs the task; when it is killed, or stops, another does; never two at once."""
    members = {process.pid: process for process in [team.join() for _ in range(4)]}
    first = team.wait_leader()
    assert {pid for _, pid in team.runs()} == {first}
    os.kill(first, signal.SIGKILL)
    second = team.wait_leader(but=first)
    assert second in members
    members[second].signal(signal.SIGTERM)
    assert members[second].wait_exit() == 0
    third = team.wait_leader(but=second)
    assert third not in (first, second)
    assert {pid for _, pid in team.runs()} == {first, second, third}
    team.assert_never_two(killed=first)


def test_child_that_the_leader_forked_does_not_hold_the_lock(team: Team) -> None:
    """A child that outlives its killed leader keeps nobody else from taking over."""
    leader = team.join("""
engine.start()
while not plugin.status.leads:
    time.sleep(0.001)
child = os.fork()
if not child:
    time.sleep(30)
    os._exit(0)
print("up", child, flush=True)
engine.block()
""")
    child = int(leader.wait_line(r"up (\d+)")[1])
    other = team.join()
    assert team.wait_leader() == leader.pid
    leader.signal(signal.SIGKILL)
    assert team.wait_leader() == other.pid
    assert Path(f"/proc/{child}").exists()
    os.kill(child, signal.SIGKILL)
    wait_gone(child)
    team.assert_never_two(killed=leader.pid)


def test_leader_whose_run_hangs_at_the_stop_keeps_the_lock(team: Team) -> None:
    """A run that is left behind still is one: nobody else begins before it ends."""
    leader = team.join("""
engine.stop_timeout = engine.slow_after = 0.2
engine.start()
while not plugin.status.leads:
    time.sleep(0.001)
hanging = threading.Event()
def hang():
    note("begin")
    hanging.set()
    while not os.path.exists(sys.argv[1] + ".go"):
        time.sleep(0.01)
    note("end")
plugin._task.function = hang
print("up", flush=True)
hanging.wait()
try:
    engine.stop()
except Exception as exc:
    print("stopped", type(exc).__name__, flush=True)
engine.block()
""")
    other = team.join()
    leader.wait_line("stopped ChannelFailures")
    begun = [pid for word, pid in team.runs() if word == "begin"]
    assert begun[-1] == leader.pid
    Path(f"{team.notes}.go").touch()
    assert team.wait_leader(but=leader.pid) == other.pid
    team.assert_never_two()


def test_processes_find_each_other_by_name(tmp_path: Path) -> None:
    """Without a file the name is enough, whatever it is and wherever TMPDIR points."""
    name = f"../ä {uuid.uuid4().hex}."
    with ExitStack() as stack:
        team = Team(tmp_path, stack, name, lock="")
        members = [team.join() for _ in range(2)]
        first = team.wait_leader()
        team.wait_leader()
        assert {pid for _, pid in team.runs()} == {first}
        [folder] = {
            Path(path) for path in our_folders("/tmp") if list(Path(path).glob(f"*{name[-8:-1]}*"))
        }
        [file] = folder.glob(f"*{name[-8:-1]}*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for member in members:
            member.signal(signal.SIGTERM)
            assert member.wait_exit() == 0
        file.unlink()
    team.assert_never_two()


# -- the lock itself -------------------------------------------------------------------------------


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[HostLock]:
    """Return a lock; it is let go at the end."""
    lock = HostLock("", str(tmp_path / "lock"))
    yield lock
    lock.close()


def rival(path: Path) -> HostLock:
    """Return a lock of the same file, as another process would have it."""
    return HostLock("", str(path))


def test_lock_is_held_until_it_is_closed(lock: HostLock, tmp_path: Path) -> None:
    """One has it, claims it again and again, and the other gets it afterwards."""
    other = rival(tmp_path / "lock")
    assert lock.claim()
    assert lock.claim()
    assert lock.held
    assert not other.claim()
    assert not other.held
    lock.close()
    assert other.claim()
    other.close()


def test_lock_on_a_file_that_was_removed_is_worth_nothing(lock: HostLock, tmp_path: Path) -> None:
    """Whoever held it claims anew, against those who have found the new file meanwhile."""
    path = tmp_path / "lock"
    assert lock.claim()
    path.unlink()
    other = rival(path)
    assert other.claim()
    assert not lock.claim()
    other.close()
    assert lock.claim()


def test_lock_dates_its_file_anew(lock: HostLock, tmp_path: Path) -> None:
    """What cleans up old files finds it young, as long as somebody leads."""
    assert lock.claim()
    os.utime(tmp_path / "lock", (0, 0))
    assert lock.claim()
    assert time.time() - (tmp_path / "lock").stat().st_mtime < 60


def test_lock_closed_in_a_fork_is_still_the_parents(lock: HostLock, tmp_path: Path) -> None:
    """The child closes its copy, and neither has the lock nor takes it away."""
    assert lock.claim()
    pid = os.fork()
    if not pid:  # pragma: no cover  # another process
        lock.close()
        os._exit(rival(tmp_path / "lock").claim())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert lock.claim()


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a folder in the place of /tmp in which everybody may make files."""
    with tempfile.TemporaryDirectory() as folder:  # in pytest's own, others may not look
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(hostlock, "COMMON", folder)
        yield Path(folder)


def test_lock_needs_all_folders_that_are_found(common: Path) -> None:
    """Two processes that made a folder each at the same moment do not both have the lock."""
    first, second, third = (HostLock("task") for _ in range(3))
    assert first.claim()
    [name] = os.listdir(common)
    (common / f"engine-bridge-{os.geteuid()}-").mkdir(mode=0o700)  # sorts before the other
    assert not second.claim()
    first.close()
    assert second.claim()
    assert not first.claim()
    assert not third.claim()
    (common / name / "task.lock").unlink()
    assert third.claim() is False
    second.close()


@NEEDS_ROOT
def test_hostile_user_can_neither_block_nor_redirect_the_lock(common: Path, tmp_path: Path) -> None:
    """Folders of others, links, and folders that others may enter are passed over."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (common / "engine-bridge-0-").mkdir(mode=0o700)
    os.chown(common / "engine-bridge-0-", NOBODY, NOBODY)
    (common / "engine-bridge-0-a").symlink_to(elsewhere)
    (common / "engine-bridge-0-b").mkdir()
    (common / "engine-bridge-0-b").chmod(0o777)
    (common / "engine-bridge-0-c").touch()
    (common / "engine-bridge-0").mkdir(mode=0o700)
    [folder] = our_folders(str(common))
    assert our_folders(str(common)) == [folder]
    assert Path(folder).name not in {f"engine-bridge-0-{end}" for end in ("", "a", "b", "c")}
    task = HostLock("task")
    assert task.claim()
    task.close()
    assert os.listdir(elsewhere) == []


@NEEDS_ROOT
def test_lock_is_claimed_anew_by_another_user(common: Path) -> None:
    """A process that drops root's rights shares the lock of the user that it becomes."""
    task = HostLock("task")
    assert task.claim()
    os.seteuid(NOBODY)
    try:
        assert task.claim()
    finally:
        os.seteuid(0)
        task.close()
    owners = {(common / name).stat().st_uid for name in os.listdir(common)}
    assert owners == {0, NOBODY}


def link(path: Path) -> None:
    """Put a link there."""
    path.symlink_to(path.parent / "target")


def open_to_all(path: Path) -> None:
    """Put a file there that everybody may read."""
    path.touch()
    path.chmod(0o644)


def owned_by_nobody(path: Path) -> None:
    """Put a file of another user there."""
    path.touch(0o600)
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (link, "that is a symbolic link"),
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "that is no file; remove it, or name another file by lock="),
        (open_to_all, "everybody may open the file, and so hold it for ever"),
        pytest.param(owned_by_nobody, "the file belongs to user 65534", marks=NEEDS_ROOT),
    ],
)
def test_lock_that_others_could_hold_is_refused_at_the_start(
    make: Any, sentence: str, tmp_path: Path
) -> None:
    """The start fails with a sentence, and leaves nothing open."""
    make(tmp_path / "lock")
    engine = Engine()
    Monitor(engine, list, 60, scope="host", lock=tmp_path / "lock").subscribe()
    with pytest.raises(ChannelFailures) as caught:
        engine.start()
    [error] = caught.value.exceptions
    assert isinstance(error, EngineError)
    assert str(error).startswith(f"no lock {tmp_path}/lock: ")
    assert sentence in str(error)
    engine.exit()


def test_lock_needs_a_place_and_flock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where /tmp is missing, or the system has no such locks, a sentence says so."""
    monkeypatch.setattr(hostlock, "COMMON", str(tmp_path / "missing"))
    with pytest.raises(EngineError, match=r"missing: No such file.*name a file that this user"):
        HostLock("task").claim()
    monkeypatch.setattr(hostlock, "fcntl", None)
    with pytest.raises(EngineError, match="needs flock"):
        HostLock("task")


def test_lock_whose_file_cannot_be_had_later_fails_the_run(tmp_path: Path) -> None:
    """What happens to the file after the start is a failure of the task: told, and tried again."""
    folder = tmp_path / "run"
    folder.mkdir()
    calls: list[int] = []
    engine = Engine()
    plugin = Monitor(
        engine, lambda: calls.append(1), 0.01, scope="host", lock=folder / "lock", max_backoff=0.01
    )
    plugin.subscribe()
    engine.start()
    wait_until(lambda: calls)
    (folder / "lock").unlink()
    folder.rmdir()
    wait_until(lambda: plugin.status.failures > 1)
    assert "No such file or directory" in plugin.status.last_error
    folder.mkdir()
    number = len(calls)
    wait_until(lambda: len(calls) > number)
    assert plugin.status.failures == 0
    engine.exit()


def test_lock_file_is_not_inherited_by_programs(tmp_path: Path) -> None:
    """A program that the leader runs has no descriptor of it."""
    done = run_script(
        """
import subprocess, sys
from engine_bridge.core.hostlock import HostLock
lock = HostLock("", sys.argv[1])
assert lock.claim()
out = subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
print(out.stdout)
""",
        tmp_path / "lock",
    )
    assert done.returncode == 0, done.stderr
    assert "/proc" in done.stdout
    assert "lock" not in done.stdout


def test_forks_wait_while_a_file_is_opened(tmp_path: Path) -> None:
    """A child made at that moment would hold a lock of which nobody there knows."""
    done = run_script(
        """
import os, sys, threading, time
from engine_bridge.core import hostlock
hostlock.HostLock("", sys.argv[1])
forked = threading.Event()
def fork():
    pid = os.fork()
    if not pid:
        os._exit(hostlock._opening.acquire(blocking=False) - 1)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print("good", flush=True)
with hostlock._opening:
    thread = threading.Thread(target=fork)
    thread.start()
    assert not forked.wait(0.1)
thread.join()
""",
        tmp_path / "lock",
    )
    assert done.stdout == "good\n", done.stderr
