"""The Django example, served as its README says."""

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import pytest
from processes import answers, get, open_stream, run_script, run_server, start_process
from servers.launch import CONFIG, GUNICORN, UVICORN

pytest.importorskip("django")

EXAMPLE = Path(__file__).parents[2] / "examples" / "django"
RUNSERVER = [sys.executable, "manage.py", "runserver", "127.0.0.1:{port}"]
THREADED = [*GUNICORN, "-w", "2", "--threads", "8", *CONFIG, "project.wsgi"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the example."""
    files = ("*.db*", "*.pid", "__pycache__")  # of somebody who tries it
    return Path(
        shutil.copytree(EXAMPLE, tmp_path / "django", ignore=shutil.ignore_patterns(*files))
    )


@pytest.fixture
def migrated(folder: Path) -> Path:
    """Return a copy of the example with its database."""
    manage(folder, "migrate")
    return folder


def manage(folder: Path, *args: str) -> str:
    """Run a command of the project; return what it printed."""
    finished = run_script(folder / "manage.py", *args, cwd=folder)
    assert finished.returncode == 0, finished.process.report()
    return finished.stdout


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param(RUNSERVER, 0, id="runserver"),
        pytest.param(THREADED, 0, id="gunicorn"),
        pytest.param([*UVICORN, "project.asgi:application"], -signal.SIGTERM, id="uvicorn"),
    ],
)
def test_reminders_ring_until_told_to_go(command: list[str], status: int, migrated: Path) -> None:
    """Who watches hears what rings; on SIGTERM streams end and the server leaves."""
    with (
        run_server(command, cwd=migrated, ready=answers()) as server,
        open_stream(server.port, "/events") as stream,
    ):
        stream.wait_first()
        manage(migrated, "remind", "0", "Tea is ready")
        assert b"Tea is ready" in get(server.port).body
        server.wait(lambda: b"<td>rung" in get(server.port).body, 10, "it rings")
        pid = int((migrated / "reminders.pid").read_text())
        assert f"main process  {pid}\n" in manage(migrated, "engine_status")
        os.kill(pid, signal.SIGTERM)
        assert stream.wait_end().ok
        assert server.wait_exit() == status
        assert "Traceback" not in server.output()
    assert not (migrated / "reminders.pid").exists()
    database = sqlite3.connect(migrated / "reminders.db")
    ((rung,),) = database.execute("SELECT rung FROM reminders_reminder").fetchall()
    database.close()
    assert rung


def test_forgotten_migration_ends_the_server(folder: Path) -> None:
    """Without its table the start fails, and gunicorn with it."""
    words = [word.replace("{port}", "0") for word in THREADED]
    with start_process(words, cwd=folder) as process:
        assert process.wait_exit() in {1, 3}  # 1 where both workers fail at once
    assert "no such table: reminders_reminder" in process.output()
    assert not (folder / "reminders.pid").exists()


def test_periodic_task_runs_without_a_server(migrated: Path) -> None:
    """`engine_run` rings as well."""
    manage(migrated, "remind", "0", "Tea is ready")
    database = sqlite3.connect(migrated / "reminders.db", isolation_level=None)
    query = "SELECT count(*) FROM reminders_reminder WHERE rung IS NOT NULL"
    with start_process([sys.executable, "manage.py", "engine_run"], cwd=migrated) as process:
        process.wait(lambda: database.execute(query).fetchone() == (1,), 10, "it rings")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    database.close()
