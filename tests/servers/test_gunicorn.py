"""Each worker starts once and stops once, whatever gunicorn does with it."""

import signal
from pathlib import Path

import pytest
from processes import (
    answers,
    assert_once,
    free_port,
    get,
    publishes,
    run_server,
    send_signal,
    start_process,
    start_request,
    wait_gone,
)
from servers.launch import (
    ASGI,
    CONFIG,
    GUNICORN,
    LIFE,
    WSGI,
    assert_answered_before_stop,
    fail_until_repaired,
    hold_request,
    release,
    stream_until_drain,
    wait_started,
    who_published,
)

pytest.importorskip("gunicorn")

UVICORN_WORKER = "uvicorn_worker.UvicornWorker"
EVERY_CELL = pytest.mark.parametrize(
    "options",
    [
        pytest.param([*worker, *preload, *config], id="-".join([worker[1], *preload, *config[:1]]))
        for worker in (["-k", "sync"], ["-k", "gthread"])
        for preload in ([], ["--preload"])
        for config in ([], CONFIG)
    ],
)
EVERY_WORKER = pytest.mark.parametrize(
    ("kind", "app"),
    [
        ("sync", WSGI),
        ("gthread", WSGI),
        ("asgi", ASGI),
        pytest.param(UVICORN_WORKER, ASGI, id="uvicorn_worker"),
    ],
)


def need(kind: str) -> None:
    """Skip the test when the package is missing that brings a worker of *kind*."""
    if kind == UVICORN_WORKER:
        pytest.importorskip("uvicorn_worker")


def hears_signals(options: list[str]) -> bool:
    """
    Whether our handlers are in place, so that the drain is early; else it comes with the stop.

    Only the main thread can install them. A preloaded application is imported before gunicorn
    installs its own, and under gthread first requests are not the main thread's.
    """
    return "sync" in options or "--preload" not in options or "-c" in options


@EVERY_CELL
def test_each_worker_starts_and_stops_once(options: list[str], tmp_path: Path) -> None:
    """On SIGTERM requests in flight are answered, then each worker stops, once."""
    command = [*GUNICORN, "-w", "2", *options, WSGI]
    with run_server(command, cwd=tmp_path) as server:
        started = wait_started(server, 2)
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        if hears_signals(options):
            server.wait_published("drain", 2)
        else:
            server.wait_line("Handling signal: term")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=2)
    assert who_published(server, "start") == started, "nobody else has started"
    assert_answered_before_stop(server)


@EVERY_CELL
def test_pidfile_names_the_main_process(options: list[str], tmp_path: Path) -> None:
    """The PID file names gunicorn's main process while it runs, and is gone when it has left."""
    path = tmp_path / "app.pid"
    command = [*GUNICORN, "-w", "2", *options, WSGI]
    with run_server(command, cwd=tmp_path, env={"APP_PIDFILE": str(path)}) as server:
        wait_started(server, 2)
        assert int(path.read_text()) == server.pid
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert not path.exists()
    assert_once(server, *LIFE, pids=who_published(server, "start"), count=2)


def test_config_starts_before_the_first_request(tmp_path: Path) -> None:
    """With the config module the engines start in each worker, though nobody asks for anything."""
    command = [*GUNICORN, "-w", "2", *CONFIG, WSGI]
    with run_server(command, cwd=tmp_path, ready=publishes("started", 2)) as server:
        assert sorted(who_published(server, "start")) == server.workers()
        assert not who_published(server, "request")


def test_preloaded_main_process_hears_of_itself(tmp_path: Path) -> None:
    """With the config module a preloaded application hears of the main process's start and exit."""
    command = [*GUNICORN, "-w", "2", "--preload", *CONFIG, WSGI]
    with run_server(command, cwd=tmp_path, ready=publishes("started", 2)) as server:
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert server.published()[server.pid] == ["main_start", "main_exit"]


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["loads", "preloads"])
@pytest.mark.parametrize("config", [[], CONFIG], ids=["plain", "config"])
@pytest.mark.parametrize(
    ("kind", "app"),
    [("gthread", WSGI), ("asgi", ASGI), pytest.param(UVICORN_WORKER, ASGI, id="uvicorn_worker")],
)
def test_main_process_is_quicker_than_ctrl_c(
    kind: str, app: str, config: list[str], preload: list[str], tmp_path: Path
) -> None:
    """A worker that gets its SIGQUIT before the terminal's SIGINT answers what it has begun."""
    need(kind)
    command = [*GUNICORN, "-w", "1", "-k", kind, *config, *preload, app]
    with run_server(command, cwd=tmp_path, ready=answers()) as server:
        held = hold_request(server)
        (worker,) = who_published(server, "held")
        send_signal(worker, signal.SIGQUIT)
        server.wait_published("drain")
        send_signal(worker, signal.SIGINT)
        release(tmp_path)
        assert held.result().ok
        server.wait_published("exit")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=[worker])


@EVERY_WORKER
@pytest.mark.parametrize("config", [[], CONFIG], ids=["plain", "config"])
def test_ctrl_c_stops_each_worker_once(
    kind: str, app: str, config: list[str], tmp_path: Path
) -> None:
    """Ctrl-C, which reaches gunicorn and all of its workers, stops each of them once."""
    need(kind)
    command = [*GUNICORN, "-w", "2", "-k", kind, *config, app]
    with run_server(command, cwd=tmp_path) as server:
        started = wait_started(server, 2)
        server.signal_group(signal.SIGINT)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=2)


@EVERY_WORKER
def test_sigquit_stops_each_worker_once(kind: str, app: str, tmp_path: Path) -> None:
    """SIGQUIT, gunicorn's quick way out, stops each worker once, long before it would be killed."""
    need(kind)
    command = [*GUNICORN, "-w", "2", "-k", kind, *CONFIG, app]
    with run_server(command, cwd=tmp_path) as server:
        started = wait_started(server, 2)
        server.signal(signal.SIGQUIT)
        assert server.wait_exit(5) == 0
    assert_once(server, *LIFE, pids=started, count=2)


@EVERY_WORKER
def test_sighup_rolls_the_workers(kind: str, app: str, tmp_path: Path) -> None:
    """On SIGHUP new workers start once; old ones answer what they have begun and stop once."""
    need(kind)
    command = [*GUNICORN, "-w", "2", "-k", kind, *CONFIG, app]
    path = tmp_path / "app.pid"
    env = {"APP_PIDFILE": str(path)}
    with run_server(command, cwd=tmp_path, env=env, ready=publishes("started", 2)) as server:
        held = hold_request(server)
        old = who_published(server, "start")
        server.signal(signal.SIGHUP)
        server.wait_published("started", 4)
        server.wait_published("drain", 2)
        release(tmp_path)
        assert held.result().ok
        server.wait_published("exit", 2)
        assert set(who_published(server, "exit")) == set(old)
        for pid in old:
            wait_gone(pid)
        assert get(server.port).ok
        assert int(path.read_text()) == server.pid
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=4)
    assert not path.exists()


def test_recycled_worker_stops_once(tmp_path: Path) -> None:
    """A worker that has served `--max-requests` stops once, and its successor starts."""
    command = [*GUNICORN, "-w", "1", "-k", "gthread", "--max-requests", "3", *CONFIG, WSGI]
    with run_server(command, cwd=tmp_path, ready=publishes("started")) as server:
        for _ in range(3):
            assert get(server.port).ok
        server.wait_published("started", 2)
        server.wait_published("exit")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=2)


def test_worker_told_to_go_stops_once(tmp_path: Path) -> None:
    """SIGTERM to one worker ends it in good order; another one takes its place."""
    command = [*GUNICORN, "-w", "1", *CONFIG, WSGI]
    with run_server(command, cwd=tmp_path, ready=publishes("started")) as server:
        held = hold_request(server)
        (worker,) = server.workers()
        send_signal(worker, signal.SIGTERM)
        server.wait_published("drain")
        release(tmp_path)
        assert held.result().ok
        server.wait_published("started", 2)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=2)
    assert_answered_before_stop(server)


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["plain", "preload"])
def test_failing_start_ends_gunicorn(preload: list[str], tmp_path: Path) -> None:
    """With the config module starts that fail at once end gunicorn; the output tells why."""
    command = [str(word).replace("{port}", str(free_port())) for word in GUNICORN]
    command += ["-w", "4", *preload, *CONFIG, WSGI]
    env = {"APP_FAILS_UNTIL": "never"}
    with start_process(command, cwd=tmp_path, env=env) as process:
        assert process.wait_exit() == 3
        output = process.output()
    assert "Traceback" in output
    assert "RuntimeError: the database is down" in output
    assert not [e for e in process.journal() if e.channel == "start"]


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Without it requests get 503 and are told when to come back, until a start succeeds."""
    assert fail_until_repaired([*GUNICORN, "-w", "1", WSGI], tmp_path) == 0


def test_many_first_requests_start_once(tmp_path: Path) -> None:
    """64 threads that all bring the first request start the engine once; all are answered."""
    command = [
        *GUNICORN,
        "-w",
        "1",
        "-k",
        "gthread",
        "--threads",
        "64",
        "servers.apps.wsgi:counted",
    ]
    with run_server(command, cwd=tmp_path, env={"APP_START_WAITS": "go"}) as server:
        requests = [start_request(server.port) for _ in range(64)]
        server.wait_published("arrived", 64)
        (tmp_path / "go").touch()
        assert all(request.result().ok for request in requests)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


@pytest.mark.parametrize("kind", ["asgi", pytest.param(UVICORN_WORKER, id="uvicorn_worker")])
def test_stream_ends_on_drain(kind: str, tmp_path: Path) -> None:
    """Streams of events end in good order on SIGTERM while the request in flight is answered."""
    need(kind)
    assert stream_until_drain([*GUNICORN, "-w", "1", "-k", kind, ASGI], tmp_path, 1) == 0


@EVERY_WORKER
def test_deliberate_exit_answers_503(kind: str, app: str, tmp_path: Path) -> None:
    """The request that asks for the exit is answered; those after it get 503."""
    need(kind)
    command = [*GUNICORN, "-w", "1", "-k", kind, app]
    with run_server(command, cwd=tmp_path, ready=answers()) as server:
        answer = get(server.port, "/exit")
        assert (answer.status, answer.body) == (200, b"exited\n")
        answer = get(server.port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


EARLY = """
import os, signal
from pathlib import Path
from engine_bridge.servers.gunicorn import *

def post_fork(server, worker):
    if not Path("told").exists():
        Path("told").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_early_sigterm_reaches_a_worker(tmp_path: Path) -> None:
    """A worker that is told to go before it has handlers of its own leaves; another one comes."""
    (tmp_path / "gunicorn.conf.py").write_text(EARLY)
    with run_server([*GUNICORN, "-w", "1", WSGI], cwd=tmp_path, ready=answers()) as server:
        told = int((tmp_path / "told").read_text())
        wait_gone(told)
        server.wait(lambda: set(who_published(server, "started")) - {told}, 10, "another one")
        assert get(server.port).ok
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=set(who_published(server, "started")) - {told}, count=1)
    published = server.published().get(told, [])
    assert published.count("stop") == published.count("start")
