"""Bad input under a real server: one sentence that says what to do, and no trace."""

from pathlib import Path

import pytest
from processes import free_port, run_server, start_process
from servers.launch import ASGI, CONFIG, GUNICORN, UVICORN, WSGI

STARLETTE = "servers.apps.starlette:app"
COMMANDS = {
    "gunicorn": [*GUNICORN, "-w", "1", *CONFIG, WSGI],
    "gunicorn-asgi": [*GUNICORN, *CONFIG, "-k", "asgi", ASGI],
    "uvicorn": [*UVICORN, ASGI],
    "starlette": [*UVICORN, STARLETTE],
}


def refused(command: list[str], pidfile: Path, folder: Path) -> str:
    """Run a server whose start must fail; return its output."""
    words = [word.replace("{port}", str(free_port())) for word in command]
    with start_process(words, cwd=folder, env={"APP_PIDFILE": str(pidfile)}) as process:
        assert process.wait_exit() == 3
        return process.output()


@pytest.mark.parametrize("server", COMMANDS)
def test_pidfile_in_a_missing_directory_gets_a_sentence(server: str, tmp_path: Path) -> None:
    """The server ends with status 3; its output names the path."""
    pidfile = tmp_path / "missing" / "app.pid"
    output = refused(COMMANDS[server], pidfile, tmp_path)
    assert str(pidfile) in output
    if server != "starlette":  # which prints the trace of whatever a lifespan raises
        assert "Traceback" not in output


@pytest.mark.parametrize("server", COMMANDS)
def test_pidfile_of_a_living_engine_gets_a_sentence(server: str, tmp_path: Path) -> None:
    """A second server is refused, and told the process that holds the file."""
    pidfile = tmp_path / "app.pid"
    holder = [*UVICORN, ASGI]
    with run_server(holder, cwd=tmp_path, env={"APP_PIDFILE": str(pidfile)}) as first:
        output = refused(COMMANDS[server], pidfile, tmp_path)
        assert str(first.pid) in output
        assert str(pidfile) in output
        assert pidfile.read_text() == f"{first.pid}\n"
