"""
wsgiref, of the standard library: one process, one request at a time.

Source:
    wsgiref/handlers.py: what is raised during a request becomes an answer of status 500.
"""

from engine_bridge.core.host import Host

from .base import Refused, ServerHost, Stack

SWALLOWS = Refused(
    "wsgiref takes what would end it for a fault of the application; restart it from outside"
)


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if wsgiref serves in it."""
    if stack.find("wsgiref.simple_server") is None and stack.find("wsgiref.handlers") is None:
        return None
    return ServerHost("wsgiref", lambda: SWALLOWS)
