"""What is known of the host, inside each server, and that a restart goes its way."""

import shutil
import signal
import sys
import textwrap
import threading
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest
from processes import (
    answers,
    assert_once,
    attempt,
    get,
    publishes,
    run_script,
    run_server,
    start_process,
    wait_gone,
)
from servers.launch import (
    ASGI,
    CONFIG,
    GRANIAN,
    GUNICORN,
    HYPERCORN,
    LIFE,
    UVICORN,
    WAITRESS,
    WSGI,
    wait_started,
    who_published,
)

from engine_bridge import Engine, EngineError
from engine_bridge.servers import SERVERS, current_host, load_server

CHEROOT = [sys.executable, "-m", "cheroot", "--bind", "127.0.0.1:{port}"]
DAPHNE = [sys.executable, "-m", "daphne", "--port", "{port}"]
ROLL = "SIGHUP to the main process, which replaces all workers"
ANEW = "leaves, and runs its command line anew in this process"


class Mode(NamedTuple):
    """A way to run a server, and what our code is to find there."""

    name: str
    words: list[str]
    app: str
    workers: int  # with a main process; 0: it serves alone
    drain: str
    delay: bool
    restart: str


MODES = [
    Mode("gunicorn-sync", [*GUNICORN, "-w", "2"], WSGI, 2, "early", False, ROLL),
    Mode(
        "gunicorn-gthread", [*GUNICORN, "-w", "1", "--threads", "2"], WSGI, 1, "early", False, ROLL
    ),
    Mode(
        "gunicorn-preload",
        [*GUNICORN, "-w", "2", "--preload", "--threads", "2", *CONFIG],
        WSGI,
        2,
        "early",
        False,
        ROLL,
    ),
    Mode("gunicorn-asgi", [*GUNICORN, "-w", "2", "-k", "asgi"], ASGI, 2, "early", False, ROLL),
    Mode(
        "gunicorn-uvicorn",
        [*GUNICORN, "-w", "1", "-k", "uvicorn_worker.UvicornWorker"],
        ASGI,
        1,
        "early",
        True,
        ROLL,
    ),
    Mode("uvicorn", UVICORN, ASGI, 0, "early", True, ANEW),
    Mode("uvicorn-workers", [*UVICORN, "--workers", "2"], ASGI, 2, "early", True, ROLL),
    Mode("uvicorn-wsgi", [*UVICORN, "--interface", "wsgi"], WSGI, 0, "early", False, ANEW),
    Mode("hypercorn-0", [*HYPERCORN, "-w", "0"], ASGI, 0, "early", False, ANEW),
    Mode("hypercorn", [*HYPERCORN, "-w", "2"], ASGI, 2, "early", False, ROLL),
    Mode("hypercorn-wsgi", [*HYPERCORN, "-w", "1"], WSGI, 1, "late", False, ROLL),
    Mode("granian", [*GRANIAN, "--interface", "asgi"], ASGI, 1, "early", False, ROLL),
    Mode("granian-wsgi", [*GRANIAN, "--interface", "wsgi"], WSGI, 1, "early", False, ROLL),
    Mode("waitress", WAITRESS, WSGI, 0, "early", False, ANEW),
    Mode("cheroot", CHEROOT, WSGI, 0, "early", False, ANEW),
    Mode("daphne", DAPHNE, ASGI, 0, "early", True, ANEW),
]

EVERY_MODE = pytest.mark.parametrize("mode", [pytest.param(mode, id=mode.name) for mode in MODES])


def facts(text: str) -> dict[str, str]:
    """Return what the probe says, by its names."""
    lines = (line.partition("  ") for line in text.splitlines())
    return {name.strip(): fact.strip() for name, _, fact in lines}


@EVERY_MODE
def test_probe_tells_the_host(mode: Mode, tmp_path: Path) -> None:
    """The built-in application says what serves it, and the truth about it."""
    app = f"engine_bridge.probe:{'wsgi' if mode.app == WSGI else 'asgi'}"
    words = [*mode.words, app]
    if mode.words[0:3] == GUNICORN[0:3]:
        words[words.index("-w") + 1] = "1"  # else one may still boot when the test ends
    with run_server(words, cwd=tmp_path, ready=answers()) as server:
        found = facts(get(server.port).body.decode())
        family = server.workers() if mode.workers else [server.pid]
        assert found["server"].split()[0] == mode.name.partition("-")[0]
        assert found["role"] == "worker"
        assert int(found["process"]) in family
        assert found["main process"].strip() == (str(server.pid) if mode.workers else "this one")
        assert found["drain"].partition(",")[0] == mode.drain
        assert found["drain_delay"] == ("kept" if mode.delay else "has no effect")
        assert found["restart"] == mode.restart


@EVERY_MODE
def test_restart_goes_the_way_of_the_server(mode: Mode, tmp_path: Path) -> None:
    """New processes serve, each with its own start; each old one has stopped once."""
    workers = max(mode.workers, 1)
    with run_server([*mode.words, mode.app], cwd=tmp_path) as server:
        old = wait_started(server, workers)
        assert get(server.port, "/restart").ok
        server.wait(lambda: len(who_published(server, "exit")) >= workers, 10, "the old exit")
        all_started = wait_started(server, 2 * workers)
        server.wait(lambda: attempt(server.port).ok, 10, "it serves")
        if mode.workers:
            assert len(set(all_started)) == 2 * workers
            for pid in old:
                wait_gone(pid)
        else:
            assert all_started == [server.pid] * 2
        server.signal(signal.SIGTERM)
        server.wait_exit()
    if mode.workers:
        assert_once(server, *LIFE, pids=all_started)
    else:
        lives = [channel for channel in server.published()[server.pid] if channel in LIFE]
        assert lives == [*LIFE, *LIFE], server.report()


PROJECT = Path(__file__).parents[1] / "frameworks" / "djangoproject"
FLASK = [sys.executable, "-m", "flask", "--app", "servers.apps.flask"]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        pytest.param([*FLASK, "run", "--port", "{port}"], 1, id="flask-run"),
        pytest.param([*FLASK, "--debug", "run", "--port", "{port}"], 2, id="flask-run-debug"),
        pytest.param(
            ["manage.py", "runserver", "{port}", "--noreload"], 1, id="runserver-noreload"
        ),
        pytest.param(["manage.py", "runserver", "{port}"], 2, id="runserver"),
    ],
)
def test_development_servers_restart_in_place(words: list[str], count: int, tmp_path: Path) -> None:
    """The process that serves runs its command line again, the reloader's parent stays."""
    folder = tmp_path / "project"
    shutil.copytree(PROJECT, folder)
    words = words if words[0] == sys.executable else [sys.executable, *words]
    with run_server(words, cwd=folder, ready=publishes("start")) as server:
        (pid,) = who_published(server, "start")
        server.wait(lambda: attempt(server.port).ok, 10, "it serves")
        assert get(server.port, "/restart").ok
        server.wait_published("start", 2)
        server.wait(lambda: attempt(server.port).ok, 10, "it serves again")
        assert [pid] * 2 == who_published(server, "start")
        assert len(server.family()) == count
        server.signal_group(signal.SIGINT)  # which the new program hears as the old one did
        assert server.wait_exit() == 0
    lives = [channel for channel in server.published()[pid] if channel in LIFE]
    assert lives == [*LIFE, *LIFE], server.report()


def test_workers_that_ask_together_make_one_roll(tmp_path: Path) -> None:
    """All workers ask at the same moment; each is replaced once. Later it is another."""
    words = [*UVICORN, "--workers", "3", "servers.apps.roll:app"]
    with run_server(words, cwd=tmp_path, ready=publishes("started", 3)) as server:
        (tmp_path / "ask").touch()
        server.wait_published("asked", 3)
        server.wait_published("exit", 3)
        server.wait_published("started", 6)
        (tmp_path / "ask again").touch()
        server.wait_published("exit", 6)
        server.wait_published("started", 9)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=9)


def test_restart_is_refused_by_uvicorn_with_reload(tmp_path: Path) -> None:
    """Its parent has no way but a saved file; the sentence says so, and nothing was stopped."""
    with run_server([*UVICORN, "--reload", ASGI], cwd=tmp_path, ready=answers()) as server:
        assert get(server.port, "/restart").status == 500
        server.wait_line(
            "RestartRefused: uvicorn --reload gives a new process when a file is saved"
        )
        assert get(server.port).ok
        assert not who_published(server, "stop")


def test_a_script_is_its_own_host() -> None:
    """Without a server the host is the script, also where one is installed."""
    host = current_host()
    assert (host.server, host.role, host.drain) == ("", "script", "early")
    assert host.owns_process
    assert host.keeps_drain_delay


def test_a_server_in_a_thread_of_a_script_cannot_be_restarted(tmp_path: Path) -> None:
    """The script owns the process, so the sentence sends there."""
    program = """
    import threading, time
    import waitress
    from servers.apps.wsgi import app
    server = waitress.create_server(app, listen="127.0.0.1:{port}")
    threading.Thread(target=server.run, daemon=True).start()
    threading.Event().wait()
    """
    with run_server(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, ready=answers()
    ) as server:
        assert get(server.port, "/restart").status == 500
        server.wait_line("RestartRefused: the server runs in a thread of a script")
        server.signal(signal.SIGKILL)
        server.wait_exit()


def test_a_start_looks_at_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not ask for the frames of all threads, which CPython 3.11 does not always survive."""
    pytest.importorskip("waitress.server")
    asked: list[int] = []
    look = sys._current_frames

    def note_and_look() -> dict[int, FrameType]:
        asked.append(1)
        return look()

    monkeypatch.setattr(sys, "_current_frames", note_and_look)
    engine = Engine()
    thread = threading.Thread(target=engine.start)
    thread.start()
    thread.join()
    engine.exit()
    assert engine.host is not None
    assert not asked


def test_unknown_server_is_named() -> None:
    """The sentence names all that are known."""
    with pytest.raises(
        EngineError, match=r"^no server 'apache'; known: cheroot, daphne, .*wsgiref$"
    ):
        load_server("apache")


def test_every_adapter_can_be_imported() -> None:
    """Without its server installed, too: nothing of it is imported with the adapter."""
    program = (
        "import sys\n"
        "from engine_bridge.servers import SERVERS, load_server\n"
        "for name in SERVERS: load_server(name)\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & SERVERS.keys() - {'wsgiref'}))"
    )
    assert run_script(program).stdout == "[]\n"
    assert len(SERVERS) == 12


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "none that we know"),
        (["gunicorn", "-k", "asgi", "--no-control-socket"], "gunicorn"),
        (["--wsgi", "hypercorn", "-w", "0"], "hypercorn"),
        (["waitress"], "waitress"),
    ],
)
def test_the_command_tells_the_host(words: list[str], found: str, tmp_path: Path) -> None:
    """`python -m engine_bridge host` prints the same from inside a server."""
    command = [sys.executable, "-m", "engine_bridge", "host", *words]
    with start_process(command, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
    lines = facts(process.output())
    assert lines["server"].startswith(found)
    assert lines["role"] == ("worker" if words else "script")


def test_the_command_passes_on_what_the_server_says(tmp_path: Path) -> None:
    """An option that the server does not know is told in the server's words."""
    command = [sys.executable, "-m", "engine_bridge", "host", "uvicorn", "--nonsense"]
    with start_process(command, cwd=tmp_path) as process:
        assert process.wait_exit() == 1
    assert process.output().startswith("Error: uvicorn did not answer; it said:\n")
    assert "--nonsense" in process.output()
