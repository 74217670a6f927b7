"""What is in the database."""

from django.db import models


class Reminder(models.Model):
    """A text for a time; `rung` is when somebody was told."""

    text = models.CharField(max_length=200)
    due = models.DateTimeField()
    rung = models.DateTimeField(null=True, db_index=True)

    def __str__(self) -> str:
        return f"{self.due:%H:%M:%S} {self.text}"
