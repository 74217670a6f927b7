"""Django: one engine in each process that serves, none in the others."""

import fcntl
import os
import shutil
import signal
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from processes import (
    Process,
    Server,
    answers,
    assert_once,
    attempt,
    get,
    open_stream,
    publishes,
    run_server,
    start_process,
    start_request,
)
from servers.launch import CONFIG, GUNICORN, UVICORN, who_published

pytest.importorskip("django")

PROJECT = Path(__file__).parent / "djangoproject"
MANAGE = [sys.executable, "manage.py"]
RUNSERVER = [*MANAGE, "runserver", "127.0.0.1:{port}"]
STARTED = "signal started"
LIFE = (
    *("opened", "start", STARTED),
    *("drain", "signal draining", "stop", "closed", "signal stopped", "exit"),
)
WSGI, ASGI = "project.wsgi", "project.asgi:application"
RELOADS = 20

SERVERS = [
    pytest.param([*GUNICORN, *CONFIG, "-w", "2", WSGI], 2, 0, id="gunicorn-sync"),
    pytest.param(
        [*GUNICORN, *CONFIG, "-k", "gthread", "--preload", WSGI], 1, 0, id="gunicorn-preload"
    ),
    pytest.param([*UVICORN, ASGI], 1, -signal.SIGTERM, id="uvicorn"),
]
EVERY_SERVER = pytest.mark.parametrize(("command", "workers", "status"), SERVERS)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project, in which the test may do as it likes."""
    return Path(shutil.copytree(PROJECT, tmp_path / "project"))


def manage(project: Path, *args: str, status: int = 0, **env: str) -> Process:
    """Run a command of the project to its end; check its exit status."""
    with start_process([*MANAGE, *args], cwd=project, env=env) as process:
        assert process.wait_exit(15) == status, process.report("another exit status")
    return process


# -- servers -------------------------------------------------------------------------------------


@EVERY_SERVER
def test_each_worker_starts_drains_and_stops_once(
    command: list[str], workers: int, status: int, project: Path
) -> None:
    """All is open before the first request, and closed after the last, which is answered."""
    with run_server(command, cwd=project, ready=publishes(STARTED, workers)) as server:
        assert not who_published(server, "request"), "it has started by itself"
        assert get(server.port, "/state").body == b"ledger=open"
        held = start_request(server.port, "/held")
        server.wait_published("held")
        server.signal(signal.SIGTERM)
        server.wait_published("signal draining", workers)
        assert not held.done
        (project / "release").touch()
        assert held.result().ok
        assert server.wait_exit() == status
    assert_once(server, *LIFE, count=workers)
    (worker,) = who_published(server, "held")
    order = [c for c in server.published()[worker] if c in {"held", "released", "stop", "closed"}]
    assert order == ["held", "released", "stop", "closed"]


def test_failing_start_leaves_nothing_open(project: Path) -> None:
    """A start that fails ends the process; the listener's name and the traceback say why."""
    process = manage(project, "engine_run", status=1, PROJECT_FAILS="1")
    output = process.output()
    assert "shop.engine.connect failed on 'start'" in output
    assert "RuntimeError: the database is down" in output
    assert "Traceback" in output
    (seen,) = process.published().values()
    assert [c for c in seen if c in {"opened", "closed"}] == ["opened", "closed"]
    assert STARTED not in seen
    assert "signal stopped" not in seen, "it was not started"


def test_lazy_start_comes_with_the_first_request(project: Path) -> None:
    """Without our configuration gunicorn's worker starts with its first request."""
    with run_server([*GUNICORN, WSGI], cwd=project, ready=answers()) as server:
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, count=1)


def test_bare_application_is_told_of(project: Path) -> None:
    """Where `wsgi.py` still has Django's application, the first request's log says what to do."""
    path = project / "project" / "wsgi.py"
    path.write_text(path.read_text().replace("engine_bridge.frameworks.django", "django.core.wsgi"))
    with run_server([*GUNICORN, WSGI], cwd=project, ready=answers()) as server:
        server.wait_line("no engine runs here: .* from engine_bridge.frameworks.django$")
        get(server.port)
        server.signal(signal.SIGTERM)
        server.wait_exit()
    assert server.output().count("no engine runs here") == 1
    assert not who_published(server, "start")


# -- runserver -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signum", "to_group"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)],
    ids=["SIGTERM", "SIGINT", "Ctrl-C"],
)
def test_runserver_starts_in_the_child_only(signum: int, to_group: bool, project: Path) -> None:
    """The reloader's parent has no engine, and waits for the child's stop when told to go."""
    with run_server(RUNSERVER, cwd=project, ready=publishes(STARTED)) as server:
        assert not who_published(server, "request")
        held = start_request(server.port, "/held")
        server.wait_published("held")
        (server.signal_group if to_group else server.signal)(signum)
        server.wait_published("drain")
        (project / "release").touch()
        assert held.result().ok
        assert server.wait_exit() == 0
    (child,) = assert_once(server, *LIFE, pids=who_published(server, "start"), count=1)
    assert child != server.pid


def test_second_signal_kills_the_child(project: Path) -> None:
    """Who tells the reloader's parent twice does not wait for a request that never ends."""
    with run_server(RUNSERVER, cwd=project, ready=publishes(STARTED)) as server:
        held = start_request(server.port, "/held")
        server.wait_published("held")
        server.signal(signal.SIGTERM)
        server.wait_published("drain")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert not held.result().ok
    assert not who_published(server, "stop")


def test_stop_is_not_cut_off_by_another_signal(project: Path) -> None:
    """On Ctrl-C the child is told twice, by the terminal and by its parent; it stops in peace."""
    env = {"PROJECT_STOPS_SLOWLY": "1"}
    with run_server(RUNSERVER, cwd=project, env=env, ready=publishes(STARTED)) as server:
        server.signal_group(signal.SIGINT)
        child = server.wait_published("saving")[0].pid
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
        (project / "release").touch()
        server.wait_published("saved")
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=[child])


def change(server: Server, path: Path, times: int) -> None:
    """Have the reloader see *path* change, for the time number *times*."""
    stamp = path.stat().st_mtime_ns

    def seen() -> bool:
        # The reloader compares with its first look, of which nothing tells; so once more if it was
        # too early, but never after it has seen a change.
        nonlocal stamp
        if len(who_published(server, "file changed")) >= times:
            return True
        stamp += 10**9
        os.utime(path, ns=(stamp, stamp))
        try:
            server.wait_published("file changed", times, limit=0.3)
        except AssertionError:
            return False
        return True

    server.wait(seen, 10, f"change {times} is seen")


def check_reloads(project: Path, times: int) -> None:
    """Check that each of so many reloads ends one engine and starts one."""
    with run_server(RUNSERVER, cwd=project, ready=publishes(STARTED)) as server:
        for number in range(1, times + 1):
            change(server, project / "shop" / "views.py", number)
            server.wait_published(STARTED, number + 1)
        server.wait(lambda: attempt(server.port).ok, 5, "the last one serves")
        lives = [c for c in server.published().values() if "start" in c]
        assert len(lives) == times + 1
        assert [life.count("stop") for life in lives] == [1] * times + [0]
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert_once(server, *LIFE, pids=who_published(server, "start"), count=times + 1)


@pytest.mark.slow
@pytest.mark.timeout(200)  # half a second of CPU each time, on a machine that may be busy
def test_many_reloads_leave_one_engine(project: Path) -> None:
    """After 20 reloads one engine runs, and 20 have started and stopped."""
    check_reloads(project, RELOADS)


def test_stream_ends_on_reload(project: Path) -> None:
    """An open stream hears of the drain, and does not keep the child from reloading."""
    with run_server(RUNSERVER, cwd=project, ready=publishes(STARTED)) as server:
        with open_stream(server.port, "/events") as stream:
            stream.wait_first()
            change(server, project / "shop" / "views.py", 1)
            assert stream.wait_end().body.endswith(b"data: bye\n\n")
        server.wait_published(STARTED, 2)


def test_failing_start_waits_for_the_next_save(project: Path) -> None:
    """With the reloader requests get 503 until a save, or the next try, brings a start."""
    env = {"PROJECT_FAILS": "1"}
    with run_server(RUNSERVER, cwd=project, env=env, ready=publishes("closed")) as server:
        assert get(server.port).status == 503
        assert "RuntimeError: the database is down" in server.output()
        (project / "repaired").touch()
        change(server, project / "shop" / "views.py", 1)
        server.wait_published(STARTED)
        server.wait(lambda: attempt(server.port).ok, 5, "it serves")


def test_port_in_use_starts_nothing(project: Path) -> None:
    """Django ends the process at once if it cannot have the port; no engine has started by then."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = manage(project, "runserver", "--noreload", address, status=1)
    assert "That port is already in use" in process.output()
    assert not process.journal()


# -- commands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("migrate",),
        ("shell", "-c", "from project.asgi import application"),
        ("test",),
    ],
    ids=lambda args: args[0],
)
def test_commands_start_nothing(args: tuple[str, ...], project: Path) -> None:
    """No engine starts in a command, whatever it imports."""
    engine = '{"PLUGINS": {"SignalHandler": {}, "PIDFile": {"pidfile": "shop.pid"}}}'
    process = manage(project, *args, PROJECT_ENGINE=engine)
    assert not process.journal()
    assert not (project / "shop.pid").exists()


def test_own_command_runs_the_engine(project: Path) -> None:
    """A command of the project's own has the engine that the settings describe."""
    folder = project / "shop" / "management" / "commands"
    folder.mkdir(parents=True)
    source = """
        from django.core.management import BaseCommand
        from engine_bridge.frameworks.django import get_engine

        class Command(BaseCommand):
            def handle(self, **options):
                with get_engine() as engine:
                    print(open("shop.pid").read(), engine.drain_timeout)
    """
    (folder / "work.py").write_text(textwrap.dedent(source))
    engine = '{"ENGINE": {"drain_timeout": 7}, "PLUGINS": {"PIDFile": {"pidfile": "shop.pid"}}}'
    process = manage(project, "work", PROJECT_ENGINE=engine)
    assert process.output().split() == [str(process.pid), "7"]
    assert_once(process, *LIFE, count=1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_engine_run_blocks_until_told(signum: int, project: Path) -> None:
    """`engine_run` starts, runs what is on the engine, and leaves with 0 when it is told to go."""
    engine = '{"PLUGINS": {"PIDFile": {"pidfile": "shop.pid"}, "shop.engine.Clock": {"tick": 1}}}'
    command = [*MANAGE, "engine_run"]
    with start_process(command, cwd=project, env={"PROJECT_ENGINE": engine}) as process:
        process.wait_published(STARTED)
        process.wait_published("clock begins", 2)
        if signum == signal.SIGTERM:
            status = manage(project, "engine_status", PROJECT_ENGINE=engine).output()
            assert f"main process  {process.pid}\n" in status
        else:
            told = manage(project, "engine_graceful", PROJECT_ENGINE=engine).output()
            assert told == f"Told process {process.pid}.\n"
            process.wait_published("graceful")
        process.signal(signum)
        assert process.wait_exit() == 0
    assert_once(process, *LIFE, count=1)
    assert not (project / "shop.pid").exists()


def test_engine_run_may_be_told_at_once(project: Path) -> None:
    """Who is told to go while it starts undoes what has started, and leaves with 0."""
    with (project / "shop" / "engine.py").open("a") as file:
        wait = "record('waits'); engine.aborting.wait(10)"
        file.write(f"\n@engine.subscribe('start', priority=90)\ndef linger():\n    {wait}\n")
    with start_process([*MANAGE, "engine_run"], cwd=project) as process:
        process.wait_asleep("waits")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        assert "Traceback" not in process.output()
    assert_once(process, "opened", "start", "waits", "stop", "closed", "exit", count=1)


def test_engine_run_tells_of_a_bad_stop(project: Path) -> None:
    """A listener of the stop that fails makes the exit status 1; all others have run."""
    with (project / "shop" / "engine.py").open("a") as file:
        file.write('\n@engine.subscribe("stop", priority=1)\ndef spill():\n    1 / 0\n')
    with start_process([*MANAGE, "engine_run"], cwd=project) as process:
        process.wait_asleep(STARTED)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 1
    assert "shop.engine.spill failed on 'stop': ZeroDivisionError" in process.output()
    assert "CommandError: the engine did not stop well" in process.output()
    assert_once(process, *LIFE, count=1)


def test_engine_status_says_what_is_known(project: Path) -> None:
    """Status 3 is for one that does not run, 4 for one of which no PID file tells."""
    assert "unknown" in manage(project, "engine_status", status=4).output()
    process = manage(project, "engine_status", "--pidfile", "shop.pid", status=3)
    assert "not running" in process.output()
    (project / "shop.pid").mkdir()
    process = manage(project, "engine_graceful", "--pidfile", "shop.pid", status=1)
    assert "CommandError: " in process.output()


def test_engine_graceful_says_who_cannot_be_told(project: Path) -> None:
    """Status 3 and 4 are as those of `engine_status`; who would die of the signal is not told."""
    output = manage(project, "engine_graceful", status=4).output()
    assert "no PID file is known: give --pidfile" in output
    output = manage(project, "engine_graceful", "--pidfile", "shop.pid", status=3).output()
    assert "not running: nobody holds" in output
    with (project / "shop.pid").open("w") as file, start_process(["sleep", "60"]) as deaf:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{deaf.pid}\n")
        file.flush()
        output = manage(project, "engine_graceful", "--pidfile", "shop.pid", status=1).output()
        deaf.signal(signal.SIGTERM)
        deaf.wait_exit()
    assert "does not listen to SIGUSR1" in output


def test_engine_check_shows_what_would_run(project: Path) -> None:
    """Parameters, plugins and listeners are shown; what cannot work makes it exit with 1."""
    engine = '{"ENGINE": {"drain_timeout": 7}, "PLUGINS": {"Log": {}}}'
    process = manage(project, "engine_check", PROJECT_ENGINE=engine)
    assert not process.journal()
    output = process.output()
    assert "drain_timeout  7 s\n" in output
    assert "plugins\n  Log\n" in output
    assert "ledger.start\n" in output
    with (project / "shop" / "engine.py").open("a") as file:
        file.write('\nengine.subscribe("stop", lambda reason: None)\n')
    engine = '{"PLUGINS": {"PIDFile": {"pidfile": "missing/shop.pid"}}}'
    output = manage(project, "engine_check", status=1, PROJECT_ENGINE=engine).output()
    assert "cannot be called on 'stop'" in output
    assert "missing is no directory" in output


# -- settings ------------------------------------------------------------------------------------


def test_settings_are_checked(project: Path) -> None:
    """`manage.py check` tells what is wrong, with an id and a hint; servers say so and end."""
    env = {"PROJECT_ENGINE": '{"PLUGINS": {"PIDFle": {}}}'}
    output = manage(project, "check", status=1, **env).output()
    assert "(engine_bridge.E004) ENGINE_BRIDGE['PLUGINS']['PIDFle']" in output
    assert "HINT: did you mean 'PIDFile'?" in output
    with start_process([*GUNICORN[:-1], "127.0.0.1:0", WSGI], cwd=project, env=env) as process:
        assert process.wait_exit() == 3
    assert "SettingError: ENGINE_BRIDGE['PLUGINS']['PIDFle']" in process.output()


def test_plugins_are_turned_on_once(project: Path) -> None:
    """Plugins of the settings run with their options, several of a kind if there is a list."""
    engine = """{
        "INSTANCE": "engine_bridge.engine",
        "ENGINE": {"drain_timeout": 5},
        "PLUGINS": {
            "PIDFile": [{"pidfile": "one.pid"}, {"pidfile": "two.pid"}],
            "SignalHandler": {}
        }
    }"""
    env = {"PROJECT_ENGINE": engine}
    with run_server(RUNSERVER, cwd=project, env=env, ready=publishes(STARTED)) as server:
        (child,) = who_published(server, "start")
        assert (project / "one.pid").read_text() == (project / "two.pid").read_text()
        assert int((project / "one.pid").read_text()) == child
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    assert not (project / "one.pid").exists()
    assert "no handler for" not in server.output(), "they were set in the main thread"
    assert_once(server, *LIFE, pids=[child])


# -- the database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "count"),
    [
        pytest.param([*GUNICORN, *CONFIG, WSGI], 3, id="gunicorn"),
        pytest.param([*UVICORN, ASGI], 3, id="uvicorn"),
    ],
)
def test_background_code_uses_the_database(command: list[str], count: int, project: Path) -> None:
    """Listeners and callbacks ask the database, under ASGI too, and leave no connection open."""
    manage(project, "migrate", "--verbosity", "0")
    engine = '{"PLUGINS": {"shop.engine.Caller": {"callback": "shop.engine.count_sales"}}}'
    env = {"PROJECT_COUNTS": "1", "PROJECT_ENGINE": engine}
    with run_server(command, cwd=project, env=env, ready=publishes(STARTED)) as server:
        assert get(server.port, "/sale").body == b"1"
        server.signal(signal.SIGTERM)
        server.wait_exit()
    counted = [entry.facts["sales"] for entry in server.journal() if entry.channel == "counted"]
    assert counted == [0, 0, 1]
    (called,) = [entry.facts for entry in server.journal() if entry.channel == "called"]
    assert called == {"connected": False}


# -- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        pytest.param([*UVICORN, ASGI], "/async", id="uvicorn"),
        pytest.param(
            [*GUNICORN, *CONFIG, "-k", "gthread", "--threads", "4", WSGI], "", id="gunicorn-gthread"
        ),
    ],
)
def test_long_answers_hear_of_the_drain(command: list[str], suffix: str, project: Path) -> None:
    """Streams of events and long polls end at once, downloads are completed first."""
    with (
        run_server(command, cwd=project, ready=publishes(STARTED)) as server,
        open_stream(server.port, "/events" + suffix) as events,
    ):
        events.wait_first()
        poll = start_request(server.port, "/poll" + suffix)
        server.wait_published("polled")
        if not suffix:
            download = start_request(server.port, "/download")
            server.wait_published("half")
        server.signal(signal.SIGTERM)
        assert events.wait_end().body.endswith(b"data: bye\n\n")
        assert poll.result().body == b"draining"
        if not suffix:
            assert not download.done
            (project / "release").touch()
            assert download.result().body == b"first half second half"
        server.wait_exit()
    assert not who_published(server, "never")
    assert_once(server, *LIFE, count=1)


def test_unready_while_it_still_serves(project: Path) -> None:
    """During `drain_delay` readiness is 503, all else is answered; a second SIGTERM ends it."""
    env = {"PROJECT_ENGINE": '{"ENGINE": {"drain_delay": 60}}'}
    with run_server([*UVICORN, ASGI], cwd=project, env=env, ready=publishes(STARTED)) as server:
        assert get(server.port, "/readyz").status == 200
        server.signal(signal.SIGTERM)
        server.wait_published("signal draining")
        answer = get(server.port, "/readyz")
        assert (answer.status, answer.body) == (503, b"not ready")
        assert answer.headers["cache-control"] == "no-store"
        assert get(server.port, "/livez").status == 200
        assert get(server.port).ok
        server.signal(signal.SIGTERM)
        server.wait_exit()
    assert_once(server, *LIFE, count=1)


def test_drain_delay_under_runserver_is_warned_of(project: Path) -> None:
    """`runserver` cannot be held back: the engine says so at the start."""
    env = {"PROJECT_ENGINE": '{"ENGINE": {"drain_delay": 60}}'}
    with run_server(
        [*RUNSERVER, "--noreload"], cwd=project, env=env, ready=publishes(STARTED)
    ) as server:
        server.wait_line("drain_delay=60 has no effect under this server")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == -signal.SIGTERM
    assert_once(server, *LIFE, count=1)
