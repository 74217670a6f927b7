"""
What the adapters of threaded servers share: sockets that were handed in, and how to leave.

A server that is told to go accepts what already waits for it, and no more. It goes when its last
connection has ended, when it is told once more, or when `drain_timeout` has passed.
"""

import select
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Self

from .base import nothing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Worker:
    """
    What a `Serving` of ours begins with.

    Args:
        app: The application.
        sockets: Those that were handed in.
        options: The server's own.
        drain_timeout: Seconds that it may take to leave.
    """

    def __init__(
        self,
        app: "Any",
        sockets: Sequence[socket.socket],
        options: "Mapping[str, Any]",
        drain_timeout: float,
    ) -> None:
        self.app = app
        self.sockets = sockets
        self.options = dict(options)
        self.drain_timeout = drain_timeout
        self.leaving = Leaving(drain_timeout)
        self.when_ready: Callable[[], object] = nothing
        self.when_closed: Callable[[], object] = nothing

    def stop(self) -> None:
        """As of `Serving`."""
        self.leaving.tell()


class Leaving:
    """
    The word to go, heard beside the sockets, and what to wait for once it came.

    Attributes:
        connections: Those that are open, where the server does not know them itself.
    """

    def __init__(self, drain_timeout: float) -> None:
        self.connections: set[Any] = set()
        self._drain_timeout = drain_timeout
        self._deadline = float("inf")
        self._times = 0
        self._ear: socket.socket | None = None
        self._bell: socket.socket | None = None  # not a pipe: once closed it writes nowhere

    def __enter__(self) -> Self:
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for end in (self._bell, self._ear):
            if end is not None:
                end.close()

    def tell(self) -> None:
        """Say that it is to go; from any thread, or a signal handler."""
        self._times += 1
        if self._times == 1:
            self._deadline = monotonic() + self._drain_timeout
        self.ring()

    def ring(self) -> None:
        """Have `wait` return."""
        if self._bell is not None:
            with suppress(OSError):  # full, so it rings already; closed, so nobody listens
                self._bell.send(b"\0")

    def ended(self, connection: object) -> None:
        """Note that *connection* is open no more."""
        self.connections.discard(connection)
        if self._times:
            self.ring()

    @property
    def is_told(self) -> bool:
        """Whether it is to go."""
        return self._times > 0

    @property
    def is_cut_off(self) -> bool:
        """Whether it is to wait no longer."""
        return self._times > 1 or self.left <= 0

    @property
    def left(self) -> float:
        """Seconds that it may still take."""
        return max(self._deadline - monotonic(), 0.0)

    def fileno(self) -> int:
        """Return the descriptor that can be read once there is news; `hear` reads it."""
        return self._ear.fileno() if self._ear is not None else -1

    def hear(self) -> None:
        """Take note that it rang."""
        if self._ear is not None:
            with suppress(BlockingIOError):
                self._ear.recv(4096)

    def wait(self, sockets: Iterable[int] = (), seconds: float = float("inf")) -> list[int]:
        """
        Return which of *sockets* can be read.

        None can where it rang, or where *seconds* have passed, or what is left of the time.
        """
        poll = select.poll()
        for descriptor in (self.fileno(), *sockets):
            poll.register(descriptor, select.POLLIN)
        seconds = min(seconds, self.left)
        ready = [fd for fd, _ in poll.poll(None if seconds == float("inf") else seconds * 1000)]
        if self.fileno() in ready:
            ready.remove(self.fileno())
            self.hear()
        return ready


class Duplicates:
    """
    Sockets of our own for those that were handed in, which stay as they are.

    They do not block: where several processes wait for one connection, one gets it.
    """

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._sockets = sockets
        self._own: list[socket.socket] = []

    def __enter__(self) -> list[socket.socket]:
        for each in self._sockets:
            own = each.dup()
            self._own.append(own)
            own.setblocking(False)
        return self._own

    def __exit__(self, *exc_info: object) -> None:
        for own in self._own:
            own.close()
