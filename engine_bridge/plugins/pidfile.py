"""
PIDFile: a file that names the process to signal, for as long as that process lives.

What counts is the lock on the file (flock(2)), which the kernel takes back from whoever dies. What
an unlocked file says is stale, whatever it is: a dead process, one that got the number since,
nothing, rubbish.

Who holds what: a process of its own (a script, a server without workers, gunicorn's main process
when it has preloaded the application) holds the file exclusively. Workers of one main process
each hold a shared lock on a file that names that process. Three rules make it safe:

1. The file is written and unlinked under an exclusive lock only. So whoever has a lock of either
   kind, and *then* finds that the path still names the file it has locked, holds it for good.
2. A worker tries for the exclusive lock first. Who gets it is alone, writes, and makes it a shared
   one. That is no single step: the kernel drops a lock before it takes the new one, and somebody
   may come in between. So all is checked after the last lock, and done again if it does not hold.
3. Who leaves tries for the exclusive lock, whoever gets it unlinks, the others just close.

Why exactly one unlinks when the last workers leave at the same moment. Leaving is two steps: the
shared lock is dropped, the exclusive one is tried for; who fails has no lock any more. The last of
them to take its first step leaves no shared lock in the way of anybody. If one of the others has
the exclusive lock by then, that one unlinks. Else the next to try gets it: there is one, for
he who was last to drop has still to try. So at least one gets it. A second one can get it only when
the first has closed, and so unlinked; it then finds that the path does not name its file, and
unlinks nothing. A worker that starts in between may make all who leave fail, but then it is there
itself, and leaves in its turn; one that is refused leaves by the same rule as the others.

Weighed and left: O_EXCL with a check whether the named process lives (numbers are used again, in a
container the same few every time), a rename over the path (two may do that at once, and who had
the file open holds a lock that means nothing), fcntl(2) locks (any close of the file by the
process would drop them).
"""

import errno
import os
import stat
from time import monotonic, sleep

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.plugins.base import Plugin, absolute, hand_over

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for at `subscribe`

PATIENCE = 1.0  # seconds for others to get over what takes them a moment; no event tells of it
PAUSE = 0.005
MAX_PID = 2**31 - 1  # pid_t


class PIDFileError(EngineError):
    """
    The PID file cannot be had.

    Attributes:
        path: The file.
        pid: The process that holds it, where that is known.
    """

    def __init__(self, path: str, found: str, advice: str, pid: int | None = None) -> None:
        super().__init__(f"no PID file {path}: {found}; {advice}")
        self.path = path
        self.pid = pid


class PIDFile(Plugin):
    """
    Keep a file that holds the number of the process to signal, and refuse to be the second.

    It is written at the start, kept over a stop, and gone after the exit. Under a server with
    workers it names the server's main process, and the last worker to leave removes it. Where it
    may not be unlinked, as after dropped privileges, it is emptied.

    Args:
        engine: The engine to listen to.
        pidfile: The path; a relative one is meant from the present directory.

    Raises:
        EngineError: *pidfile* is not a path.
    """

    channels = ("start", "exit", "fork", "main_start", "main_exit", "hand_over")

    def __init__(self, engine: Engine, pidfile: "str | os.PathLike[str]") -> None:
        super().__init__(engine)
        self.pidfile = absolute(pidfile, "PIDFile(engine, '/run/app.pid')")
        self._file: HeldFile | None = None
        self._held_by_parent = 0  # the process that held it exclusively and forked this one

    def subscribe(self) -> None:
        """
        Turn the plugin on.

        Raises:
            EngineError: This platform has no flock(2).
        """
        if fcntl is None:
            raise EngineError(
                "PIDFile needs flock(2), which this platform does not have; "
                "leave it out here and let a service manager keep track of the process"
            )
        super().subscribe()

    def unsubscribe(self) -> None:
        """Turn the plugin off; a file that is held goes away."""
        super().unsubscribe()
        self.exit()

    def start(self) -> None:
        """
        Have the file, and have it name the main process; one that is held already is kept.

        Raises:
            PIDFileError: Another process holds it, or it cannot be written.
        """
        host = self.engine.host
        pid = os.getpid() if host is None else host.main_pid
        if pid == self._held_by_parent:
            return
        if self._file is not None and self._file.pid == pid and self._file.is_in_place():
            return
        self.exit()
        self._file = take(self.pidfile, pid)

    start.priority = 70  # type: ignore[attr-defined]  # once daemonized, before bind and dropped privileges

    def exit(self) -> None:
        """Remove the file if this process is the last one to hold it; else let it go."""
        if self._file is not None:
            self._file.leave()
            self._file = None  # only now: a fork meanwhile must find what to close

    def fork(self) -> None:
        """
        In a forked child: close the copy of the descriptor, and forget it.

        Unlocking would take the lock from the parent, for it belongs to the open file, of which
        parent and child have a descriptor each; closing one of the two leaves it.
        """
        if self._file is None:
            return
        if not self._file.shared:
            self._held_by_parent = self._file.pid
        self._file.close()
        self._file = None

    def hand_over(self, uid: int, gid: int) -> None:
        """Give the file to the user that this process becomes, who may then open it again."""
        if self._file is not None and not self._file.shared:
            hand_over(self.engine, self._file.descriptor, self.pidfile, uid, gid)

    def main_start(self) -> None:
        """In the main process, with the application preloaded: hold the file for all workers."""
        self.start()

    def main_exit(self) -> None:
        """In the main process: the workers are gone."""
        self.exit()


class HeldFile:
    """
    The open file, with or without a lock on it.

    Raises:
        PIDFileError: What is there is no file.
        OSError: It cannot be opened.
    """

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid
        self.shared = pid != os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(path, flags, 0o644)
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            self.close()
            raise PIDFileError(path, "there is something that is no file", "name another path")

    def claim(self) -> bool:
        """Lock the file and have it name the process; return whether all of that holds."""
        if self._lock(fcntl.LOCK_EX) and self.is_in_place() and self.read() != self.pid:
            self._write()
        kind = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
        return self._lock(kind) and self.is_in_place() and self.read() == self.pid

    def leave(self) -> None:
        """Close the file, and remove it if nobody else holds it."""
        try:
            if self._lock(fcntl.LOCK_EX):
                self._remove()
        except OSError:
            pass  # what is left is not locked, and so stale
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptor; with the last copy of it the lock goes."""
        os.close(self.descriptor)

    def is_in_place(self) -> bool:
        """Return whether the path still names this file."""
        try:
            there = os.lstat(self.path)
        except PermissionError:
            return True  # rights were dropped since; who takes a file's place must first unlock it
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(os.fstat(self.descriptor), there)

    def read(self) -> int:
        """Return the process that the file names; 0 for anything else."""
        text = os.pread(self.descriptor, 32, 0).strip()
        pid = int(text) if text.isdigit() else 0
        return pid if pid <= MAX_PID else 0

    def _lock(self, kind: int) -> bool:
        """Lock the file, or change its lock; if that fails there is no lock any more."""
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write(self) -> None:
        text = b"%d\n" % self.pid
        os.ftruncate(self.descriptor, 0)
        if os.pwrite(self.descriptor, text, 0) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _remove(self) -> None:
        """Unlink the file; where that is denied, empty it: no reader takes that for a process."""
        try:
            if self.is_in_place():
                os.unlink(self.path)
        except OSError:
            os.ftruncate(self.descriptor, 0)


def take(path: str, pid: int) -> HeldFile | None:
    """
    Return the file at *path*, held, and naming the process *pid*.

    Returns:
        None if that process holds the file itself: there is nothing left to hold.

    Raises:
        PIDFileError: Another process holds it, or it cannot be written.
    """
    deadline = monotonic() + PATIENCE
    while True:
        try:
            file, holder = _try_to_take(path, pid)
        except OSError as exc:
            raise _explain(path, exc) from exc
        if file is not None:
            return file
        late = monotonic() > deadline
        if holder == pid != os.getpid():
            # A sibling that starts or leaves has the exclusive lock for a moment only.
            if late:
                return None
        elif late or _is_alive(holder):
            raise _refuse(path, holder)
        sleep(PAUSE)


def _try_to_take(path: str, pid: int) -> tuple[HeldFile | None, int]:
    """Return the file if it could be claimed; else None, and the process that it names."""
    file = HeldFile(path, pid)
    claimed = False
    try:
        claimed = file.claim()
        holder = file.read() if file.is_in_place() else 0
    finally:
        if not claimed:
            file.leave()
    return (file if claimed else None), holder


def _is_alive(pid: int) -> bool:
    """Return whether there is a process *pid*; a hint only, numbers are used again."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and somebody else's
    return True


# -- sentences -----------------------------------------------------------------------------------

_LOOK = "`lslocks` or `fuser` tells who that is"
_FAULTS = {
    errno.ENOENT: ("the directory {folder} does not exist", "create it, or name another one"),
    errno.ENOTDIR: ("{folder} is not a directory", "name a file in one"),
    errno.EISDIR: ("that is a directory", "name a file in it"),
    errno.ELOOP: (
        "that is a symbolic link, which might lead anywhere",
        "name the file itself, or remove the link",
    ),
    errno.EROFS: ("its file system is read-only", "name a file elsewhere, e.g. in /run"),
    errno.ENOSPC: ("its file system is full", "make room there, or name a file elsewhere"),
    errno.EDQUOT: ("the disk quota is used up", "make room there, or name a file elsewhere"),
    errno.ENOLCK: ("its file system has no locks", "name a file on a local one, e.g. in /run"),
    errno.EOPNOTSUPP: ("its file system has no locks", "name a file on a local one, e.g. in /run"),
}


def _explain(path: str, exc: OSError) -> PIDFileError:
    """Return the sentence for what the operating system said."""
    if exc.errno in (errno.EACCES, errno.EPERM):
        found = _denied(path)
        return PIDFileError(path, found, "change its rights, or name a file elsewhere")
    fallback = (str(exc.strerror), "name a file elsewhere")
    found, advice = _FAULTS.get(exc.errno or 0, fallback)
    return PIDFileError(path, found.format(folder=os.path.dirname(path)), advice)


def _denied(path: str) -> str:
    user = os.geteuid()
    try:
        there = os.lstat(path)
    except OSError:
        return f"user {user} may not create files in {os.path.dirname(path)}"
    mode = stat.S_IMODE(there.st_mode)
    return f"user {user} may not write to it, it belongs to user {there.st_uid} (mode {mode:o})"


def _refuse(path: str, holder: int) -> PIDFileError:
    """Return the sentence for a file that others hold."""
    if not holder:
        return PIDFileError(path, "a process that it does not name holds it", _LOOK)
    if holder == os.getpid():
        found = f"process {holder} holds it, that is this one"
        return PIDFileError(path, found, "give each engine a PID file of its own", holder)
    if not _is_alive(holder):
        found = f"it names process {holder}, which is gone, but others still hold it"
        return PIDFileError(path, found, _LOOK, holder)
    found = f"process {holder} holds it, and is running"
    return PIDFileError(path, found, f"stop that first (kill {holder}), or name another", holder)
