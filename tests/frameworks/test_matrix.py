"""Each framework under its development server and others: one start, one drain, one stop."""

import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import (
    Process,
    Ready,
    accepts,
    answers,
    assert_once,
    attempt,
    free_port,
    get,
    open_stream,
    publishes,
    run_server,
    start_process,
)
from servers.launch import (
    CONFIG,
    DAPHNE,
    GUNICORN,
    HYPERCORN,
    UVICORN,
    WAITRESS,
    hold_request,
    release,
)

APPS = "frameworks.apps"
ENV = {"DJANGO_SETTINGS_MODULE": f"{APPS}.djangosite.settings"}
PYTHON = sys.executable
FASTAPI_DEV = [PYTHON, "-m", "fastapi", "dev", "--port", "{port}", "-e"]
FLASK_RUN = [PYTHON, "-m", "flask", "--app", f"{APPS}.flask", "run", "--port", "{port}"]
RUNSERVER = [PYTHON, "-m", "django", "runserver", "127.0.0.1:{port}"]
RUN_SIMPLE = f"from {APPS}.wsgi import app; run_simple('127.0.0.1', {{port}}, app)"
WSGIREF = f"from {APPS}.wsgi import app; make_server('127.0.0.1', {{port}}, app).serve_forever()"

KILLED = -signal.SIGTERM  # by the signal, once all is done
FAILURE = "Licence.start failed on 'start': RuntimeError: the licence has expired"
CULPRIT = 'raise RuntimeError("the licence has expired")'  # the last line but one of its traceback


class Cell(NamedTuple):
    """
    A framework under a server.

    Attributes:
        command: What runs it.
        status: The exit status on SIGTERM.
        failed: That of a start that fails; None where the server stays.
        traces: How often a failing start's traceback is told: in our log, and by servers that are
            told it as well.
        eager: Whether the engine starts before the first request.
        hears: Whether the application hears of the drain while a request is still worked on.
        answers: Whether that is answered.
        refuses: Whether requests get 503 where a start fails and the server stays.
    """

    command: list[str]
    status: int = 0
    failed: int | None = None
    traces: int = 1
    eager: bool = True
    hears: bool = True
    answers: bool = True
    refuses: bool = True


def gunicorn(*words: str) -> Cell:
    """Return the cell of an application under gunicorn."""
    return Cell([*GUNICORN, *CONFIG, *words], failed=3, traces=2)


def uvicorn(*words: str) -> Cell:
    """Return the cell of an application under uvicorn."""
    return Cell([*UVICORN, *words], KILLED, failed=3, traces=2)


def lazy(command: list[str], status: int = 0, *, answers: bool = True) -> Cell:
    """Return the cell of an application under a server that starts it with the first request."""
    return Cell(command, status, eager=False, answers=answers)


def waiting(command: list[str]) -> Cell:
    """Return that of one whose reloader waits for the next save, with nobody to answer."""
    return Cell(command, refuses=False, traces=2)


CELLS = {
    "flask-run": Cell(FLASK_RUN, KILLED, failed=1),
    "flask-run-debug": Cell([*FLASK_RUN, "--debug"]),
    "flask-gunicorn": gunicorn(f"{APPS}.flask:app"),
    "flask-waitress": lazy([*WAITRESS, f"{APPS}.flask:app"]),
    "django-runserver": Cell(RUNSERVER),
    "django-runserver-noreload": Cell([*RUNSERVER, "--noreload"], KILLED, failed=1),
    "django-gunicorn": gunicorn(f"{APPS}.djangosite.wsgi"),
    "django-uvicorn": uvicorn(f"{APPS}.djangosite.asgi:application"),
    "django-daphne": lazy([*DAPHNE, f"{APPS}.djangosite.asgi:application"]),
    "starlette-uvicorn": uvicorn(f"{APPS}.starlette:app"),
    "starlette-uvicorn-reload": waiting([*UVICORN, "--reload", f"{APPS}.starlette:app"]),
    "starlette-gunicorn": gunicorn("-k", "asgi", f"{APPS}.starlette:app"),
    "fastapi-dev": waiting([*FASTAPI_DEV, f"{APPS}.fastapi:app"]),
    "fastapi-uvicorn": uvicorn("--loop", "asyncio", f"{APPS}.fastapi:app"),
    "wsgi-werkzeug": lazy([PYTHON, "-c", f"from werkzeug import run_simple; {RUN_SIMPLE}"], KILLED),
    "wsgi-wsgiref": lazy(
        [PYTHON, "-c", f"from wsgiref.simple_server import make_server; {WSGIREF}"], KILLED
    ),
    "wsgi-gunicorn": gunicorn(f"{APPS}.wsgi:app"),
    "asgi-uvicorn": uvicorn(f"{APPS}.asgi:app"),
    # Its worker is not told by a signal; the status of one that fails it loses.
    "asgi-hypercorn": Cell([*HYPERCORN, f"{APPS}.asgi:app"], failed=0, traces=2, hears=False),
    "asgi-hypercorn-alone": Cell([*HYPERCORN, "-w", "0", f"{APPS}.asgi:app"], failed=1, traces=2),
    "asgi-daphne": lazy([*DAPHNE, f"{APPS}.asgi:app"]),
}


def cells(names: list[str]) -> pytest.MarkDecorator:
    """Have a test take each of the cells called *names*."""
    return pytest.mark.parametrize("cell", [CELLS[name] for name in names], ids=names)


@cells(list(CELLS))
def test_application_lives_once(cell: Cell, tmp_path: Path) -> None:
    """
    In the one process that serves, start, drain and stop come once, in this order.

    Its database is open, and its task runs, before the first request and after the last.
    """
    ready = publishes("started") if cell.eager else accepts
    with run_server(cell.command, cwd=tmp_path, env=ENV, ready=ready) as server:
        assert get(server.port).ok
        held = hold_request(server)
        server.signal(signal.SIGTERM)
        if cell.hears:
            server.wait_published("drain")
        assert not held.done
        release(tmp_path)
        assert held.result().ok == cell.answers
        assert server.wait_exit() == cell.status
        assert "Traceback" not in server.output(), server.report()
    (seen,) = server.published().values()
    during = ["drain", "released", "request"] if cell.hears else ["released", "request", "drain"]
    if not cell.answers:
        during = ["drain"]
    assert seen == [
        *("opened", "start", "started", "request", "held"),
        *during,
        *("stop", "closed", "exit"),
    ]
    running = [entry.facts["running"] for entry in server.journal() if "running" in entry.facts]
    assert running == [True] * (len(running) - 1) + [False]


@cells([name for name in CELLS if name.startswith(("wsgi", "asgi"))])
def test_client_that_goes_away_is_counted_no_more(cell: Cell, tmp_path: Path) -> None:
    """The application hears that its client has gone, and its request is in flight no longer."""
    with run_server(cell.command, cwd=tmp_path, ready=accepts) as server:
        with open_stream(server.port, "/ticks") as stream:
            stream.wait_first()
        server.wait_published("parted")
        server.wait(lambda: attempt(server.port).body.endswith(b" 1 in flight"), 10, "it is alone")
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == cell.status
    assert_once(server, "streams", "parted", "drain", "stop", "exit", count=1)


@cells([name for name, cell in CELLS.items() if cell.failed is not None])
def test_failing_start_ends_the_server(cell: Cell, tmp_path: Path) -> None:
    """A plugin that fails to start is named, with its traceback; what was open is closed."""
    command = [word.replace("{port}", str(free_port())) for word in cell.command]
    env = {**ENV, "APP_FAILS": "yes"}
    with start_process(command, cwd=tmp_path, env=env) as process:
        assert process.wait_exit(15) == cell.failed
    assert_failed(process, cell)


@cells([name for name, cell in CELLS.items() if cell.failed is None])
def test_failing_start_is_told_by_a_server_that_stays(cell: Cell, tmp_path: Path) -> None:
    """The same holds where it is tried again, with a later request or the next save."""
    env = {**ENV, "APP_FAILS": "yes"}
    ready: Ready = answers() if cell.refuses else lambda server: "exit" in str(server.journal())
    with run_server(cell.command, cwd=tmp_path, env=env, ready=ready) as server:
        if cell.refuses:
            answer = get(server.port)
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
        assert server.process.poll() is None
        server.signal(signal.SIGTERM)
        server.wait_exit()
    assert_failed(server, cell)


def assert_failed(process: Process, cell: Cell) -> None:
    """Check what a start told that has failed, perhaps more than once, and that all is closed."""
    (seen,) = process.published().values()
    times = seen.count("opened")
    assert seen == ["opened", "start", "stop", "closed"] * times + ["exit"]
    output = process.output()
    assert output.count(FAILURE) == times, process.report()
    assert output.count(CULPRIT) == times * cell.traces, process.report()
