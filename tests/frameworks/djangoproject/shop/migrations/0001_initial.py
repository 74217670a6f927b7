"""The table of sales."""

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]  # Django carries no types
    """Make it."""

    initial = True
    operations = (
        migrations.CreateModel(
            "Sale",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("what", models.CharField(max_length=50)),
            ],
        ),
    )
