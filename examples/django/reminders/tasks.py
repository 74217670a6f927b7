"""What is done in the background."""

from django.utils.timezone import now

from reminders.models import Reminder


def ring() -> None:
    """Note the reminders that are due; called every second, by each worker."""
    Reminder.objects.filter(due__lte=now(), rung=None).update(rung=now())
