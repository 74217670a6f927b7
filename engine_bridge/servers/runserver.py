"""
Django's `manage.py runserver`: alone, or as the child of its reloader.

Source:
    Django 5.2, `core/management/commands/runserver.py`; `utils/autoreload.py`: the child serves in
    a thread, and its main thread leaves on Ctrl-C.
"""

import os

from engine_bridge.core.host import Host

from .base import Anew, ServerHost, Stack, by_ctrl_c

SERVES = ("django.core.management.commands.runserver", "django.core.servers.basehttp")
RELOADER = "django.utils.autoreload"


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if it is one of `runserver`."""
    if not any(map(stack.find, SERVES)):
        return None
    is_parent = stack.find(RELOADER) is not None and os.environ.get("RUN_MAIN") != "true"
    return ServerHost("runserver", lambda: Anew(by_ctrl_c), "reloader" if is_parent else "worker")
