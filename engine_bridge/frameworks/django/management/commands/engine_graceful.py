"""Have the process that serves publish `graceful`."""

import os
import signal
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
    """`manage.py engine_graceful`."""

    help = (
        "Has the main process reopen logs and read configuration again, by SIGUSR1. "
        "Exit status: 0 it was told, 1 it cannot be, 3 it does not run, 4 that is not known."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument("--pidfile", help=project.PIDFILE_HELP)

    def handle(self, *args: "Any", pidfile: str | None = None, **options: "Any") -> None:
        """Tell it."""
        path = report.pidfile(*project.describe()) if pidfile is None else os.path.abspath(pidfile)
        if path is None:
            self.stderr.write(f"Error: {project.UNKNOWN_PIDFILE}")
            sys.exit(report.UNKNOWN)
        try:
            pid = mainprocess.find(path)
            if pid:
                mainprocess.tell(pid, signal.SIGUSR1)
        except EngineError as exc:
            raise CommandError(str(exc)) from exc
        if not pid:
            self.stderr.write(f"Error: not running: nobody holds {path}")
            sys.exit(report.NOT_RUNNING)
        self.stdout.write(f"Told process {pid}.")
