"""What listens to the engine; `engine_bridge.frameworks.django` finds it by its name."""

import logging

from engine_bridge import engine
from engine_bridge.frameworks.django import uses_database

logger = logging.getLogger(__name__)


@engine.subscribe("start", priority=60)
@uses_database
def look_at_the_database() -> None:
    """Fail here rather than in the first request: `migrate` may have been forgotten."""
    from reminders.models import Reminder

    logger.warning("%d reminders wait", Reminder.objects.filter(rung=None).count())
