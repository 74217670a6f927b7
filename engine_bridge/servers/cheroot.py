"""
cheroot: one process, threads.

Source:
    cheroot 11, `server.py`: SystemExit, which our handler raises on SIGTERM, has it answer what it
    has begun, and leave.
"""

from engine_bridge.core.host import Host

from .base import Stack, by_sigterm, single


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if cheroot serves in it."""
    return None if stack.find("cheroot.") is None else single("cheroot", by_sigterm)
