"""
A lock that one process of the machine holds at a time, and that a dead one cannot keep.

It is flock(2) on a file, which the kernel takes back from whoever dies. Three things would make
two processes hold it, or none, and are ruled out here.

*A fork*: parent and child share a lock. `close` in the child closes its copy of the descriptor; so
that no fork finds one that is not noted yet, forks wait while a file is opened.

*A file that goes away*, as in directories that are cleaned up: who locks the next one with that
name does not see the lock on this one. So whoever holds it looks again from time to time, and dates
the file anew, for cleaners remove what is old.

*Another user*, who may lock any file that he can open, and in a directory like /tmp can be the
first to make one. So files are made in a directory of mode 0700 that is ours. Its name cannot be a
fixed one: that, somebody else could take. It ends at random, and all processes find it by its
beginning and its owner. Should two make one at the same moment, whoever comes must lock the files
in both. That is enough: of two processes, the one that looked around later saw what the other had
made, or found, before; so they always have a file in common.

Weighed and left: /run/user (goes away when its user logs out), the home directory (on NFS it is
not one machine's, and services have none), fcntl(2) locks (any close of the file by the process
drops them), abstract sockets (anybody may take the name).
"""

import errno
import os
import stat
import threading

from .errors import EngineError

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for by `HostLock`

COMMON = "/tmp"  # not TMPDIR: processes that share a lock may differ in that

_opening = threading.RLock()  # forks wait for it
_guarded: list[bool] = []


class HostLock:
    """
    A lock of this machine's processes.

    Args:
        name: What tells it from the others of this user.
        path: Its file; by default one in a directory of our own below /tmp.

    Raises:
        EngineError: This platform has no flock(2).
    """

    def __init__(self, name: str, path: str | None = None) -> None:
        if fcntl is None:
            raise EngineError(
                "a lock for the whole machine needs flock(2), which this platform does not have"
            )
        self.path = path
        self._file_name = f"{_quoted(name)}.lock"
        self._files: list[tuple[int, str]] = []  # descriptor and path
        self._uid = -1
        _guard_forks()

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return bool(self._files)

    def claim(self) -> bool:
        """
        Have the lock, if no other process has it; return whether it is ours.

        Raises:
            EngineError: Its file cannot be had, or others could get at it.
        """
        if self._files and self._uid == os.geteuid() and self._are_in_place():
            _date_anew(self._files)
            return True
        self.close()
        self._uid = os.geteuid()  # who drops root's rights must share the lock of the other user
        for path in self._paths():
            self._open(path)
        # In one order for all, and none after one that is denied: so somebody gets them all.
        if not (all(_lock(file) for file, _ in self._files) and self._are_in_place()):
            self.close()
        return bool(self._files)

    def check(self) -> None:
        """
        See whether its file can be had, without having the lock.

        Raises:
            EngineError: It cannot be had, or others could get at it.
        """
        for path in self._paths():
            self._open(path)
        self.close()

    def close(self) -> None:
        """Let the lock go; in a forked child only the copy, which leaves the parent its lock."""
        while self._files:
            os.close(self._files.pop()[0])

    def _are_in_place(self) -> bool:
        return all(_is_in_place(*file) for file in self._files)

    def _paths(self) -> list[str]:
        if self.path is not None:
            return [self.path]
        try:
            return [os.path.join(folder, self._file_name) for folder in our_folders(COMMON)]
        except OSError as exc:
            raise _explain(COMMON, exc) from exc

    def _open(self, path: str) -> None:
        """Open the file at *path*; refuse one that another user can lock."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            with _opening:
                self._files.append((os.open(path, flags, 0o600), path))
        except OSError as exc:
            self.close()
            raise _explain(path, exc) from exc
        there = os.fstat(self._files[-1][0])
        if not stat.S_ISREG(there.st_mode):
            found = "that is no file; remove it"
        elif there.st_uid not in (os.geteuid(), 0):
            found = (
                f"the file belongs to user {there.st_uid}, who could hold it for ever; remove it"
            )
        elif there.st_mode & 0o007:
            found = "everybody may open the file, and so hold it for ever; make its mode 600"
        else:
            return
        self.close()
        raise EngineError(f"no lock {path}: {found}, or name another file by lock=…")


def open_shared(name: str) -> int:
    """
    Return a descriptor of the file *name* that this user's processes have in common.

    Raises:
        OSError: It cannot be had.
    """
    path = os.path.join(our_folders(COMMON)[0], name)
    with _opening:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def our_folders(common: str) -> list[str]:
    """
    Return the directories of this user's locks; make one if there is none.

    Raises:
        OSError: There is none, and none can be made.
    """
    uid = os.geteuid()
    prefix = f"engine-bridge-{uid}-"
    found = _find_folders(common, prefix, uid)
    if not found:
        from tempfile import mkdtemp

        mkdtemp(prefix=prefix, dir=common)
        found = _find_folders(common, prefix, uid)
    return found


def _find_folders(common: str, prefix: str, uid: int) -> list[str]:
    """Return, sorted, the directories that are this user's and that nobody else can enter."""
    found = []
    with os.scandir(common) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                there = entry.stat(follow_symlinks=False)
                if there.st_uid == uid and not there.st_mode & 0o077:
                    found.append(entry.path)
    return sorted(found)


def _guard_forks() -> None:
    """Have forks wait while a file is opened; once in a process and its children."""
    if not _guarded and hasattr(os, "register_at_fork"):
        _guarded.append(True)
        os.register_at_fork(
            before=_opening.acquire,
            after_in_parent=_opening.release,
            after_in_child=_opening.release,
        )


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_in_place(descriptor: int, path: str) -> bool:
    """Return whether *path* still names the open file."""
    try:
        there = os.lstat(path)
    except PermissionError:
        return True  # rights were dropped since
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _date_anew(files: list[tuple[int, str]]) -> None:
    for descriptor, _ in files:
        try:
            os.utime(descriptor)
        except OSError:
            pass  # its file system became read-only, which no cleaner can change either


def _quoted(name: str) -> str:
    """Return *name* as that of a file; different names stay different."""
    from urllib.parse import quote

    return quote(name, safe=" ").replace(".", "%2E")


def _explain(path: str, exc: OSError) -> EngineError:
    """Return the sentence for what the operating system said."""
    found = exc.strerror or str(exc)
    if exc.errno == errno.ELOOP:
        found = "that is a symbolic link, which might lead anywhere"
    return EngineError(f"no lock {path}: {found}; name a file that this user can write by lock=…")
