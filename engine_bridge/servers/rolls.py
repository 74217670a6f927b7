"""
One roll for all the workers that ask for it.

When a file has changed each worker asks for a restart; the main process would replace them all as
often. So who asks notes when, in a file that the workers of one main process share. A worker that
is older than the last request is about to be replaced by that, and need not ask again.

Were the main process to ignore a request, its workers would stay, and never be heard: after
`PATIENCE` a request counts for nothing any more.
"""

import os
from collections.abc import Callable
from time import monotonic  # the machine's: the same clock for all its processes

from engine_bridge.core import hostlock

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]  # where servers have no workers either

PATIENCE = 30.0  # seconds

_since = monotonic()  # when this worker began


def begin(main_pid: int, ask: Callable[[], object]) -> None:
    """Call *ask*, unless another worker of process *main_pid* just has."""
    try:
        descriptor = hostlock.open_shared(f"roll-{main_pid}")
    except OSError:
        ask()  # one too many is better than none
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_due(_read(descriptor)):
            os.pwrite(descriptor, f"{monotonic():020.6f}".encode(), 0)
            ask()
    finally:
        os.close(descriptor)


def _is_due(asked: float) -> bool:
    """Whether the roll that somebody asked for at *asked* is to replace this worker as well."""
    now = monotonic()
    return _since < asked <= now < asked + PATIENCE  # a later time is that of an earlier boot


def _read(descriptor: int) -> float:
    try:
        return float(os.pread(descriptor, 20, 0))
    except ValueError:
        return 0.0  # nobody has asked yet


def _after_fork() -> None:
    global _since  # noqa: PLW0603  # a worker that was forked when we had been imported
    _since = monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
