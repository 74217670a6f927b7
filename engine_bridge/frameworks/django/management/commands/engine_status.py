"""Tell whether the project runs, by its PID file."""

import os
import sys
from argparse import ArgumentParser

from django.core.management import BaseCommand, CommandError

from engine_bridge.core.errors import EngineError
from engine_bridge.frameworks import mainprocess
from engine_bridge.frameworks.django import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Command(BaseCommand):
    """`manage.py engine_status`."""

    help = (
        "Shows the main process and the listeners. "
        "Exit status: 0 it runs, 3 it does not, 4 that is not known for want of a PID file."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument("--pidfile", help=report.PIDFILE_HELP)

    def handle(self, *args: "Any", pidfile: str | None = None, **options: "Any") -> None:
        """Show it."""
        engine, plugins = report.describe()
        path = report.pidfile(engine, plugins) if pidfile is None else os.path.abspath(pidfile)
        try:
            pid = 0 if path is None else mainprocess.find(path)
        except EngineError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(report.facts(_about(path, pid)))
        self.stdout.write(report.plugins_and_listeners(engine, plugins))
        if path is None:
            sys.exit(report.UNKNOWN)
        sys.exit(0 if pid else report.NOT_RUNNING)


def _about(path: str | None, pid: int) -> dict[str, str]:
    if path is None:
        return {"state": f"unknown: {report.UNKNOWN_PIDFILE}"}
    if pid:
        return {"state": "running", "main process": str(pid), "PID file": path}
    return {"state": "not running", "PID file": path}
