"""Tell whether the project runs, by its PID file."""

import os
import sys
from argparse import ArgumentParser

from django.core.management import BaseCommand, CommandError

from engine_bridge.core.errors import EngineError
from engine_bridge.frameworks import mainprocess, report
from engine_bridge.frameworks.django import project

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
        parser.add_argument("--pidfile", help=project.PIDFILE_HELP)

    def handle(self, *args: "Any", pidfile: str | None = None, **options: "Any") -> None:
        """Show it."""
        engine, plugins = project.describe()
        path = report.pidfile(engine, plugins) if pidfile is None else os.path.abspath(pidfile)
        try:
            pid = 0 if path is None else mainprocess.find(path)
        except EngineError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(report.table(report.process(path, pid, project.UNKNOWN_PIDFILE)))
        self.stdout.write(project.plugins_and_listeners(engine, plugins))
        if path is None:
            sys.exit(report.UNKNOWN)
        sys.exit(0 if pid else report.NOT_RUNNING)
