"""The Flask example, served as its README says."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from processes import (
    Server,
    accepts,
    answers,
    attempt,
    get,
    open_stream,
    run_server,
    start_process,
)
from servers.launch import GUNICORN, WAITRESS
from snippets import command, serving

pytest.importorskip("flask")

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask"
TARGET = "https://www.python.org/"
FOLLOWED = 5
STATUS = {"flask": -signal.SIGTERM, "gunicorn": 0, "waitress-serve": 0}
FAILURES = {"flask": {1}, "gunicorn": {1, 3}}  # 1 where both workers fail at once
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

LINES = serving(EXAMPLE / "README.md")
EAGER = [line for line in LINES if line.split(maxsplit=1)[0] in FAILURES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example, which may leave its database there."""
    shutil.copy(EXAMPLE / "app.py", tmp_path)
    return tmp_path


def program(line: str) -> str:
    """Return the program that a command line runs."""
    return line.split(maxsplit=1)[0]


def shorten(server: Server, url: str) -> tuple[int, str]:
    """Have *url* shortened; return the status and the path of the short one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("POST", "/", urlencode({"url": url}), FORM)
        answer = connection.getresponse()
        return answer.status, urlsplit(answer.read().decode().strip()).path
    finally:
        connection.close()


def follow(server: Server, path: str) -> None:
    """Follow a link some times."""
    for _ in range(FOLLOWED):
        answer = get(server.port, path)
        assert (answer.status, answer.headers["location"]) == (302, TARGET)


def saved(folder: Path) -> list[tuple[str, int]]:
    """Return what the database knows."""
    with contextlib.closing(sqlite3.connect(folder / "links.db")) as database:
        return database.execute("SELECT url, hits FROM links").fetchall()


def status_of(folder: Path) -> str:
    """Return what `flask engine status` prints."""
    done = subprocess.run(
        command("flask engine status"), cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_readme_names_servers() -> None:
    """The tests below run the three servers that the README names."""
    assert [program(line) for line in LINES] == list(STATUS)


@pytest.mark.parametrize("line", LINES, ids=program)
def test_no_hit_is_lost_on_sigterm(line: str, folder: Path) -> None:
    """Hits are shown as they come; on SIGTERM the last ones are saved, and the stream ends."""
    with (
        run_server(command(line), cwd=folder, ready=answers()) as server,
        open_stream(server.port, "/events") as stream,
    ):
        stream.wait_first()
        status, path = shorten(server, TARGET)
        code = path.strip("/")
        assert status == 201
        assert int((folder / "links.pid").read_text()) == server.pid
        assert f"main process  {server.pid}\n" in status_of(folder)
        assert get(server.port, "/-/readyz").ok
        follow(server, path)
        shown = f"data: {code} {FOLLOWED}\n\n".encode()
        server.wait(lambda: shown in b"".join(stream.pieces), 10, "the Monitor saves hits")
        assert code.encode() in get(server.port).body
        follow(server, path)
        os.kill(int((folder / "links.pid").read_text()), signal.SIGTERM)
        assert stream.wait_end().ok
        assert server.wait_exit() == STATUS[program(line)]
        assert "Traceback" not in server.output()
    assert not (folder / "links.pid").exists()
    assert saved(folder) == [(TARGET, 2 * FOLLOWED)]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([*GUNICORN, "-w", "2", "app:app"], id="gunicorn-sync-plain"),
        pytest.param([*WAITRESS, "app:app"], id="waitress"),
    ],
)
def test_no_hit_is_lost_without_configuration(words: list[str], folder: Path) -> None:
    """The same where the engine starts with the first request, in workers with one thread too."""
    with run_server(words, cwd=folder, ready=accepts) as server:
        _, path = shorten(server, TARGET)
        follow(server, path)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert not (folder / "links.pid").exists()
    assert saved(folder) == [(TARGET, FOLLOWED)]


@contextlib.contextmanager
def half_a_form(server: Server) -> Iterator[http.client.HTTPConnection]:
    """Send a request but for its last byte, so that it is in flight until that follows."""
    form = urlencode({"url": TARGET}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("POST", "/", form[:-1], {**FORM, "Content-Length": str(len(form))})
    try:
        yield connection
    finally:
        connection.close()


def in_flight(server: Server) -> int:
    """Return how many requests are in flight, this one included, and no earlier one of ours."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /-/readyz?verbose HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server hangs up
    count: int = json.loads(answer.partition(b"\r\n\r\n")[2])["engine"]["in_flight"]
    return count


def test_unready_while_it_still_answers(folder: Path) -> None:
    """While `flask run` waits for a request, new ones are answered, and readiness is 503."""
    [line] = [line for line in LINES if program(line) == "flask"]
    env = {"LINKS_VERBOSE": "true"}

    with (
        run_server(command(line), cwd=folder, env=env, ready=accepts) as server,
        half_a_form(server) as posting,
    ):
        server.wait(lambda: in_flight(server) == 2, 5, "the view reads the form")
        server.signal(signal.SIGTERM)
        server.wait(lambda: attempt(server.port, "/-/readyz").status == 503, 5, "it is unready")
        assert get(server.port, "/-/livez").ok
        assert get(server.port).ok
        posting.send(urlencode({"url": TARGET}).encode()[-1:])
        assert posting.getresponse().status == 201
        assert server.wait_exit() == STATUS["flask"]
    assert saved(folder) == [(TARGET, 0)]


def test_what_is_no_address_is_refused(folder: Path) -> None:
    """Only http and https addresses are shortened; unknown links are not found."""
    with run_server([*WAITRESS, "app:app"], cwd=folder) as server:
        assert shorten(server, "javascript:alert(1)")[0] == 400
        assert get(server.port, "/unknown").status == 404


@pytest.mark.parametrize("line", EAGER, ids=program)
def test_unusable_database_ends_the_server(line: str, folder: Path) -> None:
    """A database that cannot be opened ends the server with its traceback and its status."""
    env = {"LINKS_DATABASE": str(folder / "missing" / "links.db")}
    words = [word.replace("{port}", "0") for word in command(line)]
    with start_process(words, cwd=folder, env=env) as process:
        assert process.wait_exit() in FAILURES[program(line)]
    assert "unable to open database file" in process.output()
    assert "Traceback" in process.output()
    assert not (folder / "links.pid").exists()
