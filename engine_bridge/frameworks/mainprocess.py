"""
The process that a PID file names: is it there, and how to send it a signal without killing it.

For commands that run beside the process that serves. The plugin `PIDFile` keeps a lock on its file
for as long as that process lives, so a file without a lock is stale, whatever it says.

Source:
    flock(2); proc(5), `/proc/pid/status`, SigCgt.
"""

import os
import signal
import stat

from engine_bridge.core.errors import EngineError

MAX_PID = 2**31 - 1  # pid_t

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for by `find`


def find(path: "str | os.PathLike[str]") -> int:
    """
    Return the process that the PID file at *path* names; 0 if there is no file, or nobody holds it.

    Raises:
        EngineError: The file cannot be read, or names no process although somebody holds it.
    """
    if fcntl is None:
        raise EngineError("PID files need flock(2), which this platform does not have")
    try:
        # Not through a link, which may lead anywhere; not waiting for the other end of a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as exc:
        raise EngineError(f"cannot read the PID file {path}: {exc.strerror}") from exc
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise EngineError(f"{path} is no file, so no PID file; look at its path")
        if not _is_held(fd):
            return 0
        text = os.pread(fd, 32, 0).strip()
    finally:
        os.close(fd)
    if not text.isdigit() or not 0 < int(text) <= MAX_PID:
        raise EngineError(
            f"{path} is held, but names no process: {text.decode('ascii', 'replace')!r}"
        )
    return int(text)


def _is_held(fd: int) -> bool:
    """Whether another process has a lock of either kind on the open file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False  # ours goes with the descriptor


def tell(pid: int, signum: signal.Signals) -> None:
    """
    Send process *pid* a signal, unless that would kill it.

    Raises:
        EngineError: It does not catch the signal, is gone, or is somebody else's.
    """
    if pid <= 0:  # kill(2): that would be a group, or all processes there are
        raise EngineError(f"{pid} is not the number of a process")
    if not _catches(pid, signum):
        raise EngineError(
            f"process {pid} does not listen to {signum.name}; "
            "have its application say SignalHandler(engine).subscribe()"
        )
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        raise EngineError(f"process {pid} has just gone") from None
    except PermissionError as exc:
        raise EngineError(
            f"user {os.geteuid()} may not send process {pid} a signal; "
            "do it as its own user, or as root"
        ) from exc


def _catches(pid: int, signum: int) -> bool:
    """Whether process *pid* has a handler for *signum*; True where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return not os.path.exists("/proc/self/status")
    return bool(int(fields["SigCgt"], 16) >> (signum - 1) & 1)
