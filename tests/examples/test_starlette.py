"""The Starlette example, served as its README and `make demo` say."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from processes import (
    Server,
    Stream,
    answers,
    get,
    open_stream,
    run_server,
    wait_until,
)
from servers.launch import UVICORN
from snippets import command, serving

pytest.importorskip("uvicorn")
connect = pytest.importorskip("websockets.sync.client").connect
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed

EXAMPLE = Path(__file__).parents[2] / "examples" / "starlette"
CODES = {"granian": "no close frame|1012"}  # it may hang up before we have closed
LINES = serving(EXAMPLE / "README.md")
STATUS = {
    "uvicorn": -signal.SIGTERM,
    "uvicorn --workers 2": 0,
    "hypercorn": 0,
    "granian": 0,
    "gunicorn": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example, which may leave its database there."""
    shutil.copy(EXAMPLE / "app.py", tmp_path)
    return tmp_path


def name(line: str) -> str:
    """Return how a command line is called in these tests."""
    program = line.split(maxsplit=1)[0]
    return f"{program} --workers 2" if "--workers 2" in line else program


def say(server: Server, text: str) -> int:
    """Post a message; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", "/messages", text)
        return connection.getresponse().status
    finally:
        connection.close()


def wait_told(stream: Stream, data: str) -> None:
    """Wait until who reads *stream* has been told a message."""
    event = f"event: message\n{data}\n".encode()
    wait_until(lambda: event in b"".join(stream.pieces), what=f"{data!r} is told")


def said(folder: Path) -> list[str]:
    """Return the messages that the database knows."""
    with contextlib.closing(sqlite3.connect(folder / "board.db")) as database:
        return [text for (text,) in database.execute("SELECT text FROM messages ORDER BY id")]


def test_readme_names_servers() -> None:
    """The tests below run all servers that the README names."""
    assert [name(line) for line in LINES] == list(STATUS)


@pytest.mark.parametrize("line", LINES, ids=name)
def test_streams_end_when_told_to_go(line: str, folder: Path) -> None:
    """On SIGTERM streams and WebSockets end, the server leaves, and all that was said is kept."""
    pytest.importorskip(line.split(maxsplit=1)[0])
    with (
        run_server(command(line), cwd=folder, ready=answers("/-/readyz")) as server,
        open_stream(server.port, "/events") as first,
        open_stream(server.port, "/events") as second,
        connect(f"ws://127.0.0.1:{server.port}/talk") as websocket,
    ):
        for stream in (first, second):
            assert stream.wait_first().startswith(b"event: tick\n"), "the Monitor runs"
        assert say(server, "hello") == 201
        websocket.send("hello yourself")
        assert websocket.recv(5) == "said"
        assert json.loads(get(server.port, "/messages").body) == ["hello", "hello yourself"]
        pid = int((folder / "board.pid").read_text())
        assert pid == server.pid
        os.kill(pid, signal.SIGTERM)
        assert first.wait_end().ok
        assert second.wait_end().ok
        with pytest.raises(ConnectionClosed, match=CODES.get(name(line), "1012")):
            websocket.recv(5)
        assert server.wait_exit() == STATUS[name(line)]
        assert "Traceback" not in server.output()
    assert not (folder / "board.pid").exists()
    assert said(folder) == ["hello", "hello yourself"]


def test_who_watches_hears_what_is_said(folder: Path) -> None:
    """All who watch hear each message, whichever way it came; Ctrl-C ends the streams as well."""
    with (
        run_server([*UVICORN, "app:app"], cwd=folder, ready=answers()) as server,
        open_stream(server.port, "/events") as first,
        open_stream(server.port, "/events") as second,
        connect(f"ws://127.0.0.1:{server.port}/talk") as websocket,
    ):
        first.wait_first()
        second.wait_first()
        assert say(server, "hello") == 201
        websocket.send("two\nlines")
        assert websocket.recv(5) == "said"
        for stream in (first, second):
            wait_told(stream, "data: hello\n")
            wait_told(stream, "data: two\ndata: lines\n")
        server.signal(signal.SIGINT)
        assert first.wait_end().ok
        assert second.wait_end().ok
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()
    assert not (folder / "board.pid").exists()


def test_unready_while_it_still_serves(folder: Path) -> None:
    """For `BOARD_DRAIN_DELAY` uvicorn goes on serving, unready; a second SIGTERM ends that."""
    env = {"BOARD_DRAIN_DELAY": "60"}
    with (
        run_server([*UVICORN, "app:app"], cwd=folder, env=env, ready=answers()) as server,
        open_stream(server.port, "/events") as stream,
    ):
        stream.wait_first()
        assert get(server.port, "/-/readyz").ok
        server.signal(signal.SIGTERM)
        assert stream.wait_end().ok
        assert get(server.port, "/-/readyz").status == 503
        assert get(server.port, "/-/livez").ok
        assert say(server, "late") == 201
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
    assert said(folder) == ["late"]
    assert not (folder / "board.pid").exists()


def test_it_says_where_to_look(folder: Path) -> None:
    """Once it has started it tells the address on which uvicorn will listen, and how to leave."""
    with run_server([*UVICORN, "app:app"], cwd=folder, ready=answers()) as server:
        address = f"http://127.0.0.1:{server.port}"
        server.wait_line(rf"^    look    {address}/$")
        server.wait_line(rf"^    follow  curl -N {address}/events$")
        server.wait_line(rf"^    probe   curl -i {address}/-/readyz$")
        server.wait_line(r"^    leave   Ctrl-C$")
