"""Add a reminder from the command line; no engine runs in this process."""

from argparse import ArgumentParser
from datetime import timedelta

from django.core.management import BaseCommand
from django.utils.timezone import now

from reminders.models import Reminder


class Command(BaseCommand):
    """`manage.py remind 5 "Tea is ready"`."""

    help = "Adds a reminder."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("seconds", type=float)
        parser.add_argument("text")

    def handle(self, *args: object, seconds: float, text: str, **options: object) -> None:
        """Add it."""
        reminder = Reminder.objects.create(text=text, due=now() + timedelta(seconds=seconds))
        self.stdout.write(f"{reminder}")
