"""
waitress: one process, threads.

Source:
    waitress 3.0, `server.py`: SystemExit, which our handler raises on SIGTERM, has it answer what
    it has begun, and leave.
"""

from engine_bridge.core.host import Host

from .base import Stack, by_sigterm, single


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if waitress serves in it."""
    return None if stack.find("waitress.") is None else single("waitress", by_sigterm)
