"""A real datagram socket in the place of systemd's, which notes what it is told, in order."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

LIMIT = 10.0
LARGEST = 8192  # bytes


class Manager:
    """
    The other end of $NOTIFY_SOCKET.

    A thread of its own reads, for the kernel keeps ten datagrams only. `waiting` looks itself as
    well: what has been sent is in what it returns.

    Args:
        address: A path, or a name with `@`.
        reads: Whether it reads before it is asked to.

    Attributes:
        environment: What it would set for the service.
        messages: All that has been read, each datagram as a list of its lines.
    """

    def __init__(self, address: str, *, reads: bool = True) -> None:
        self.environment = {"NOTIFY_SOCKET": address}
        self.messages: list[list[str]] = []
        self._returned = 0  # of them, by `waiting` or `read_until`
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._waker, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._main, daemon=True)
        if reads:
            self._thread.start()

    def _main(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._ended, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._ended.fileno() in ready:
                return
            self._read()

    def _read(self) -> None:
        with self._changed:
            while True:
                try:
                    self.messages.append(self._socket.recv(LARGEST).decode().split("\n"))
                except BlockingIOError:
                    break
            self._changed.notify_all()

    def waiting(self) -> list[list[str]]:
        """Return what has come since the last time."""
        self._read()
        return self._take(len(self.messages))

    def _take(self, end: int) -> list[list[str]]:
        begin, self._returned = self._returned, end
        return self.messages[begin:end]

    def read_until(self, line: str, limit: float = LIMIT) -> list[list[str]]:
        """Wait for a datagram with *line*; return all since the last time, that one included."""
        deadline = monotonic() + limit
        with self._changed:
            while True:
                self._read()
                for number in range(self._returned, len(self.messages)):
                    if line in self.messages[number]:
                        return self._take(number + 1)
                if not self._changed.wait(deadline - monotonic()):
                    raise AssertionError(f"no {line} within {limit} s, but {self.messages}")

    def hears_nothing(self, seconds: float) -> bool:
        """Say whether nothing comes within *seconds*."""
        self.waiting()
        with self._changed:
            return not self._changed.wait_for(lambda: len(self.messages) > self._returned, seconds)

    def close(self) -> None:
        """Be gone, as a manager that has crashed."""
        self._waker.close()
        if self._thread.ident:
            self._thread.join()
        self._ended.close()
        self._socket.close()


@contextmanager
def manager(folder: Path, *, reads: bool = True) -> Iterator[Manager]:
    """Be a service manager with a socket in *folder*."""
    found = Manager(str(folder / "notify"), reads=reads)
    try:
        yield found
    finally:
        found.close()
