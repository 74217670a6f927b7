"""Tell what would run, and whether it can."""

from django.core.management import BaseCommand, CommandError

from engine_bridge.frameworks import report
from engine_bridge.frameworks.django import checks, project

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Command(BaseCommand):
    """`manage.py engine_check`."""

    help = (
        "Shows parameters, plugins and listeners of the engine. "
        "Exit status: 0 nothing is wrong, 1 something is."
    )
    requires_system_checks = [checks.TAG]  # noqa: RUF012  # Django's way to say it

    def handle(self, *args: "Any", **options: "Any") -> None:
        """Show it."""
        engine, plugins = project.describe()
        path = report.pidfile(engine, plugins)
        self.stdout.write(report.table(report.parameters(engine) | {"PID file": path or "none"}))
        self.stdout.write(project.plugins_and_listeners(engine, plugins))
        complaints = list(report.complaints(engine, path))
        if complaints:
            raise CommandError("\n".join(complaints))
        self.stdout.write("Nothing is wrong.")
