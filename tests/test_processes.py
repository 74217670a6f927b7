"""The helpers are worth as much as what they find: each is shown something to find."""

import _thread
import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import processes
import pytest
from leaks import nothing_left_behind
from loadclient import Connection, outcome_of
from processes import (
    Client,
    Server,
    all_asleep,
    answers,
    assert_once,
    attempt,
    background_load,
    exists,
    free_port,
    get,
    open_stream,
    prints,
    publishes,
    record,
    run_load,
    run_script,
    run_server,
    send_signal,
    start_process,
    start_request,
    start_script,
    wait_asleep,
    wait_gone,
    wait_line,
    wait_port,
    wait_until,
)

TESTS = Path(processes.__file__).parent

# One process a worker, of its own making: a parent that forks, binds first and passes signals on.
FORKING = """
import os, signal, socket, sys
from journal import record

TOLD = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)  # until the handlers are set
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
workers = []

def serve():
    record("start", role="worker")
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    signal.signal(signal.SIGINT, lambda *_: running.clear())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
    listener.settimeout(0.01)
    while running:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi")
        connection.close()
    record("stop")
    os._exit(0)

def leave(*_):
    for pid in workers:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass

for _ in range(2):
    pid = os.fork()
    if not pid:
        serve()
    workers.append(pid)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, lambda *_: None)
signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
print("ready", flush=True)
for pid in workers:
    os.waitpid(pid, 0)
print("bye", flush=True)
"""

# Each path is a way to answer, or to fail.
FAULTY = r"""
import select, socket, struct, sys, threading, time

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nhi"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

KEEP = {
    "/ok": OK,
    "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "/503": b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "/slow": OK,
}
CLOSE = {
    "/close": HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    "/old": b"HTTP/1.0 200 OK\r\n\r\nhi",
    "/empty": b"",
    "/reset": b"",
    "/half": OK[:-1],
    "/half-and-reset": OK[:-1],
    "/half-head": OK[:20],
    "/half-chunk": CHUNKED + b"5\r\nhe",
    "/silent": b"",
    "/greek": b"SSH-2.0-OpenSSH\r\n",
    "/idle": OK,
    "/idle-and-reset": OK,
    "/unread": OK,
    "/read": OK,
    "/events": CHUNKED,
    "/events-for-ever": CHUNKED,
}

def before(path):
    if path == "/slow":
        print("working", flush=True)
        time.sleep(0.3)

def after(path, connection):
    if path in {"/silent", "/read"}:
        connection.recv(65536)
    elif path == "/unread":
        select.select([connection], [], [])
    elif path.endswith("reset"):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif path.startswith("/events"):
        for _ in range(3):
            connection.sendall(b"4\r\nping\r\n")
            time.sleep(0.01)
        if path == "/events-for-ever":
            connection.recv(1)
        connection.sendall(b"0\r\nTrailer: 1\r\n\r\n")

def serve(connection):
    with connection:
        while request := connection.recv(65536):
            path = request.split()[1].decode()
            before(path)
            if path in CLOSE:
                connection.sendall(CLOSE[path])
                return after(path, connection)
            connection.sendall(KEEP[path])

listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"""

# What a program does that has gone into the background, twice orphaned.
DAEMON = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
print("daemon", os.getpid(), flush=True)
signal.pause()
"""


def script(tmp_path: Path, source: str) -> list[str | Path]:
    """Write a server; return the command that runs it."""
    path = tmp_path / "server.py"
    path.write_text(source)
    return [sys.executable, path, "{port}"]


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Server]:
    """A server with two workers."""
    with run_server(script(tmp_path, FORKING), cwd=tmp_path, ready=publishes("start", 2)) as server:
        wait_asleep(server.pid)
        yield server


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that fails as it is asked to."""
    folder = tmp_path_factory.mktemp("faulty")
    with run_server(script(folder, FAULTY), cwd=folder, ready=answers("/ok")) as server:
        yield server


# Servers


def test_server_tells_what_was_published_in_which_process(forking: Server) -> None:
    """Each worker has one start and one stop, the parent nothing, after a SIGTERM."""
    workers = forking.workers()
    assert len(workers) == 2
    assert forking.children() == workers
    assert get(forking.port).body == b"hi"
    forking.signal(signal.SIGTERM)
    assert forking.wait_exit() == 0
    assert forking.wait_line("^bye$").group() == "bye"
    assert assert_once(forking, "start", "stop", count=2) == workers
    assert forking.published() == {pid: ["start", "stop"] for pid in workers}
    assert [entry.facts for entry in forking.journal() if entry.channel == "start"] == [
        {"role": "worker"}
    ] * 2


def test_server_is_ended_when_the_with_block_is_left(tmp_path: Path) -> None:
    """A server that nobody stopped has left in good order, and its output can still be read."""
    with run_server(script(tmp_path, FORKING), cwd=tmp_path, ready=prints("^ready")) as server:
        server.wait_published("start", 2)
    assert not exists(server.pid)
    assert "bye" in server.output()
    assert_once(server, "start", "stop")


def test_signal_group_reaches_the_whole_group(forking: Server) -> None:
    """Ctrl-C is seen by each worker, not only by the parent, which here passes nothing on."""
    forking.signal_group(signal.SIGINT)
    forking.wait_published("stop", 2)
    assert forking.wait_exit() == 0


def test_send_signal_takes_a_server_or_a_pid(forking: Server) -> None:
    """A worker is ended by its pid, the server by itself."""
    worker, other = forking.workers()
    send_signal(worker, signal.SIGTERM)
    forking.wait_published("stop")
    assert forking.published()[worker] == ["start", "stop"]
    send_signal(forking, signal.SIGTERM)
    wait_gone(other)


def test_server_may_be_killed_and_leave_orphans(forking: Server) -> None:
    """Workers that SIGKILL orphaned are asked to leave, and do; that is no failure of the test."""
    workers = forking.workers()
    forking.signal(signal.SIGKILL)
    assert forking.wait_exit() == -signal.SIGKILL
    assert all(exists(pid) for pid in workers)


def test_orphans_of_a_killed_server_are_gone_after_it(tmp_path: Path) -> None:
    """None of them is there, not even to be reaped."""
    with run_server(script(tmp_path, FORKING), cwd=tmp_path, ready=publishes("start", 2)) as server:
        workers = server.workers()
        server.signal(signal.SIGKILL)
    assert [pid for pid in workers if processes.process_info(pid)] == []
    assert_once(server, "start", "stop")


def test_run_server_fails_with_the_output_when_the_server_dies(tmp_path: Path) -> None:
    """A server that ends before it is ready fails the test at once, and says why."""
    begun = time.monotonic()
    with (
        pytest.raises(AssertionError, match=r"(?s)gone without: ready.*ZeroDivisionError"),
        run_server(script(tmp_path, "1 / 0"), cwd=tmp_path),
    ):
        pass  # pragma: no cover -- it is not reached
    assert time.monotonic() - begun < 5


def test_run_server_fails_with_the_output_when_the_port_never_answers(tmp_path: Path) -> None:
    """A server that listens nowhere fails the test after the limit."""
    argv = script(tmp_path, "print('here I am', flush=True); import signal; signal.pause()")
    with (
        pytest.raises(AssertionError, match=r"(?s)not within 0.3 s: ready on port.*here I am"),
        run_server(argv, cwd=tmp_path, limit=0.3),
    ):
        pass  # pragma: no cover -- it is not reached


def test_failing_test_is_told_the_output_of_its_server(tmp_path: Path) -> None:
    """What the server wrote and recorded stands below the failure of the test."""

    def told(server: Server) -> bool:
        return "ready" in server.output() and "worker" in str(server.journal())

    with (
        pytest.raises(ValueError, match="mine") as caught,
        run_server(script(tmp_path, FORKING), cwd=tmp_path, ready=told),
    ):
        raise ValueError("mine")
    (note,) = caught.value.__notes__
    assert "ready" in note
    assert "start {'role': 'worker'}" in note


def test_server_that_ignores_sigterm_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and the test is told."""
    monkeypatch.setattr(processes, "LEAVE", 0.2)
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('up'); signal.pause()"
    with (
        pytest.raises(AssertionError, match=r"did not leave within 0\.2 s of SIGTERM"),
        start_script(stubborn) as process,
    ):
        process.wait_line("up")
    assert not exists(process.pid)


def test_child_that_outlives_its_server_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that left the group and lost its parents is found by its environment, and killed."""
    monkeypatch.setattr(processes, "LEAVE", 0.2)
    with pytest.raises(AssertionError, match="outlived the leader"):
        leave_daemon_alone()


def leave_daemon_alone() -> None:
    """Forget that a daemon wants to be ended, too."""
    with start_script(DAEMON) as process:
        daemon = int(process.wait_line(r"daemon (\d+)")[1])
        assert process.wait_exit() == 0
        assert [info.pid for info in process.family()] == [daemon]


def test_daemon_that_the_test_ends_is_no_failure() -> None:
    """A launching command that returns is waited for, and then its daemon."""
    with start_script(DAEMON) as process:
        daemon = int(process.wait_line(r"daemon (\d+)")[1])
        assert process.wait_exit() == 0
        send_signal(daemon, signal.SIGTERM)
        wait_gone(daemon)


def test_processes_start_with_usual_signals_though_the_tests_ignore_some() -> None:
    """Under nohup, or behind an `&`, the process under test still hears SIGHUP and SIGINT."""
    source = "import signal; print(signal.getsignal(1).name, signal.getsignal(2).__name__)"
    before = {sig: signal.signal(sig, signal.SIG_IGN) for sig in (signal.SIGHUP, signal.SIGINT)}
    try:
        assert run_script(source).stdout == "SIG_DFL default_int_handler\n"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def test_process_can_be_started_from_any_thread() -> None:
    """Only the main thread may touch signal handlers; another one starts processes all the same."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run_script("print(1)").returncode))
    thread.start()
    thread.join()
    assert found == [0]


def test_workers_are_children_without_the_helpers_of_multiprocessing() -> None:
    """A spawned worker counts; the resource tracker beside it does not."""
    source = """
    import multiprocessing, time
    if __name__ == "__main__":
        worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=[60])
        worker.start()
        print("worker", worker.pid, flush=True)
        try:
            worker.join()
        finally:
            worker.kill()
    """
    with start_script(source) as process:
        worker = int(process.wait_line(r"worker (\d+)")[1])
        assert process.workers() == [worker]
        assert set(process.children()) > {worker}
        wait_asleep(process.pid)
        process.signal(signal.SIGINT)
        assert process.wait_exit() == -signal.SIGINT


# Scripts


def test_run_script_returns_code_and_both_streams(tmp_path: Path) -> None:
    """A script gets its arguments, environment and folder, and its two streams are apart."""
    source = """
        import os, sys
        print(sys.argv[1], os.environ["WHAT"], os.getcwd())
        print("warned", file=sys.stderr)
        sys.exit(3)
    """
    done = run_script(source, "one", cwd=tmp_path, env={"WHAT": "two"}, options=["-W", "error"])
    assert (done.returncode, done.stdout, done.stderr) == (3, f"one two {tmp_path}\n", "warned\n")


def test_run_script_takes_a_file(tmp_path: Path) -> None:
    """A path is run as it is, and may record without being told where."""
    path = tmp_path / "recorder.py"
    path.write_text("from processes import record; record('start', path=__file__); record('stop')")
    done = run_script(path, env={"PYTHONPATH": "/nowhere"})
    assert done.stderr == ""
    (pid,) = assert_once(done.process, "start", "stop")
    assert done.process.journal()[0].facts == {"path": str(path)}
    assert pid == done.process.pid


def test_run_script_has_a_limit() -> None:
    """A script that hangs fails the test, with its output."""
    with pytest.raises(AssertionError, match=r"(?s)still runs after 0.3 s.*here"):
        run_script("import signal; print('here'); signal.pause()", limit=0.3)


def test_start_process_gives_the_command_an_empty_folder() -> None:
    """Any command runs, in a folder that vanishes."""
    with start_process(["sh", "-c", "pwd; ls -A"]) as process:
        assert process.wait_exit() == 0
    (folder,) = process.output().splitlines()
    assert not Path(folder).exists()


# Facts


def test_wait_until_returns_the_value() -> None:
    """The first true value is returned; without one the message says what was waited for."""
    values = iter([0, 0, 7])
    assert wait_until(lambda: next(values)) == 7
    with pytest.raises(AssertionError, match=r"not within 0.01 s: the moon"):
        wait_until(lambda: False, 0.01, "the moon")


def test_wait_line_counts_matches(tmp_path: Path) -> None:
    """A line is waited for in a file that need not exist yet, or in the output of a process."""
    path = tmp_path / "log"
    writer = threading.Timer(0.05, lambda: path.write_text("one 1\none 2\n"))
    writer.start()
    assert wait_line(path, r"^one (\d)$", 2)[1] == "2"
    writer.join()
    with start_script("import signal; print('x y x'); signal.pause()") as process:
        assert wait_line(process, "x", 2).start() == 4
        with pytest.raises(AssertionError, match=r"(?s)not within 0.05 s: 'x', 3 times.*x y x"):
            wait_line(process, "x", 3, limit=0.05)


def test_wait_fails_at_once_when_the_process_is_gone() -> None:
    """Nobody waits ten seconds for a line that a dead process cannot write."""
    begun = time.monotonic()
    with (
        pytest.raises(AssertionError, match="gone without: 'never'"),
        start_script("print('done')") as process,
    ):
        process.wait_line("never")
    assert time.monotonic() - begun < 5


def test_wait_published_has_a_limit(forking: Server) -> None:
    """What is missing is told with what there is."""
    with pytest.raises(AssertionError, match=r"(?s)'stop' published 1 times.*start"):
        forking.wait_published("stop", limit=0.05)


@pytest.mark.parametrize("how", ["pass", "time.sleep(0.001)"])
def test_wait_asleep_has_a_limit(how: str) -> None:
    """A main thread that works, or never sleeps for long, is not said to sleep; nor is nobody."""
    with start_script(f"import time\nprint('up')\nwhile True: {how}") as process:
        process.wait_line("up")
        with pytest.raises(AssertionError, match=rf"main thread of process {process.pid} sleeps$"):
            wait_asleep(process.pid, 0.2)
    with pytest.raises(AssertionError, match=r"sleeps$"):
        wait_asleep(process.pid, 0.05)


def test_all_asleep_looks_at_each_thread(tmp_path: Path) -> None:
    """A thread that works beside a main thread that sleeps counts, until it sleeps as well."""
    source = """
        import os, threading, time

        def work():
            while not os.path.exists("release"):
                pass
            time.sleep(30)

        threading.Thread(target=work, daemon=True).start()
        print("up")
        time.sleep(30)
    """
    with start_script(source, cwd=tmp_path) as process:
        process.wait_line("up")
        wait_asleep(process.pid)
        assert not any(all_asleep([process.pid]) for _ in range(100))
        (tmp_path / "release").touch()
        process.wait(lambda: all_asleep([process.pid]), 5, "both sleep")
    assert all_asleep([process.pid]), "who is gone keeps nobody up"


def test_wait_gone_has_a_limit(forking: Server) -> None:
    """A process that lives on is named."""
    with pytest.raises(AssertionError, match=f"end of process {forking.pid}"):
        wait_gone(forking.pid, 0.05)


def test_wait_gone_leaves_the_exit_code_to_the_server(forking: Server) -> None:
    """Who waits for a server by its pid can still ask how it ended."""
    forking.signal(signal.SIGKILL)
    wait_gone(forking.pid)
    assert forking.wait_exit() == -signal.SIGKILL


def test_process_info_of_nobody_is_none() -> None:
    """A pid that is out of range is no process."""
    assert processes.process_info(2**22 + 1) is None
    assert not exists(2**22 + 1)
    wait_gone(2**22 + 1)


def test_wait_port_waits_for_a_listener() -> None:
    """A free port answers nobody; a listening one does."""
    port = free_port()
    with pytest.raises(AssertionError, match=f"port {port}"):
        wait_port(port, 0.05)
    with socket.create_server(("127.0.0.1", port)):
        wait_port(port)


@pytest.mark.parametrize(
    ("published", "complaint"),
    [
        (["start"], r"\['start'\], not \['start', 'stop'\]"),
        (["start", "start", "stop"], "not"),
        (["stop", "start"], "not"),
        ([], "0 processes"),
    ],
)
def test_assert_once_finds(published: list[str], complaint: str) -> None:
    """A start without its stop, one too many, the wrong order, and nothing at all are failures."""
    source = f"from journal import record\nfor channel in {published}: record(channel)"
    done = run_script(source)
    with pytest.raises(AssertionError, match=complaint):
        assert_once(done.process, "start", "stop")


def test_assert_once_checks_who_is_named() -> None:
    """Processes that are named must have recorded it, and there must be as many as are wanted."""
    done = run_script("from journal import record; record('start')")
    assert assert_once(done.process, "start", pids=[done.process.pid]) == [done.process.pid]
    with pytest.raises(AssertionError, match=r"in 1: \[\], not \['start'\]"):
        assert_once(done.process, "start", pids=[1])
    with pytest.raises(AssertionError, match="1 processes, not 2"):
        assert_once(done.process, "start", count=2)


def test_record_appends_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What JSON cannot say is told by its repr, and a half-written line is not read."""
    path = tmp_path / "journal"
    path.touch()
    monkeypatch.setenv("ENGINE_BRIDGE_TEST_JOURNAL", str(path))
    record("start", thing=signal.SIG_DFL, path=tmp_path)
    (line,) = path.read_text().splitlines()
    assert f"PosixPath('{tmp_path}')" in line
    with start_script("import signal; signal.pause()") as process:
        process.journal_path.write_text(line + "\n" + line[:10])
        (entry,) = process.journal()
        assert (entry.pid, entry.channel) == (os.getpid(), "start")


# Outcomes


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/ok", "ok"),
        ("/204", "ok"),
        ("/close", "ok"),
        ("/old", "ok"),
        ("/slow", "ok"),
        ("/503", "status:503"),
        ("/reset", "reset"),
        ("/empty", "empty"),
        ("/half", "partial"),
        ("/half-and-reset", "partial"),
        ("/half-head", "partial"),
        ("/half-chunk", "partial"),
        ("/silent", "timeout"),
        ("/greek", "malformed"),
    ],
)
def test_outcome_is_told(faulty: Server, path: str, outcome: str) -> None:
    """Each way to fail has its name."""
    answer = attempt(faulty.port, path, timeout=0.5)
    assert answer.outcome == outcome
    assert answer.ok == (outcome == "ok")
    assert bool(answer.error) == (outcome != "ok" and not outcome.startswith("status"))


def test_refused_is_told() -> None:
    """Nobody listens: every way to ask says so."""
    port = free_port()
    assert attempt(port).outcome == "refused"
    assert start_request(port).result().outcome == "refused"
    with open_stream(port) as stream:
        assert stream.done
        with pytest.raises(AssertionError, match="refused"):
            stream.wait_first()
    with pytest.raises(AssertionError, match=f"GET / on port {port}: refused"):
        get(port)


def test_other_errors_are_told_by_name() -> None:
    """Here there is no descriptor left to connect with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        answer = attempt(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answer.outcome == "other:EMFILE"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConnectionResetError(errno.ECONNRESET, ""), "reset"),
        (BrokenPipeError(errno.EPIPE, ""), "reset"),
        (OSError(errno.EHOSTUNREACH, ""), "other:EHOSTUNREACH"),
        (OSError("no number"), "other:None"),
    ],
)
def test_outcome_of_an_error(error: OSError, outcome: str) -> None:
    """Errors that no server can be made to provoke have their names, too."""
    assert outcome_of(error) == outcome


def test_connecting_has_a_limit() -> None:
    """A listener whose queue is full lets the next one wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert attempt(port, timeout=0.2).outcome == "timeout"


def test_get_returns_the_whole_answer(faulty: Server) -> None:
    """Status, headers with names in lower case, and body; an error's status is an answer, too."""
    answer = get(faulty.port, "/ok")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "2", b"hi")
    assert get(faulty.port, "/old").body == b"hi"
    assert get(faulty.port, "/503").headers["retry-after"] == "1"
    with pytest.raises(AssertionError, match="empty"):
        get(faulty.port, "/empty")


def test_client_keeps_its_connection(faulty: Server) -> None:
    """A client that keeps its connection uses it until the answer says close."""
    with Client(faulty.port) as client:
        assert [client.fetch(path).outcome for path in ("/ok", "/503", "/close", "/old")] == [
            "ok",
            "status:503",
            "ok",
            "ok",
        ]
        assert client.fetch("/ok").reopened == ()


@pytest.mark.parametrize("path", ["/idle", "/idle-and-reset"])
def test_stale_connection_is_opened_anew(faulty: Server, path: str) -> None:
    """A connection that the server closed while it was idle costs a new one, and no request."""
    with Client(faulty.port) as client:
        assert client.fetch(path).ok
        wait_until(client.is_stale)
        answer = client.fetch("/ok")
        assert (answer.outcome, answer.reopened) == ("ok", ("stale",))


def test_race_with_an_idle_close_is_told_from_a_lost_request(faulty: Server) -> None:
    """Closed with the request unread: asked again. Closed after the request was read: lost."""
    with Client(faulty.port) as client:
        assert client.fetch("/unread").ok
        answer = client.fetch("/ok")
        assert (answer.outcome, answer.reopened) == ("ok", ("race",))
        assert client.fetch("/read").ok
        answer = client.fetch("/ok")
        assert (answer.outcome, answer.reopened) == ("empty", ())


def test_race_is_seen_behind_an_ordinary_end(faulty: Server) -> None:
    """The request met a socket that was closed in good order: the reset hides behind that end."""
    connection = Connection(faulty.port, timeout=5)
    try:
        assert connection.exchange("/idle", {}).ok
        wait_until(connection.closed_while_idle)
        assert connection.exchange("/ok", {}).outcome == "race"
        assert connection.exchange("/ok", {}).outcome == "race"
    finally:
        connection.close()


def test_request_in_flight_is_answered(faulty: Server) -> None:
    """A request is on its way while the test does other things."""
    count = faulty.output().count("working")
    request = start_request(faulty.port, "/slow")
    faulty.wait_line("working", count + 1)
    assert not request.done
    answer = request.result()
    assert (answer.outcome, answer.status, answer.body) == ("ok", 200, b"hi")
    assert answer.seconds >= 0.3
    assert request.done


def test_request_in_flight_has_a_limit(faulty: Server) -> None:
    """A result that does not come fails the test."""
    request = start_request(faulty.port, "/silent", timeout=0.3)
    with pytest.raises(AssertionError, match=r"/silent: no end of the answer within 0.05 s"):
        request.result(0.05)
    assert request.result().outcome == "timeout"


def test_stream_is_read_to_its_end(faulty: Server) -> None:
    """Pieces are seen as they come, and the end in good order is told."""
    with open_stream(faulty.port, "/events") as stream:
        assert stream.wait_first() == b"ping"
        answer = stream.wait_end()
    assert (answer.outcome, answer.body) == ("ok", b"ping" * 3)
    assert stream.pieces == [b"ping"] * 3


def test_stream_can_be_hung_up(faulty: Server) -> None:
    """A stream without end is closed by the client, and that is no good end."""
    with open_stream(faulty.port, "/events-for-ever") as stream:
        wait_until(lambda: len(stream.pieces) == 3)
        assert not stream.done
    assert stream.wait_end().outcome == "partial"


def test_stream_that_breaks_off_is_partial(faulty: Server) -> None:
    """A stream that ends without its last chunk was cut off."""
    with open_stream(faulty.port, "/half-chunk") as stream:
        answer = stream.wait_end()
    assert (answer.outcome, answer.status, answer.body) == ("partial", 200, b"he")


@pytest.mark.parametrize("keep_alive", [True, False])
def test_load_counts_requests(faulty: Server, keep_alive: bool) -> None:
    """As many requests as asked for are made, over all clients together."""
    load = run_load(faulty.port, path="/ok", clients=3, requests=50, keep_alive=keep_alive)
    assert load.counts == {"ok": 50}
    assert load.failures == {}
    assert 0 < load.longest < 5
    assert str(load).startswith("ok 50; longest 0.")


def test_load_tells_failures_from_stale_connections(faulty: Server) -> None:
    """What fails is counted by its name; a race on an idle close is no failure."""
    load = run_load(faulty.port, path="/503", clients=2, requests=4)
    assert load.failures == {"status:503": 4}
    assert len(load.examples) == 4
    load = run_load(faulty.port, path="/idle", clients=2, requests=20, keep_alive=True)
    assert load.failures == {}
    assert load.counts["ok"] == load.total == 20
    assert load.counts["stale"] + load.counts["race"] == 18


def test_load_is_bounded(faulty: Server) -> None:
    """An event ends it, or the time, which is a failure where something else was to end it."""
    until = threading.Event()
    timer = threading.Timer(0.05, until.set)
    timer.start()
    assert run_load(faulty.port, path="/ok", until=until).failures == {}
    timer.join()
    assert run_load(faulty.port, path="/ok", limit=0.05).total > 0
    with pytest.raises(AssertionError, match=r"not done within 0.05 s: ok"):
        run_load(faulty.port, path="/ok", requests=10**6, limit=0.05)
    with pytest.raises(AssertionError, match="not done within"):
        run_load(faulty.port, path="/ok", until=threading.Event(), limit=0.05)


def test_background_load_sees_the_server_go_and_come(tmp_path: Path) -> None:
    """Requests between two lives of a server are refused, and none before or after."""
    argv, port = script(tmp_path, FORKING), free_port()
    with run_server(argv, cwd=tmp_path, port=port), background_load(port, clients=1) as load:
        load.wait_ok(10)
        assert load.failures == {}
    with background_load(port, clients=2) as load:
        wait_until(lambda: load.failures.get("refused", 0) > 2)
        with run_server(argv, cwd=tmp_path, port=port):
            load.wait_ok(10)
            with pytest.raises(AssertionError, match="1000000 more good answers"):
                load.wait_ok(10**6, limit=0.01)


# What is left behind

PLANTED = """
import os, pathlib, signal, subprocess, sys, threading
import pytest

def test_clean_before(): pass

def test_process(): subprocess.Popen(["sleep", "60"])

def test_daemon():
    if os.fork():
        os.wait()
    else:
        os.setsid()
        if not os.fork():
            os.execvp("sleep", ["sleep", "60"])
        os._exit(0)

def test_clean_between(tmp_path):
    (tmp_path / "file").touch()
    thread = threading.Thread(target=subprocess.run, args=[["true"]])
    thread.start()

def test_thread(): threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_descriptor(): os.open("/dev/null", os.O_RDONLY)

def test_handler(): signal.signal(signal.SIGUSR1, lambda *_: None)

def test_mask(): signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

def test_file(): pathlib.Path(__file__).with_name("left.db").touch()

def test_clean_after(): pass

@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(["sleep", "60"])
    yield
    process.kill()
    process.wait()

def test_clean_with_wider_fixture(server): pass
"""

LEAKS = {
    "test_process": r"process \d+ \(state S, parent \d+\): sleep 60",
    "test_daemon": r"process \d+ \(state S, parent \d+\): sleep 60",
    "test_thread": r"thread \d+ <Thread\(Thread-\d+ \(wait\), started daemon",
    "test_descriptor": r"descriptor \d+: /dev/null",
    "test_handler": r"handler of SIGUSR1: <function",
    "test_mask": r"signal mask: .*SIGUSR2",
    "test_file": r"file \S+/tests/left.db",
}


# Seconds that a planted test has to end what it began: those that leak need not be waited for.
MOMENT = '0.02 if "clean" not in os.environ["PYTEST_CURRENT_TEST"] else 10'

# A pytest within pytest is to know nothing of it, and needs none of its plugins. Left to choose a
# directory for its tests, it would remove those of earlier sessions, which may take long.
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
ALONE = {"PYTEST_ADDOPTS": "", "PYTEST_XDIST_WORKER": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="pytest"),
        pytest.param(["-p", "xdist", "-n", "2", "--dist", "loadfile"], id="xdist"),
    ],
)
def test_fixture_fails_each_test_that_leaks(tmp_path: Path, options: list[str]) -> None:
    """Who leaves a process, thread, descriptor, handler or file is blamed, and nobody else."""
    if options:
        pytest.importorskip("xdist")
    patient, hasty = "nothing_left_behind(ROOT)", f"nothing_left_behind(ROOT, moment={MOMENT})"
    conftest = (TESTS / "conftest.py").read_text()
    assert patient in conftest
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text(conftest.replace(patient, hasty))
    (folder / "test_planted.py").write_text(PLANTED)
    argv = [*PYTEST, f"--basetemp={tmp_path}/base", "-rE", "tests", *options]
    with start_process(argv, cwd=tmp_path, env=ALONE) as process:
        assert process.wait_exit(15) == 1
    blamed = {
        line.partition("::")[2].split()[0]
        for line in process.output().splitlines()
        if line.startswith("ERROR ")
    }
    assert blamed == set(LEAKS), process.output()
    for name, pattern in LEAKS.items():
        assert re.search(pattern, process.output()), name
    assert "11 passed, 7 errors" in process.output()


@contextmanager
def complains(root: Path, pattern: str) -> Iterator[None]:
    """Expect a complaint."""
    with pytest.raises(AssertionError, match=pattern), nothing_left_behind(root, moment=0.1):
        yield


def test_leaking_process_is_killed(tmp_path: Path) -> None:
    """A process is gone after the complaint, so that the next test is not disturbed."""
    with complains(tmp_path, r"process \d+ .*: sleep 60"):
        process = subprocess.Popen(["sleep", "60"])
    assert not exists(process.pid)
    process.wait()


def test_orphans_that_have_ended_are_reaped(tmp_path: Path) -> None:
    """An orphan that ends after its parent is nobody's leak, and leaves no zombie."""
    with nothing_left_behind(tmp_path):
        orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.05 >&2 & echo $!"]))
    assert processes.process_info(orphan) is None


def test_leaking_thread_is_named(tmp_path: Path) -> None:
    """A thread is told by its name, or by its number when `threading` does not know it."""
    done = threading.Event()
    with complains(tmp_path, r"thread \d+ <Thread\(mine, started"):
        threading.Thread(target=done.wait, name="mine").start()
    with complains(tmp_path, r"thread \d+ $"):
        _thread.start_new_thread(done.wait, ())
    done.set()


def test_leaking_descriptor_is_named(tmp_path: Path) -> None:
    """A descriptor is told by what it is open on; one that only a cycle holds is no leak."""
    with complains(tmp_path, r"descriptor \d+: pipe:"):
        pipe = os.pipe()
    for each in pipe:
        os.close(each)
    with nothing_left_behind(tmp_path):
        Cycle(tmp_path)


class Cycle:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.itself = self

    def __del__(self) -> None:
        os.close(self.descriptor)


def handler(number: int, frame: FrameType | None) -> None:
    """Do nothing, but differently from the default."""


def test_changed_signals_are_put_back(tmp_path: Path) -> None:
    """A handler and a mask are told, and put back for the sake of the next test."""
    before = signal.getsignal(signal.SIGUSR1)
    with complains(tmp_path, r"(?s)handler of SIGUSR1: <function handler.*signal mask: .*SIGUSR2"):
        signal.signal(signal.SIGUSR1, handler)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_left_files_are_named(tmp_path: Path) -> None:
    """Files are told in the checkout itself and where programs run; sources and caches are not."""
    for name in ("docs", "examples/flask", "examples/flask/__pycache__", "tests/.cache"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("old.db", "examples/old.pid"):
        (tmp_path / name).touch()
    left = {"app.py", "dangling", "examples/app.sock", "examples/flask/items.db"}
    kept = {".coverage.1", "docs/new.db", "tests/test_new.py", "examples/flask/__pycache__/x.pyc"}
    checked = nothing_left_behind(tmp_path, moment=0.1)
    checked.__enter__()
    for name in left - {"dangling"} | kept | {"tests/.cache/x"}:
        (tmp_path / name).touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(AssertionError) as caught:
        checked.__exit__(None, None, None)
    assert set(re.findall(rf"file {tmp_path}/(\S+)", str(caught.value))) == left
    assert all((tmp_path / name).exists() for name in left - {"dangling"})


def test_what_is_just_ending_is_no_leak(tmp_path: Path) -> None:
    """A thread, and the file that it removes, get a moment to go."""
    path = tmp_path / "file"
    with nothing_left_behind(tmp_path):
        path.touch()
        threading.Timer(0.1, path.unlink).start()
