"""
The commands `flask engine status | check | graceful`.

They run in a process of their own, beside the one that serves, which they know by its PID file.
An entry point brings them to `flask`, so that they can tell when the application cannot be loaded;
in `app.cli` they are for `app.test_cli_runner()`.

Source:
    Flask, "Command Line Interface", plugins: entry points of the group `flask.commands`.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps

import click
import flask
from flask.cli import AppGroup, ScriptInfo

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.frameworks import mainprocess, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

PIDFILE = "ENGINE_PIDFILE"
UNKNOWN_PIDFILE = f"no PID file is known, set app.config[{PIDFILE!r}]"


def _with_engine(command: "Callable[[], None]") -> "Callable[[], None]":
    """Have the application at hand while *command* runs; say why it cannot be."""

    @click.pass_context
    @wraps(command)
    def run(context: click.Context) -> None:
        if not flask.has_app_context():
            context.with_resource(_load(context).app_context())
        if not isinstance(flask.current_app.extensions.get("engine"), Engine):
            raise click.ClickException(
                f"the application {flask.current_app.name!r} has no engine; "
                "give it one: EngineBridge(app)"
            )
        command()

    return run


def _load(context: click.Context) -> flask.Flask:
    try:
        return context.ensure_object(ScriptInfo).load_app()
    except click.ClickException as exc:
        raise click.ClickException(exc.format_message()) from exc  # of exit status 1
    except Exception as exc:
        place = traceback.extract_tb(exc.__traceback__)[-1]
        raise click.ClickException(
            f"the application cannot be loaded: {type(exc).__name__}: {exc} "
            f"({place.filename}, line {place.lineno}, in {place.name})"
        ) from exc


commands = AppGroup("engine", help="Tell of the application's engine, or tell it something.")


@commands.command(with_appcontext=False)
@_with_engine
def status() -> None:
    """
    Show the main process and the listeners.

    Exit status: 0 it runs, 3 it does not, 4 that is not known for want of a PID file.
    """
    engine, path = _engine(), _pidfile()
    pid = _main_process(path)
    _show(engine, report.process(path, pid, UNKNOWN_PIDFILE))
    if path is None:
        sys.exit(report.UNKNOWN)
    sys.exit(0 if pid else report.NOT_RUNNING)


@commands.command(with_appcontext=False)
@_with_engine
def check() -> None:
    """
    Show what would run, and whether it can.

    Exit status: 0 nothing is wrong, 1 something is.
    """
    engine, path = _engine(), _pidfile()
    facts = {"application": flask.current_app.name, **report.parameters(engine)}
    _show(engine, facts | {"PID file": "none" if path is None else path})
    complaints = list(report.complaints(engine, path))
    click.echo()
    for complaint in complaints:
        click.echo(f"Error: {complaint}", err=True)
    if complaints:
        sys.exit(1)
    click.echo("Nothing is wrong.")


@commands.command(with_appcontext=False)
@_with_engine
def graceful() -> None:
    """
    Have the main process reopen logs and read configuration again, by SIGUSR1.

    Exit status: 0 it was told, 1 it cannot be, 3 it does not run, 4 that is not known.
    """
    path = _pidfile()
    if path is None:
        click.echo(f"Error: no PID file is known: set app.config[{PIDFILE!r}]", err=True)
        sys.exit(report.UNKNOWN)
    pid = _main_process(path)
    if not pid:
        click.echo(f"Error: not running: nobody holds {path}", err=True)
        sys.exit(report.NOT_RUNNING)
    try:
        mainprocess.tell(pid, signal.SIGUSR1)
    except EngineError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"Told process {pid}.")


# -- what they find out --------------------------------------------------------------------------


def _engine() -> Engine:
    engine: Engine = flask.current_app.extensions["engine"]
    return engine


def _pidfile() -> str | None:
    """Return the path of the PID file: as configured, else that of a plugin that has one."""
    configured: str | os.PathLike[str] | None = flask.current_app.config.get(PIDFILE)
    if configured is not None:
        return os.path.abspath(configured)
    return report.pidfile(_engine())


def _main_process(path: str | None) -> int:
    try:
        return 0 if path is None else mainprocess.find(path)
    except EngineError as exc:
        raise click.ClickException(str(exc)) from exc


def _show(engine: Engine, facts: dict[str, str]) -> None:
    click.echo("\n".join([report.table(facts), *report.listeners(engine)]))
