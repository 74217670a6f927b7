"""What is in the database."""

from django.db import models


class Sale(models.Model):  # type: ignore[misc]  # Django carries no types
    """Something was sold."""

    what = models.CharField(max_length=50)
