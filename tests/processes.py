"""
Run real servers and scripts in processes of their own, and wait for facts about them.

    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}"]
    with run_server(command, cwd=tmp_path, ready=publishes("start")) as server:
        assert get(server.port).status == 200
        server.signal(SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, "start", "stop")

Every wait has a limit and fails with the output of the process. Leaving a `with` fails when a
process of the family still lives; output and journal stay readable after it.

Three nets find a family, for none finds all: the process group and session (lost by a daemon), the
parents (lost when a parent dies), and a marker in the environment that all descendants inherit
(overwritten by setproctitle). For what slips through them the test process adopts orphans, so that
`leaks` sees them as its children.

Linux only: facts about processes come from proc(5) and pidfd_open(2).
"""

import ctypes
import functools
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from journal import VARIABLE as JOURNAL
from journal import record
from loadclient import (
    HOST,
    Answer,
    Client,
    InFlight,
    Load,
    Stream,
    attempt,
    background_load,
    get,
    open_stream,
    run_load,
    start_request,
)

__all__ = [
    "Answer",
    "Client",
    "Entry",
    "Finished",
    "InFlight",
    "Load",
    "Process",
    "ProcessInfo",
    "Server",
    "Stream",
    "accepts",
    "adopt_orphans",
    "answers",
    "assert_once",
    "attempt",
    "background_load",
    "descendants",
    "exists",
    "free_port",
    "get",
    "kill_all",
    "open_files",
    "open_stream",
    "prints",
    "process_table",
    "publishes",
    "reap",
    "record",
    "run_load",
    "run_script",
    "run_server",
    "send_signal",
    "start_process",
    "start_request",
    "start_script",
    "wait_asleep",
    "wait_gone",
    "wait_line",
    "wait_port",
    "wait_until",
]

MARKER = "ENGINE_BRIDGE_TEST_RUN"
TESTS = Path(__file__).resolve().parent
OUTPUT = "---- its output:"  # begins the part of a message that tells it
PAUSE = 0.005
DAEMON_FORKS = 2  # between the command that launches a daemon and the daemon
LEAVE = 5.0  # seconds to leave after SIGTERM, when a `with` ends
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)

T = TypeVar("T")


# Facts, with a limit


def wait_until(predicate: Callable[[], T | None], limit: float = 10.0, what: str = "it") -> T:
    """
    Return the first true value of *predicate*. Polls, for use where no event exists.

    Raises:
        AssertionError: It was not true within *limit* seconds; the message says *what*.
    """
    deadline = time.monotonic() + limit
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(PAUSE)
    return value


def free_port() -> int:
    """
    Return a TCP port that nobody listens on.

    Below the range that the kernel hands to clients, so that no connection of a load client takes
    it before the server does. Drawn by a generator of its own: Hypothesis seeds the global one
    alike in each test process.
    """
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


def port_answers(port: int) -> bool:
    """Say whether a connection to *port* is accepted."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_port(port: int, limit: float = 15.0) -> None:
    """Wait until connections to *port* are accepted."""
    wait_until(lambda: port_answers(port), limit, f"port {port} accepts connections")


def wait_line(
    source: "Path | Process", pattern: str, count: int = 1, limit: float = 10.0
) -> re.Match[str]:
    """
    Wait until *count* places in a file, or in the output of a process, match *pattern*.

    `^` and `$` stand for the ends of lines. Returns the match number *count*. Fails at once when
    the process is gone.
    """
    if isinstance(source, Process):
        return source.wait_line(pattern, count, limit)
    path = source
    return wait_until(
        lambda: _nth_match(
            path.read_text(errors="replace") if path.exists() else "", pattern, count
        ),
        limit,
        f"{pattern!r}, {count} times, in {path}",
    )


def _nth_match(text: str, pattern: str, count: int) -> re.Match[str] | None:
    found = list(re.finditer(pattern, text, re.MULTILINE))
    return found[count - 1] if len(found) >= count else None


# Processes, as /proc knows them


class ProcessInfo(NamedTuple):
    """What the tests need of proc(5), `/proc/pid/stat`."""

    pid: int
    state: str
    ppid: int
    group: int
    session: int
    started: int  # in ticks since boot; with the pid it names one process for good

    @property
    def alive(self) -> bool:
        """Whether it still runs, rather than waiting to be reaped."""
        return self.state not in "ZX"

    def __str__(self) -> str:
        command = (
            _read_bytes(f"/proc/{self.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
        )
        return f"{self.pid} (state {self.state}, parent {self.ppid}): {command or '-'}"


def _read_bytes(path: str) -> bytes:
    """Return what a file of a process holds; nothing if the process is gone or not ours."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def open_files(pid: int) -> list[str]:
    """Return what the descriptors of *pid* lead to, but for what it closes meanwhile."""
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return found


def process_info(pid: int) -> ProcessInfo | None:
    """Return what /proc tells about *pid*."""
    _, _, stat = _read_bytes(f"/proc/{pid}/stat").rpartition(b") ")  # the name may hold anything
    if not stat:
        return None
    fields = stat.decode().split()
    ppid, group, session = map(int, fields[1:4])
    return ProcessInfo(pid, fields[0], ppid, group, session, int(fields[19]))


def process_table() -> dict[int, ProcessInfo]:
    """Return what /proc tells about all processes."""
    found = (process_info(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {info.pid: info for info in found if info}


def descendants(pids: Iterable[int], table: Mapping[int, ProcessInfo]) -> set[int]:
    """Return the children of *pids*, their children, and so on."""
    children = defaultdict(set)
    for info in table.values():
        children[info.ppid].add(info.pid)
    found: set[int] = set()
    todo = set(pids)
    while todo:
        new = children[todo.pop()] - found
        found |= new
        todo |= new
    return found


def exists(pid: int) -> bool:
    """Say whether a process runs. One that waits to be reaped does not."""
    info = process_info(pid)
    return info is not None and info.alive


def wait_gone(pid: int, limit: float = 10.0) -> None:
    """
    Wait until *pid* has ended.

    An adopted orphan is reaped as well. So do not use it for a `subprocess.Popen` of your own: it
    has `wait()`.
    """
    if not _ended(pid, limit):
        raise AssertionError(f"not within {limit} s: end of process {process_info(pid)}")
    reap(pid)


def _ended(pid: int, limit: float) -> bool:
    """Wait until *pid* has ended, reaped or not; say whether it has. An event: pidfd_open(2)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(limit * 1000))
    finally:
        os.close(descriptor)


_leaders: set[int] = set()  # their Popen reaps them and wants their exit code


def reap(pid: int) -> None:
    """Forget a child that has ended, unless a `Process` is to tell its exit code."""
    if pid not in _leaders:
        with suppress(ChildProcessError):  # somebody else's child
            os.waitpid(pid, os.WNOHANG)


@functools.cache
def adopt_orphans() -> None:
    """
    Become the parent of orphaned descendants, instead of process 1.

    So daemons and workers that lost their parent can be found and reaped, even in a container whose
    process 1 reaps nobody.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")  # pragma: no cover -- not since Linux 3.4


def wait_asleep(pid: int, limit: float = 10.0) -> None:
    """
    Wait until the main thread of *pid* sleeps, so that a signal wakes it.

    Python looks for signals between two of its steps. One that comes after the last look, as the
    thread falls asleep in `time.sleep` or for a lock, is heard only when that is over. A thread
    that sleeps, and has not woken from one look here to the next, is past that moment.
    """
    seen: list[bytes] = []

    def asleep() -> bool:
        seen.append(_sleep(pid, pid))
        return bool(seen[-1]) and seen[-3:].count(seen[-1]) == 3

    wait_until(asleep, limit, f"the main thread of process {pid} sleeps")


def all_asleep(pids: Collection[int]) -> bool:
    """Whether there was a moment in which all threads of *pids* slept."""
    first = _sleeps(pids)
    return all(first.values()) and first == _sleeps(pids)  # none has woken between the two looks


def _sleeps(pids: Collection[int]) -> dict[int, bytes]:
    return {task: _sleep(pid, task) for pid in pids for task in _tasks(pid)}


def _tasks(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def _sleep(pid: int, task: int) -> bytes:
    """Return a mark of the sleep that a thread is in, another one for each; nothing if it is up."""
    status = _read_bytes(f"/proc/{pid}/task/{task}/status")
    if not re.search(rb"^State:\s+S", status, re.M):
        return b""
    return b"".join(re.findall(rb"^voluntary_ctxt_switches:.*", status, re.M))


def kill_all(pids: Collection[int], sig: signal.Signals = signal.SIGKILL) -> None:
    """Send each of *pids* a signal; if nobody survives it, wait until they ended."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, sig)
    if sig == signal.SIGKILL:
        for pid in pids:
            wait_gone(pid)


# What was published, and where


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of `record()` in an application under test."""

    pid: int
    channel: str
    time: float
    facts: dict[str, object]


# A process under test


@contextmanager
def _nothing_ignored() -> Iterator[None]:
    """
    Start children with the usual signal dispositions.

    An ignored signal stays ignored across exec, and `nohup`, or `&` in a shell without job control,
    ignores some in the tests; a handled one does not.
    """
    ignored = []
    if threading.current_thread() is threading.main_thread():
        ignored = [s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN]
        ignored = [s for s in ignored if s not in {signal.SIGPIPE, signal.SIGXFSZ}]  # Popen's part
    for each in ignored:
        signal.signal(each, lambda *_: None)
    try:
        yield
    finally:
        for each in ignored:
            signal.signal(each, signal.SIG_IGN)


class Process:
    """
    A program that runs in a process of its own, leader of its own session and process group.

    A context manager; `start_process`, `start_script` and `run_server` are the ways to get one.
    Leaving it ends what still lives: SIGTERM to the leader, which is to take its children with it.

    Attributes:
        pid: Its process id, which is also that of its group and session.
        process: The `subprocess.Popen`.
        output_path: File with what it wrote to standard output, and to standard error unless
            *apart*.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None,
        folder: Path,
        apart: bool = False,
        pass_fds: Collection[int] = (),
    ) -> None:
        adopt_orphans()
        self.argv = [str(word) for word in argv]
        self.marker = uuid.uuid4().hex
        self.output_path = folder / "output"
        self.errors_path = folder / "errors" if apart else self.output_path
        self.journal_path = folder / "journal"
        self.journal_path.touch()
        self._kept: dict[Path, str] = {}
        self._family: set[int] = set()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), path] if path else [str(TESTS)])
        environment |= {JOURNAL: str(self.journal_path), MARKER: self.marker}
        with (
            self.output_path.open("ab") as output,
            self.errors_path.open("ab") as errors,
            _nothing_ignored(),
        ):
            self.process = subprocess.Popen(
                self.argv,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid
        _leaders.add(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wrong = self._end()
        for path in {self.output_path, self.errors_path, self.journal_path}:
            self._kept[path] = self._text(path)
        if exc is None and wrong:
            raise AssertionError(self.report(*wrong))
        if exc is not None and OUTPUT not in str(exc):
            exc.add_note(self.report(*wrong))

    # What it tells

    def output(self) -> str:
        """Return what it has written so far."""
        return self._text(self.output_path)

    def errors(self) -> str:
        """Return what it has written to standard error so far; all output if not apart."""
        return self._text(self.errors_path)

    def _text(self, path: Path) -> str:
        kept = self._kept.get(path)
        return path.read_text(errors="replace") if kept is None else kept

    def report(self, *wrong: str) -> str:
        """Return all that helps to see what went wrong."""
        apart = self.errors() if self.errors_path != self.output_path else ""
        return "\n".join(
            [
                *wrong,
                f"process {self.pid}, exit code {self.process.poll()}: {' '.join(self.argv)}",
                OUTPUT,
                self.output() + apart,
                "---- its journal:",
                *(f"{e.pid} {e.channel} {e.facts or ''}" for e in self.journal()),
                "----",
            ]
        )

    def journal(self) -> list[Entry]:
        """Return what was recorded by it and all its descendants, in order."""
        lines = self._text(self.journal_path).splitlines(keepends=True)
        return [Entry(**json.loads(line)) for line in lines if line.endswith("\n")]

    def published(self) -> dict[int, list[str]]:
        """Return for each process which channels it recorded, in order."""
        found = defaultdict(list)
        for entry in self.journal():
            found[entry.pid].append(entry.channel)
        return dict(found)

    # What the test waits for

    def wait(self, predicate: Callable[[], T | None], limit: float, what: str) -> T:
        """
        Return the first true value of *predicate*.

        Raises:
            AssertionError: Not within *limit* seconds, or the whole family is gone and it still
                does not hold.
        """
        deadline = time.monotonic() + limit
        looks_without = 0  # one look at /proc may miss a process whose parent forks and ends
        while True:
            gone = self.process.poll() is not None and not self.family()
            looks_without = looks_without + 1 if gone else 0
            if value := predicate():
                return value
            if looks_without > DAEMON_FORKS:
                raise AssertionError(self.report(f"the process is gone without: {what}"))
            if time.monotonic() > deadline:
                raise AssertionError(self.report(f"not within {limit} s: {what}"))
            time.sleep(PAUSE)

    def wait_line(self, pattern: str, count: int = 1, limit: float = 10.0) -> re.Match[str]:
        """Wait until *count* places in its output match *pattern*; return the last match."""
        return self.wait(
            lambda: _nth_match(self.output(), pattern, count), limit, f"{pattern!r}, {count} times"
        )

    def wait_published(self, channel: str, count: int = 1, limit: float = 10.0) -> list[Entry]:
        """Wait until *channel* was recorded *count* times, anywhere; return all its entries."""

        def entries() -> list[Entry]:
            found = [entry for entry in self.journal() if entry.channel == channel]
            return found if len(found) >= count else []

        return self.wait(entries, limit, f"{channel!r} published {count} times")

    def wait_asleep(self, channel: str, count: int = 1, limit: float = 10.0) -> list[Entry]:
        """Wait as `wait_published`, and until who recorded it last sleeps and hears signals."""
        entries = self.wait_published(channel, count, limit)
        wait_asleep(entries[-1].pid, limit)
        return entries

    def wait_exit(self, limit: float = 10.0) -> int:
        """Wait until the leader has ended; return its exit code, negative for a signal."""
        if self.process.poll() is None and not _ended(self.pid, limit):
            raise AssertionError(self.report(f"still runs after {limit} s"))
        return self.process.wait()

    # Its signals and its family

    def signal(self, sig: int) -> None:
        """Send the leader a signal; nothing happens if it has ended."""
        self.process.send_signal(sig)

    def signal_group(self, sig: int) -> None:
        """Send the whole process group a signal, as Ctrl-C does with SIGINT."""
        os.killpg(self.pid, sig)

    def children(self) -> list[int]:
        """Return the living children of the leader."""
        return sorted(i.pid for i in process_table().values() if i.ppid == self.pid and i.alive)

    def workers(self) -> list[int]:
        """Return the living children of the leader, without the helpers of multiprocessing."""
        helpers = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")
        return [
            pid
            for pid in self.children()
            if not any(helper in _read_bytes(f"/proc/{pid}/cmdline") for helper in helpers)
        ]

    def family(self) -> list[ProcessInfo]:
        """Return all its living processes: the leader, its descendants, and who was orphaned."""
        table = process_table()
        mark = f"{MARKER}={self.marker}".encode()
        found = {
            info.pid
            for info in table.values()
            if self.pid in {info.pid, info.group, info.session}
            or mark in _read_bytes(f"/proc/{info.pid}/environ").split(b"\0")
        }
        found |= descendants(found | {self.pid}, table)
        self._family |= found
        return [table[pid] for pid in sorted(found) if table[pid].alive]

    def _end(self) -> list[str]:
        """End all that lives; return what should not have been so."""
        wrong = []
        self.process.terminate()  # does nothing if it has ended
        if self.process.poll() is None and not _ended(self.pid, LEAVE):
            wrong.append(f"it did not leave within {LEAVE} s of SIGTERM and was killed")
            self.process.kill()
        if self.process.wait() == -signal.SIGKILL:  # who dies of it cannot take its children along
            kill_all([info.pid for info in self.family()], signal.SIGTERM)
        if outlived := self._survivors():
            wrong += [
                f"outlived the leader for {LEAVE} s and was killed: {info}" for info in outlived
            ]
            kill_all([info.pid for info in outlived])
        for pid in self._family - {self.pid}:
            reap(pid)
        _leaders.discard(self.pid)
        return wrong

    def _survivors(self) -> list[ProcessInfo]:
        """Give the family time to leave; return who did not."""
        with suppress(AssertionError):
            wait_until(lambda: not self.family(), LEAVE)
        return self.family()


@contextmanager
def start_process(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    apart: bool = False,
) -> Iterator[Process]:
    """
    Run a command.

    Args:
        argv: The command.
        cwd: Its working directory; by default an empty one that vanishes at the end.
        env: Added to the environment. Python's standard streams are unbuffered unless it says
            `PYTHONUNBUFFERED=""`.
        apart: Keep standard error apart from the output.
    """
    with tempfile.TemporaryDirectory(prefix="engine-bridge-") as folder:
        place = cwd or _subfolder(folder)
        with Process(argv, cwd=place, env=env, folder=Path(folder), apart=apart) as process:
            yield process


def _subfolder(folder: str) -> Path:
    path = Path(folder, "cwd")
    path.mkdir()
    return path


# Scripts


@dataclass(frozen=True, slots=True)
class Finished:
    """A script that has ended."""

    returncode: int
    stdout: str
    stderr: str
    process: Process


@contextmanager
def start_script(
    script: str | Path,
    *args: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    apart: bool = False,
) -> Iterator[Process]:
    """
    Run a Python script and leave it running.

    Args:
        script: Its source (a string) or its file (a path).
        args: Its arguments.
        cwd: As in `start_process`.
        env: As in `start_process`.
        options: Options of the interpreter, such as `-I`.
        apart: Keep standard error apart from the output.
    """
    with tempfile.TemporaryDirectory(prefix="engine-bridge-") as folder:
        path = script if isinstance(script, Path) else Path(folder, "script.py")
        if isinstance(script, str):
            path.write_text(textwrap.dedent(script))
        argv = [sys.executable, *options, path, *args]
        with start_process(argv, cwd=cwd, env=env, apart=apart) as process:
            yield process


def run_script(
    script: str | Path,
    *args: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    limit: float = 15.0,
) -> Finished:
    """Run a Python script to its end. Arguments as in `start_script`; no child may outlive it."""
    with start_script(script, *args, cwd=cwd, env=env, options=options, apart=True) as process:
        returncode = process.wait_exit(limit)
    return Finished(returncode, process.output(), process.errors(), process)


# Servers


class Server(Process):
    """A process that is to listen on `port`."""

    port: int


Ready = Callable[[Server], object]


def accepts(server: Server) -> bool:
    """Ready when its port accepts connections. Some servers listen before any worker can answer."""
    return port_answers(server.port)


def answers(path: str = "/") -> Ready:
    """Ready when it has answered one request for *path*, with whatever status."""
    return lambda server: attempt(server.port, path, timeout=2).status


def prints(pattern: str, count: int = 1) -> Ready:
    """Ready when *count* places in its output match *pattern*."""
    return lambda server: _nth_match(server.output(), pattern, count)


def publishes(channel: str, count: int = 1) -> Ready:
    """Ready when *channel* was recorded *count* times, and the port accepts connections."""
    return lambda server: (
        sum(entry.channel == channel for entry in server.journal()) >= count and accepts(server)
    )


@contextmanager
def run_server(
    argv: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    port: int | None = None,
    ready: Ready = accepts,
    limit: float = 15.0,
    pass_fds: Collection[int] = (),
) -> Iterator[Server]:
    """
    Run a server.

    Args:
        argv: The command; `{port}` in it becomes the port's number.
        cwd: Its working directory.
        env: As in `start_process`.
        port: Where it is to listen; a free port by default.
        ready: What to wait for: `accepts`, `answers(…)`, `prints(…)`, `publishes(…)` or any
            function of the server.
        limit: Seconds to wait for that.
        pass_fds: Descriptors that it inherits, under the same numbers.

    Raises:
        AssertionError: It did not become ready; the message holds its whole output.
    """
    port = free_port() if port is None else port
    words = [str(word).replace("{port}", str(port)) for word in argv]
    with (
        tempfile.TemporaryDirectory(prefix="engine-bridge-") as folder,
        Server(words, cwd=cwd, env=env, folder=Path(folder), pass_fds=pass_fds) as server,
    ):
        server.port = port
        server.wait(lambda: ready(server), limit, f"ready on port {port}")
        yield server


def send_signal(target: Process | int, sig: int) -> None:
    """Send a process under test, or any pid, a signal."""
    if isinstance(target, Process):
        target.signal(sig)
    else:
        os.kill(target, sig)


def assert_once(
    process: Process, *channels: str, pids: Collection[int] | None = None, count: int | None = None
) -> list[int]:
    """
    Check that each process recorded each of *channels* exactly once, in that order.

    Args:
        process: The server or script.
        channels: Such as `"start", "stop"`. What else was recorded does not matter.
        pids: Whom to check; by default all who recorded anything at all, of whom there must be one.
        count: How many processes there must be.

    Returns:
        The pids that were checked.
    """
    published = process.published()
    checked = sorted(published if pids is None else pids)
    wrong = [
        f"in {pid}: {found}, not {list(channels)}"
        for pid in checked
        if (found := [c for c in published.get(pid, []) if c in channels]) != list(channels)
    ]
    if not checked or (count is not None and len(checked) != count):
        wrong.append(f"{len(checked)} processes, not {count or 'one at least'}")
    if wrong:
        raise AssertionError(process.report(*wrong))
    return checked
