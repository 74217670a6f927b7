"""
werkzeug's development server: `flask run`, `run_simple`, `app.run()`; alone or with its reloader.

Source:
    werkzeug 3.1, `serving.py`; `_reloader.py`: the child serves in a thread, and its main thread
    leaves on Ctrl-C.
"""

import os

from engine_bridge.core.host import Host

from .base import Anew, ServerHost, Stack, single

RELOADER = "werkzeug._reloader"


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if werkzeug serves in it."""
    if stack.find(RELOADER) is not None:
        if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
            return ServerHost("werkzeug", Anew(), main_pid=os.getppid())
        return ServerHost("werkzeug", Anew(), "reloader")
    if stack.find("werkzeug.serving") is None:
        return None
    return single("werkzeug", stack)
