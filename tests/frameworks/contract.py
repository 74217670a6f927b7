"""What holds for each framework of the generic adapters, as steps that their tests share."""

import os
import re
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from loadclient import HOST
from processes import (
    Process,
    Ready,
    Server,
    accepts,
    answers,
    free_port,
    get,
    open_stream,
    publishes,
    run_server,
    start_process,
)
from servers.launch import CONFIG, GUNICORN, hold_request, release, who_published

connect = pytest.importorskip("websockets.sync.client").connect

GUNICORN_WSGI = [*GUNICORN, *CONFIG, "--threads", "8"]
GUNICORN_ASGI = [*GUNICORN, *CONFIG, "-k", "uvicorn_worker.UvicornWorker"]
STREAMS = ("/events", "/silence")
LIFE = ["opened", "start", "drain", "stop", "closed", "exit"]
LOOKS = 100  # between two saves: one that comes while the child stops is another reload
RESTARTING = 1012  # the code with which a WebSocket is closed
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "frameworks.md"

STARTED = publishes("started")
ASKED = answers()
TERM, INT = signal.SIGTERM, signal.SIGINT

Tell = Callable[[Process], object]


def term(process: Process) -> None:
    """Send the process that was launched SIGTERM."""
    process.signal(signal.SIGTERM)


def ctrl_c(process: Process) -> None:
    """Send all processes SIGINT, as a terminal does."""
    process.signal_group(signal.SIGINT)


def live_once(
    command: Sequence[str],
    folder: Path,
    *,
    ready: Ready = STARTED,
    status: int = 0,
    streams: Collection[str] = STREAMS,
    talks: bool = False,
    own: bool = False,
) -> None:
    """
    Check that a process lives once, around all of its requests, when it is told to go by SIGTERM.

    Streams and WebSockets end with the drain; a request in flight is answered.

    Args:
        command: What serves one of the applications for these tests.
        folder: The working directory.
        ready: `STARTED` where the engine starts before the first request, else `ASKED`.
        status: The exit status.
        streams: Streams to hold open.
        talks: Whether to hold a WebSocket open as well.
        own: Whether the application opens and closes something by a lifespan of its own.
    """
    with (
        run_server(command, cwd=folder, ready=ready) as server,
        held_open(server, streams, talks) as check_end,
    ):
        assert bool(who_published(server, "request")) == (ready is ASKED)
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        check_end()
        assert not held.done
        release(folder)
        assert held.result().ok
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    (seen,) = server.published().values()
    begin, end = (["serving"], ["served"]) if own else ([], [])
    begin, end = ["opened", "start", "started", *begin], [*end, "stop", "closed", "exit"]
    life = [channel for channel in seen if channel != "request"]
    assert life == [*begin, "held", "drain", "released", *end]


@contextmanager
def held_open(
    server: Server, streams: Collection[str], talks: bool
) -> Iterator[Callable[[], None]]:
    """Hold streams, and a WebSocket if it *talks*, open; yield what checks that all end well."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_stream(server.port, path)) for path in streams]
        for stream in opened:
            stream.wait_first()
        url = f"ws://{HOST}:{server.port}/talk"
        sockets = [stack.enter_context(connect(url))] if talks else []
        for each in sockets:
            each.send("hello")
            assert each.recv(5) == "hello"

        def check_end() -> None:
            for stream in opened:
                assert stream.wait_end().ok
            for each in sockets:
                with pytest.raises(Exception, match=str(RESTARTING)):
                    each.recv(5)

        yield check_end


def fail(command: Sequence[str], folder: Path, status: int) -> None:
    """Check that a failing start ends the server, is told, and leaves nothing half open."""
    words = [str(word).replace("{port}", str(free_port())) for word in command]
    with start_process(words, cwd=folder, env={"APP_FAILS_UNTIL": "never"}) as process:
        assert process.wait_exit(15) == status
    (seen,) = process.published().values()
    assert seen == ["opened", "failed", "stop", "closed", "exit"]
    _tells_of_failure(process)


def fail_until_repaired(command: Sequence[str], folder: Path) -> None:
    """Check that requests get 503 until a start succeeds, where nothing starts the engine early."""
    with run_server(command, cwd=folder, env={"APP_FAILS_UNTIL": "repaired"}) as server:
        answer = get(server.port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        _tells_of_failure(server)
        (folder / "repaired").touch()
        server.wait(lambda: get(server.port).ok, 10, "the start is tried again")
        server.signal(signal.SIGTERM)
        server.wait_exit()
    (seen,) = server.published().values()
    rolled_back = ["opened", "failed", "stop", "closed"]
    life = [channel for channel in seen if channel in {*LIFE, "failed"}]
    assert life == [*rolled_back, *LIFE]


def _tells_of_failure(process: Process) -> None:
    output = process.output()
    assert "fail_if_asked_to failed on 'start': RuntimeError: the database is down" in output
    assert "Traceback" in output
    assert "in fail_if_asked_to" in output


def reload(
    command: Sequence[str], folder: Path, text: str, tell: Tell = term, status: int = 0
) -> Server:
    """
    Check that a save ends one engine and begins another, and that *tell* ends that one.

    Args:
        command: What serves `app.py` and has a reloader.
        folder: The working directory.
        text: What `app.py` is to be.
        tell: How it is told to go.
        status: The exit status.
    """
    path = folder / "app.py"
    path.write_text(text)
    env = {"TMPDIR": str(folder)}
    with run_server(command, cwd=folder, env=env, limit=30) as server:
        wait_serving(server)
        save_until_noticed(server, path)
        wait_serving(server)
        tell(server)
        assert server.wait_exit() == status, server.report()
        wait_ended(server)
    assert_one_life_at_a_time(server)
    return server


def wait_serving(server: Server) -> None:
    """Wait until a process that has not ended its engine answers."""

    def serves() -> bool:
        return _answers_to_the_end(server) and len(who_published(server, "start")) > ended(server)

    server.wait(serves, 15, "it answers")


def _answers_to_the_end(server: Server) -> bool:
    """Ask, and wait for the connection's end: until then wsgiref swallows KeyboardInterrupt."""
    try:
        with socket.create_connection((HOST, server.port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(partial(connection.recv, 4096), b""))
    except OSError:
        return False
    return b" 200 " in answer.partition(b"\r\n")[0]


def ended(server: Server) -> int:
    """Return the number of lives that are over."""
    return len(who_published(server, "exit"))


def wait_ended(server: Server) -> None:
    """Wait until all lives are over: a child may leave after its parent."""
    started = len(who_published(server, "start"))
    server.wait(lambda: ended(server) == started, 15, "the last engine exits")


def save_until_noticed(server: Server, path: Path) -> None:
    """Change *path* until the reloader has told its child to go; it does not say when it looks."""
    before = ended(server)
    looks = count()

    def noticed() -> bool:
        if ended(server) > before:
            return True
        if next(looks) % LOOKS == 0:
            changed = path.stat().st_mtime + 10
            os.utime(path, (changed, changed))
        return False

    server.wait(noticed, 15, "the reloader sees the change")


def assert_one_life_at_a_time(server: Server) -> None:
    """Check that each life was complete before the next one began, and that there were several."""
    told = [(entry.pid, entry.channel) for entry in server.journal() if entry.channel in LIFE]
    starts = range(0, len(told), len(LIFE))
    assert len(starts) > 1, server.report("nothing was reloaded")
    for start in starts:
        life = told[start : start + len(LIFE)]
        assert [channel for _, channel in life] == LIFE, server.report()
        assert len({pid for pid, _ in life}) == 1, server.report("two engines at a time")


def program(heading: str) -> str:
    """Return the program of a section of the guide."""
    section = GUIDE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search("^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"no program under {heading}"
    return found[1]


def drain_program(
    heading: str, command: Sequence[str], folder: Path, *, status: int = 0, talks: bool = False
) -> None:
    """Check that a program of the guide answers, and that its stream and WebSocket end in time."""
    (folder / "app.py").write_text(program(heading))
    with (
        run_server(command, cwd=folder, ready=accepts) as server,
        held_open(server, ["/events"], talks) as check_end,
    ):
        assert get(server.port).body.startswith(b"SQLite 3.")
        server.signal(signal.SIGTERM)
        check_end()
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
