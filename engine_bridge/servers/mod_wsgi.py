"""
Apache's mod_wsgi: daemon processes, or Apache's own (embedded mode).

Source:
    mod_wsgi 4.9: `mod_wsgi.process_group` is empty in embedded mode; a daemon process that gets
    SIGINT leaves, and Apache makes a new one.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from engine_bridge.core.host import Host

from .base import Refused, ServerHost, Stack

EMBEDDED = Refused(
    "in embedded mode the process is Apache's own; restart Apache, or use a WSGIDaemonProcess"
)


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if Apache runs in it."""
    mod_wsgi: Any = sys.modules.get("mod_wsgi")
    if not hasattr(mod_wsgi, "process_group"):
        return None  # the package that builds it, not the server
    restart = _Leave() if mod_wsgi.process_group else EMBEDDED
    return ServerHost("mod_wsgi", lambda: restart, main_pid=os.getppid(), drain="late")


class _Leave:
    how = "leaves, and Apache makes a new daemon process"

    def prepare(self, host: Host) -> Callable[[], object]:
        return lambda: os.kill(os.getpid(), signal.SIGINT)
