"""
granian: ASGI, WSGI and RSGI; its workers are made by multiprocessing, one at least.

Source:
    granian 2.8, `server/mp.py`, `server/common.py`: SIGHUP replaces the workers.
"""

from engine_bridge.core.host import Host, worker_of

from .base import Roll, ServerHost, Stack


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if granian runs in it."""
    if stack.find("granian.") is None:
        return None
    parent = worker_of()
    return ServerHost("granian", Roll, "main" if parent is None else "worker", parent)
