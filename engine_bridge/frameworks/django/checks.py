"""What `manage.py check` says of the setting `ENGINE_BRIDGE`."""

from django.core.checks import Error

from engine_bridge.frameworks.django import conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAG = "engine_bridge"


def check_settings(app_configs: "Any" = None, **kwargs: "Any") -> "list[Any]":
    """Return an error for each thing that is wrong, with what to write instead."""
    return [
        Error(problem.found, hint=problem.hint, id=problem.id)
        for problem in conf.find_problems(conf.read())
    ]
