"""The Starlette example, served as its README and `make demo` say."""

import http.client
import json
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from processes import Server, answers, get, open_stream, run_server
from servers.launch import UVICORN

pytest.importorskip("uvicorn")

EXAMPLE = Path(__file__).parents[2] / "examples" / "starlette"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example, which may leave its database there."""
    shutil.copy(EXAMPLE / "app.py", tmp_path)
    return tmp_path


def say(server: Server, text: str) -> int:
    """Post a message; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", "/messages", text)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
def test_streams_end_when_told_to_go(folder: Path, signum: int, status: int) -> None:
    """Who watches hears each message; on SIGTERM and Ctrl-C all streams end and uvicorn leaves."""
    with (
        run_server([*UVICORN, "app:app"], cwd=folder, ready=answers()) as server,
        open_stream(server.port, "/events") as first,
        open_stream(server.port, "/events") as second,
    ):
        assert int((folder / "board.pid").read_text()) == server.pid
        first.wait_first()
        second.wait_first()
        assert say(server, "hello") == 201
        assert json.loads(get(server.port, "/messages").body) == ["hello"]
        server.signal(signum)
        for stream in (first, second):
            answer = stream.wait_end()
            assert answer.ok
            assert b"event: tick\n" in answer.body
            assert b"event: message\ndata: hello\n\n" in answer.body
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    assert not (folder / "board.pid").exists()
    database = sqlite3.connect(folder / "board.db")
    assert database.execute("SELECT text FROM messages").fetchall() == [("hello",)]
    database.close()


def test_two_workers_share_the_board(folder: Path) -> None:
    """With two workers the PID file names uvicorn's parent, and is gone when it has left."""
    with run_server([*UVICORN, "--workers", "2", "app:app"], cwd=folder, ready=answers()) as server:
        assert say(server, "hello") == 201
        assert int((folder / "board.pid").read_text()) == server.pid
        assert b"Board" in get(server.port).body
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert not (folder / "board.pid").exists()


def test_it_says_where_to_look(folder: Path) -> None:
    """Once it has started it tells the address on which uvicorn will listen, and how to leave."""
    with run_server([*UVICORN, "app:app"], cwd=folder, ready=answers()) as server:
        server.wait_line(rf"^    look    http://127\.0\.0\.1:{server.port}/$")
        server.wait_line(rf"^    follow  curl -N http://127\.0\.0\.1:{server.port}/events$")
        server.wait_line(r"^    leave   Ctrl-C$")
