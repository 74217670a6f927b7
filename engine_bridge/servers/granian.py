"""
granian: ASGI, WSGI and RSGI; its workers are made by multiprocessing, one at least.

Source:
    granian 2.8, `server/mp.py`, `server/common.py`: SIGHUP replaces the workers.
"""

import socket
import sys
from collections.abc import Mapping, Sequence

from engine_bridge.core.host import Host, worker_of

from .base import Roll, ServerHost, Serving, Stack, by_sigterm, installed, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SERVED = "engine_bridge.servers._granian"  # loaded where `serve` runs it


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if granian runs in it."""
    if stack.find("granian.") is None and stack.find(SERVED) is None:
        return None
    if SERVED in sys.modules:  # no Python code of ours need be on the stack of granian's threads
        return single("granian", by_sigterm)
    parent = worker_of()
    return ServerHost("granian", Roll, "main" if parent is None else "worker", parent)


def serving(
    app: "Any",
    sockets: Sequence[socket.socket],
    options: "Mapping[str, Any]",
    drain_timeout: float,
) -> Serving:
    """Return one worker, on one socket; *options* are those of `granian.Granian`."""
    with installed("granian"):
        from ._granian import GranianServing

    return GranianServing(app, sockets, options, drain_timeout)
