"""The Flask example, served as its README says."""

import http.client
import shutil
import signal
import sqlite3
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from processes import Server, get, run_server
from servers.launch import CONFIG, GUNICORN, WAITRESS

pytest.importorskip("flask")

EXAMPLE = Path(__file__).parents[2] / "examples" / "flask"
TARGET = "https://www.python.org/"
FOLLOWED = 5

EVERY_SERVER = pytest.mark.parametrize(
    "command",
    [
        pytest.param([*GUNICORN, "-w", "2", *CONFIG], id="gunicorn-sync"),
        pytest.param([*GUNICORN, "-w", "2", "-k", "gthread", *CONFIG], id="gunicorn-gthread"),
        pytest.param([*GUNICORN, "-w", "2"], id="gunicorn-plain"),
        pytest.param(WAITRESS, id="waitress"),
    ],
)


def shorten(server: Server, url: str) -> tuple[int, str]:
    """Have *url* shortened; return the status and the path of the short one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/", urlencode({"url": url}), form)
        answer = connection.getresponse()
        return answer.status, urlsplit(answer.read().decode().strip()).path
    finally:
        connection.close()


def copy_of(example: Path, folder: Path) -> Path:
    """Put the example where it may leave its database."""
    shutil.copy(example / "app.py", folder)
    return folder


@EVERY_SERVER
def test_no_hit_is_lost_on_sigterm(command: list[str], tmp_path: Path) -> None:
    """Hits that only the counting thread knows of are saved when the server is told to go."""
    folder = copy_of(EXAMPLE, tmp_path)
    with run_server([*command, "app:app"], cwd=folder) as server:
        status, path = shorten(server, TARGET)
        assert status == 201
        assert int((folder / "links.pid").read_text()) == server.pid
        for _ in range(FOLLOWED):
            answer = get(server.port, path)
            assert (answer.status, answer.headers["location"]) == (302, TARGET)
        assert path.strip("/").encode() in get(server.port).body
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()
    assert not (folder / "links.pid").exists()
    with sqlite3.connect(folder / "links.db") as database:
        assert database.execute("SELECT url, hits FROM links").fetchall() == [(TARGET, FOLLOWED)]
    database.close()


def test_what_is_no_address_is_refused(tmp_path: Path) -> None:
    """Only http and https addresses are shortened; unknown links are not found."""
    folder = copy_of(EXAMPLE, tmp_path)
    with run_server([*WAITRESS, "app:app"], cwd=folder) as server:
        assert shorten(server, "javascript:alert(1)")[0] == 400
        assert get(server.port, "/unknown").status == 404


def test_unusable_database_ends_gunicorn(tmp_path: Path) -> None:
    """A database that cannot be opened ends gunicorn with its traceback and status 3."""
    folder = copy_of(EXAMPLE, tmp_path)
    env = {"LINKS_DATABASE": str(tmp_path / "missing" / "links.db")}
    with (
        pytest.raises(AssertionError, match="unable to open database file") as caught,
        run_server([*GUNICORN, *CONFIG, "app:app"], cwd=folder, env=env, ready=lambda _: False),
    ):
        pass
    assert "exit code 3" in str(caught.value)
