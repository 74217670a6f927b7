"""
uWSGI: it is written in C, and offers a module to the code that it runs.

Source:
    uWSGI 2.0, `uwsgi.masterpid()`, `uwsgi.worker_id()`, `uwsgi.reload()`. Its own handlers, in C,
    see the signals; ours never do.
"""

import sys
from collections.abc import Callable
from typing import Any

from engine_bridge.core.host import Host

from .base import Refused, ServerHost, Stack

NO_MASTER = Refused("uWSGI without --master gives no new process; add it, or restart from outside")


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if uWSGI runs in it."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if not hasattr(uwsgi, "worker_id"):
        return None  # a package of that name, not the server
    main_pid = uwsgi.masterpid() or None
    role = "worker" if uwsgi.worker_id() or main_pid is None else "main"
    restart = NO_MASTER if main_pid is None else _Reload(uwsgi.reload)
    return ServerHost("uwsgi", lambda: restart, role, main_pid, drain="late")


class _Reload:
    how = "uwsgi.reload(): the main process replaces all workers"

    def __init__(self, reload: Callable[[], object]) -> None:
        self._reload = reload

    def prepare(self, host: Host) -> Callable[[], object]:
        return self._reload
