"""Each process of uvicorn's starts once and stops once, whatever happens to it."""

import signal
from pathlib import Path

import pytest
from processes import (
    accepts,
    assert_once,
    free_port,
    get,
    open_stream,
    publishes,
    run_server,
    send_signal,
    start_process,
    wait_gone,
)
from servers.launch import (
    ASGI,
    LIFE,
    UVICORN,
    WSGI,
    assert_answered_before_stop,
    fail_until_repaired,
    hold_request,
    release,
    stream_until_drain,
    wait_started,
    who_published,
)

pytest.importorskip("uvicorn")

STARLETTE = "servers.apps.starlette:app"
BARE = "servers.apps.bare:app"
STAYS = 3.0  # seconds that tell that a server does not leave

WORKERS = pytest.mark.parametrize("workers", [1, 2])
EVERY_APP = pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([ASGI], id="asgi"),
        pytest.param([STARLETTE], id="starlette"),
        pytest.param([ASGI, "--lifespan", "off"], id="lifespan-off"),
        pytest.param([WSGI, "--interface", "wsgi"], id="wsgi"),
    ],
)


def command(workers: int, arguments: list[str]) -> list[str]:
    """Return the command; a single process is no parent, as when the option is not there."""
    return [*UVICORN, "--workers", str(workers), *arguments]


def exit_code(workers: int) -> int:
    """Return how uvicorn leaves on SIGTERM: a single process sends the signal to itself again."""
    return -signal.SIGTERM if workers == 1 else 0


@WORKERS
@EVERY_APP
def test_each_process_starts_and_stops_once(
    workers: int, arguments: list[str], tmp_path: Path
) -> None:
    """On SIGTERM requests in flight are answered, each process stops once, the PID file goes."""
    path = tmp_path / "app.pid"
    env = {"APP_PIDFILE": str(path)}
    ready = publishes("started", workers) if arguments in ([ASGI], [STARLETTE]) else accepts
    with run_server(command(workers, arguments), cwd=tmp_path, env=env, ready=ready) as server:
        started = wait_started(server, workers)
        assert int(path.read_text()) == server.pid
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        server.wait_line("Shutting down|Finished server process|Waiting for")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == exit_code(workers)
    assert_once(server, *LIFE, pids=started, count=workers)
    assert who_published(server, "start") == started, "nobody else has started"
    assert_answered_before_stop(server)
    assert not path.exists()


@WORKERS
@EVERY_APP
def test_ctrl_c_stops_each_process_once(workers: int, arguments: list[str], tmp_path: Path) -> None:
    """Ctrl-C, which reaches all processes, stops each once; the request in flight is answered."""
    with run_server(command(workers, arguments), cwd=tmp_path) as server:
        started = wait_started(server, workers)
        held = hold_request(server)
        server.signal_group(signal.SIGINT)
        release(tmp_path)
        assert held.result().ok
        assert server.wait_exit() == 0
        assert "Traceback" not in server.output()
    assert_once(server, *LIFE, pids=started, count=workers)
    assert_answered_before_stop(server)


@EVERY_APP
def test_late_sigterm_finds_the_engine_stopped(arguments: list[str], tmp_path: Path) -> None:
    """The SIGTERM that follows a Ctrl-C may come when uvicorn has put SIG_DFL back already."""
    env = {"APP_TERM_AT_END": "yes"}
    with run_server(command(2, arguments), cwd=tmp_path, env=env) as server:
        started = wait_started(server, 2)
        server.signal_group(signal.SIGINT)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=started, count=2)


@WORKERS
@EVERY_APP
def test_drain_is_early(workers: int, arguments: list[str], tmp_path: Path) -> None:
    """The drain is published while the request in flight is still being worked on."""
    with run_server(command(workers, arguments), cwd=tmp_path) as server:
        wait_started(server, workers)
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        server.wait_published("drain", workers)
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        server.wait_exit()
    assert_once(server, *LIFE, count=workers)


def test_sighup_to_a_single_process_stops_it(tmp_path: Path) -> None:
    """SIGHUP, which kills a uvicorn without parent, stops the engine first; the status stays."""
    with run_server([*UVICORN, ASGI], cwd=tmp_path, ready=publishes("started")) as server:
        server.signal(signal.SIGHUP)
        assert server.wait_exit() == -signal.SIGHUP
    assert_once(server, *LIFE, count=1)


def test_sighup_rolls_the_workers(tmp_path: Path) -> None:
    """On SIGHUP the old workers stop once, answering what they have begun; new ones start once."""
    with run_server(command(2, [ASGI]), cwd=tmp_path, ready=publishes("started", 2)) as server:
        old = who_published(server, "start")
        held = hold_request(server)
        server.signal(signal.SIGHUP)
        release(tmp_path)
        assert held.result().ok
        server.wait_published("exit", 2)
        server.wait_published("started", 4)
        assert set(who_published(server, "exit")) == set(old)
        for pid in old:
            wait_gone(pid)
        assert get(server.port).ok
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=4)


def test_worker_told_to_go_stops_once(tmp_path: Path) -> None:
    """SIGTERM to one worker ends it in good order; another one takes its place."""
    with run_server(command(2, [ASGI]), cwd=tmp_path, ready=publishes("started", 2)) as server:
        held = hold_request(server)
        (worker,) = who_published(server, "held")
        send_signal(worker, signal.SIGTERM)
        server.wait_published("drain")
        release(tmp_path)
        assert held.result().ok
        server.wait_published("started", 3)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=3)


def test_recycled_process_stops_once(tmp_path: Path) -> None:
    """A process that has served `--limit-max-requests` stops once and leaves with status 0."""
    arguments = ["--limit-max-requests", "3", ASGI]
    with run_server([*UVICORN, *arguments], cwd=tmp_path, ready=publishes("started")) as server:
        for _ in range(3):
            assert get(server.port).ok
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


@pytest.mark.parametrize(("app", "workers"), [(ASGI, 1), (STARLETTE, 1), (ASGI, 2)])
def test_failing_start_ends_uvicorn(app: str, workers: int, tmp_path: Path) -> None:
    """A start that fails ends uvicorn with status 3, with workers with 0; the output tells why."""
    words = [str(word).replace("{port}", str(free_port())) for word in command(workers, [app])]
    env = {"APP_FAILS_UNTIL": "never"}
    with start_process(words, cwd=tmp_path, env=env) as process:
        # The status is uvicorn's choice. With workers it waits 5 s for an answer of one that died.
        assert process.wait_exit(15) == (3 if workers == 1 else 0)
        output = process.output()
    assert "Traceback" in output
    assert "RuntimeError: the database is down" in output
    assert not [e for e in process.journal() if e.channel == "start"]


def test_failing_lazy_start_answers_503(tmp_path: Path) -> None:
    """Without a lifespan requests get 503 and are told when to come back, until one succeeds."""
    assert fail_until_repaired([*UVICORN, ASGI, "--lifespan", "off"], tmp_path) == exit_code(1)


@WORKERS
def test_stream_ends_on_drain(workers: int, tmp_path: Path) -> None:
    """Streams of events end in good order on SIGTERM while the request in flight is answered."""
    status = stream_until_drain(command(workers, [ASGI]), tmp_path, workers)
    assert status == exit_code(workers)


def test_stream_without_engine_keeps_uvicorn(tmp_path: Path) -> None:
    """The same stream without an engine keeps the same uvicorn from ever leaving."""
    with (
        run_server([*UVICORN, BARE], cwd=tmp_path) as server,
        open_stream(server.port, "/events") as stream,
    ):
        stream.wait_first()
        server.signal(signal.SIGTERM)
        server.wait_line("Waiting for (connections|background)")
        with pytest.raises(AssertionError, match="still runs"):
            server.wait_exit(STAYS)
        assert not stream.done
        server.signal(signal.SIGKILL)
        server.wait_exit()


def test_deliberate_exit_answers_503(tmp_path: Path) -> None:
    """The request that asks for the exit is answered; those after it get 503."""
    with run_server([*UVICORN, ASGI], cwd=tmp_path, ready=publishes("started")) as server:
        answer = get(server.port, "/exit")
        assert (answer.status, answer.body) == (200, b"exited\n")
        answer = get(server.port)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
    assert_once(server, *LIFE, count=1)


def test_resource_is_the_state_of_requests(tmp_path: Path) -> None:
    """What a resource yields is in `request.state`, opened before and closed after all requests."""
    with run_server([*UVICORN, STARLETTE], cwd=tmp_path, ready=publishes("started")) as server:
        assert get(server.port, "/state").body == b"a connection"
        server.signal(signal.SIGTERM)
        server.wait_exit()
    (seen,) = server.published().values()
    assert seen == ["opened", "start", "started", "drain", "stop", "closed", "exit"]
