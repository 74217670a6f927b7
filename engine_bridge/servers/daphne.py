"""
daphne: one process, without lifespan.

Source:
    daphne 4.2, `server.py`: Twisted's reactor leaves on SIGTERM.
"""

from engine_bridge.core.host import Host

from .base import Stack, by_sigterm, single


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if daphne runs in it."""
    if stack.find("daphne.server") is None and stack.find("daphne.cli") is None:
        return None
    return single("daphne", by_sigterm)
