"""What listens to the engine; found because of its name."""

from frameworks.apps import lifecycle  # noqa: F401  # it subscribes
