"""
Inotify: sleep until the kernel tells what happens in directories. Linux.

It is what makes a watch cost nothing while nothing happens. Weighed and left: watchfiles, whose
thread glances at what it was told at every step, a hundred times a second if a save is to be seen
at once; inotify_simple, which runs ldconfig(8) to find the C library that is loaded already.

Source:
    inotify(7).
"""

import os
import select
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from engine_bridge.core.flag import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_UNMOUNT = 0x400, 0x800, 0x2000
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR = 0x4000, 0x8000, 0x01000000

CHANGES = (
    IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
)  # fmt: skip
GONE = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED  # the watch is of no use any more
HEAD = struct.Struct("iIII")  # watch, mask, cookie, length of the name
BUFFER = 65536  # bytes


class Event(NamedTuple):
    """What happened."""

    watch: int
    mask: int
    name: str

    @property
    def is_loss(self) -> bool:
        """Whether more has happened than the kernel can tell."""
        return bool(self.mask & IN_Q_OVERFLOW)

    @property
    def is_end(self) -> bool:
        """Whether the watched directory is gone from its place."""
        return bool(self.mask & GONE)


class Inotify:
    """
    Watches on directories, and a way to wait for what happens in them.

    Args:
        stopped: Ends all waiting when it is set.

    Raises:
        OSError: The kernel gives none.
        AttributeError: This platform has nothing of the kind.
    """

    def __init__(self, stopped: Flag) -> None:
        self._libc = _libc()
        self._open = threading.Lock()  # who rings must not write to a descriptor given anew
        self._descriptor = _checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        try:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            os.close(self._descriptor)
            raise
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)
        self._stopped = stopped
        stopped.tell(self._ring)

    def add(self, directory: str) -> int:
        """
        Watch *directory*; return the number of the watch, which is that of an earlier one on it.

        Raises:
            OSError: It is none, or the kernel has no more watches to give.
        """
        path = os.fsencode(directory)
        return _checked(self._libc.inotify_add_watch(self._descriptor, path, CHANGES))

    def remove(self, watch: int) -> None:
        """Watch no more; nothing happens if the watch is gone already."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened; wait for it, *seconds* at most, and not once stopped."""
        self._poll.poll(seconds * 1000)
        return list(self._read())

    def _read(self) -> Iterator[Event]:
        while True:
            try:
                data = os.read(self._descriptor, BUFFER)
            except BlockingIOError:
                return
            place = 0
            while place < len(data):
                watch, mask, _, length = HEAD.unpack_from(data, place)
                place += HEAD.size + length
                name = data[place - length : place].rstrip(b"\0")
                yield Event(watch, mask, os.fsdecode(name))

    def _ring(self) -> None:
        with self._open:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        self._stopped.forget(self._ring)
        with self._open:
            bell, self._bell = self._bell, -1
        os.close(bell)
        os.close(self._descriptor)


def _libc() -> "ctypes.CDLL":
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    return libc


def _checked(result: int) -> int:
    """Return what the C library returned, if that is no error."""
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
