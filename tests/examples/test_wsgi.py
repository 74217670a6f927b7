"""The example without a framework, served as its README says."""

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
from pathlib import Path
from urllib.parse import urlencode

import pytest
from processes import (
    Server,
    assert_once,
    attempt,
    get,
    run_server,
    start_process,
    start_request,
    wait_asleep,
)
from servers.launch import LIFE
from snippets import command, serving

EXAMPLE = Path(__file__).parents[2] / "examples" / "wsgi"
LINES = serving(EXAMPLE / "README.md")
NEEDS = {
    "app.py": "wsgiref",
    "waitress-serve": "waitress",
    "gunicorn": "gunicorn",
    "cheroot": "cheroot",
}
UNWOUND = 128 + signal.SIGTERM
STATUS = {
    "app.py": {0, UNWOUND},
    "cheroot": {UNWOUND},
}  # the script's where it is not yet in `block`
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

# Put in front of the example: what the tests wait for.
TELLING = f"""
from functools import partial
from journal import record
from servers.apps.lifecycle import note_started
from engine_bridge import engine
for channel in {(*LIFE, "before_request")}:
    engine.subscribe(channel, partial(record, channel))
engine.observe(note_started, everything=False)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example that tells the journal what happens."""
    (tmp_path / "app.py").write_text(TELLING + (EXAMPLE / "app.py").read_text())
    return tmp_path


def name(line: str) -> str:
    """Return how the server of a command line is called in these tests."""
    return next(word for word in line.split() if word in NEEDS)


def is_ready(server: Server) -> bool:
    """Say whether it is ready; the question starts the engine, where that waits for a request."""
    return attempt(server.port, "/-/readyz").ok


def write(server: Server, text: str) -> int:
    """Post an entry; return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", "/", urlencode({"text": text}), FORM)
        return connection.getresponse().status
    finally:
        connection.close()


def entries(folder: Path) -> list[str]:
    """Return the texts that the database knows."""
    with contextlib.closing(sqlite3.connect(folder / "book.db")) as database:
        return [text for (text,) in database.execute("SELECT text FROM entries ORDER BY number")]


def test_readme_names_servers() -> None:
    """The tests below run all servers that the README names."""
    assert [name(line) for line in LINES] == list(NEEDS)


@pytest.mark.parametrize("line", LINES, ids=name)
def test_long_poll_ends_when_told_to_go(line: str, folder: Path) -> None:
    """Who waits is told of new entries, and on SIGTERM that there are none; the server leaves."""
    pytest.importorskip(NEEDS[name(line)])
    workers = 2 if "-w 2" in line else 1
    with run_server(command(line), cwd=folder, ready=is_ready) as server:
        news = start_request(server.port, "/news")
        server.wait_published("before_request")
        server.wait_published("started", workers)  # one that is told to go before need not start
        assert write(server, "<hello>") == 303
        assert json.loads(news.result().body) == [[1, "<hello>"]]
        assert b"<li>&lt;hello&gt;" in get(server.port).body
        pid = int((folder / "book.pid").read_text())
        assert pid == server.pid
        waiting = start_request(server.port, "/news?after=1")
        server.wait_published("before_request", 4)
        assert not waiting.done
        os.kill(pid, signal.SIGTERM)
        assert waiting.result().status == 204
        assert server.wait_exit() in STATUS.get(name(line), {0})
        assert "Traceback" not in server.output()
    assert_once(server, *LIFE, count=workers)
    assert not (folder / "book.pid").exists()
    assert entries(folder) == ["<hello>"]


def test_old_entries_are_forgotten(folder: Path) -> None:
    """The Monitor keeps so many entries as it is told."""
    line, *_ = LINES
    with run_server(command(line), cwd=folder, env={"BOOK_KEEP": "2"}, ready=is_ready) as server:
        for text in ("one", "two", "three"):
            assert write(server, text) == 303
        server.wait(lambda: b"one" not in get(server.port).body, 10, "the Monitor tidies")
    assert entries(folder) == ["two", "three"]


def test_unready_while_it_still_serves(folder: Path) -> None:
    """For `BOOK_DRAIN_DELAY` the script goes on serving, unready; a second SIGTERM ends that."""
    line, *_ = LINES
    env = {"BOOK_DRAIN_DELAY": "60"}
    with run_server(command(line), cwd=folder, env=env, ready=is_ready) as server:
        wait_asleep(server.pid)  # in `block`
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        assert get(server.port, "/-/readyz").status == 503
        assert get(server.port, "/-/livez").ok
        assert write(server, "late") == 303
        server.signal(signal.SIGTERM)
        assert server.wait_exit() in STATUS[name(line)]
        assert "Traceback" not in server.output()
    assert_once(server, *LIFE, count=1)
    assert entries(folder) == ["late"]


def test_port_that_is_taken_undoes_the_start(folder: Path) -> None:
    """Where the script cannot have its port it says so, and leaves nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [word.replace("{port}", port) for word in command(LINES[0])]
        with start_process(words, cwd=folder) as process:
            assert process.wait_exit() == 1
    assert "Address already in use" in process.output()
    assert not (folder / "book.pid").exists()


def test_what_makes_no_sense_is_refused(folder: Path) -> None:
    """Nothing is written without a text, and there are no other pages."""
    with run_server(command(LINES[0]), cwd=folder, ready=is_ready) as server:
        assert get(server.port, "/unknown").status == 404
        assert get(server.port, "/news?after=now").status == 400
        assert write(server, "") == 400
    assert entries(folder) == []
