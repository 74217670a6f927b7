"""
werkzeug's development server: `flask run`, `run_simple`, `app.run()`; alone or with its reloader.

Source:
    werkzeug 3.1, `serving.py`; `_reloader.py`: the child serves in a thread, and its main thread
    leaves on Ctrl-C. The parent has bound the socket, whose number is in WERKZEUG_SERVER_FD.
"""

import os

from engine_bridge.core.host import Host

from .base import Anew, ServerHost, Stack, by_ctrl_c, single


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if werkzeug serves in it."""
    if stack.find("werkzeug.serving") is None:
        return None
    if os.environ.get("WERKZEUG_RUN_MAIN") == "true":
        return ServerHost("werkzeug", lambda: Anew(_leave_the_socket))
    if stack.find("werkzeug._reloader") is not None:
        return ServerHost("werkzeug", lambda: Anew(by_ctrl_c), "reloader")
    return single("werkzeug", by_ctrl_c)


def _leave_the_socket() -> None:
    """Have the server go, but keep its socket, which it would close, for the next program."""
    descriptor = os.dup(int(os.environ["WERKZEUG_SERVER_FD"]))
    os.set_inheritable(descriptor, True)
    os.environ["WERKZEUG_SERVER_FD"] = str(descriptor)
    by_ctrl_c()
