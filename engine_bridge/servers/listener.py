"""
Accept on a socket that other processes share, for servers that run on asyncio.

asyncio's own server would close the socket and set its backlog anew. Nor does it tell which of the
connections that it has accepted are still open: one may be at its TLS handshake, one not yet known
to the server's protocol. This one knows each from `accept` until one side closes it.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from .base import waiting

AT_A_TIME = 16  # connections, before other work of the loop gets its turn
PAUSE_AFTER_ERROR = 1.0  # seconds: no descriptors are left, or no memory; as asyncio does it
PAUSE = 0.02  # seconds between two looks at what is still open: a socket's end is no event


class Listener:
    """
    What accepts on one socket.

    Args:
        sock: It listens, does not block, and is left as it is.
        make_protocol: Gives the protocol of a new connection.
        tls: `ssl` and the like, as of `loop.connect_accepted_socket`.
    """

    def __init__(
        self, sock: socket.socket, make_protocol: Callable[[], asyncio.BaseProtocol], **tls: Any
    ) -> None:
        self._socket = sock
        self._make_protocol = make_protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._accepted: WeakSet[socket.socket] = WeakSet()
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self._listen()

    @property
    def open(self) -> int:
        """How many connections were accepted, and closed by neither side since."""
        return sum(map(is_open, self._accepted))

    def close(self) -> None:
        """Accept what waits, and no more: the socket may be nobody else's."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            for _ in waiting(self._socket):
                self._accept()

    async def wait_closed(self) -> None:
        """Return: `close` leaves nothing to wait for."""

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_A_TIME):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return  # another process took it, or the client went away
            except OSError as exc:
                self._loop.remove_reader(self._socket)
                self._loop.call_later(PAUSE_AFTER_ERROR, self._listen)
                self._loop.call_exception_handler({"message": "cannot accept", "exception": exc})
                return
            self._accepted.add(connection)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection, **self._tls)
        except OSError:
            connection.close()  # there was no handshake


def is_open(connection: socket.socket) -> bool:
    """Whether neither side has closed *connection*, as far as it has been read."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


async def all_closed(
    listeners: Iterable[Listener],
    seconds: float,
    cut_off: Callable[[], bool],
    is_busy: Callable[[], object] = bool,
) -> bool:
    """
    Wait until all connections have ended; return whether they have.

    Args:
        listeners: Those that accepted them.
        seconds: How long to wait.
        cut_off: Says when to wait no longer.
        is_busy: Says whether there is something else to wait for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while is_busy() or any(listener.open for listener in listeners):
        if cut_off() or loop.time() > deadline:
            return False
        await asyncio.sleep(PAUSE)
    return True
