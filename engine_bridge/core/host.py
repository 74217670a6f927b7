"""Who owns this process, and how it gives us a new one: the host, as far as the core knows it."""

import os
import sys
from collections.abc import Callable
from functools import partial

from . import signals
from .errors import RestartRefused

LISTEN_FDS_START = 3  # sd_listen_fds(3)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "(unknown)"  # it has been removed


STARTUP_CWD = _working_directory()  # relative arguments were meant from here


class Host:
    """
    The owner of this process: a script, or a server that runs our application.

    Args:
        role: `script`, `main`, `worker`, `reloader`, `command` or `supervisor`.
        main_pid: The process that an operator signals; None means this one.

    Attributes:
        server: The name of the server that runs here; empty if there is none, or none we know.
        restarts_by: How `Engine.restart()` gets a new process, for people.
    """

    server = ""
    restarts_by = "runs its command line anew"

    def __init__(self, role: str = "script", main_pid: int | None = None) -> None:
        self.role = role
        self._main_pid = main_pid

    @property
    def main_pid(self) -> int:
        """The process that an operator signals."""
        return os.getpid() if self._main_pid is None else self._main_pid

    @property
    def owns_process(self) -> bool:
        """Whether the process is the engine's to end: no server decides over it."""
        return self.role in {"script", "supervisor"}

    @property
    def drain(self) -> str:
        """`early` if the process hears that it is to go while it still serves, else `late`."""
        return "early" if self.owns_process or signals.hears_sigterm() else "late"

    @property
    def keeps_drain_delay(self) -> bool:
        """Whether it goes on serving for `drain_delay` when it is told to go."""
        return self.owns_process or signals.can_hold_sigterm()

    def prepare_restart(self) -> Callable[[], object]:
        """
        Return what gives a new process, once the engine has exited.

        Raises:
            RestartRefused: There is no way to do it; nothing has been stopped.
        """
        if not self.owns_process:
            raise RestartRefused(
                f"this process is a {self.role} of process {self.main_pid}, and nothing is known "
                "of how that gives a new one; restart it from outside"
            )
        return prepare_exec()


def _no_server() -> Host | None:
    return None


find_server: Callable[[], Host | None] = _no_server  # the package says who knows servers


def current_host(door: str = "script") -> Host:
    """
    Return the host of the process that calls.

    Args:
        door: What starts the engine, as in `Life.door`; where it is no script, a server is there,
            whether we know it or not.
    """
    found = find_server()
    if found is not None:
        return found
    return Host() if door == "script" else Host("worker", worker_of())


def worker_of() -> int | None:
    """Return the process that made this one by multiprocessing; None if none did."""
    multiprocessing = sys.modules.get("multiprocessing")
    parent = multiprocessing.parent_process() if multiprocessing is not None else None
    return None if parent is None or parent.pid is None else int(parent.pid)


def prepare_exec() -> Callable[[], None]:
    """
    Return a function that runs the present command line anew, in this very process.

    Raises:
        RestartRefused: The command line cannot be run again.
    """
    argv = _command_line()
    _check_directory()
    return partial(_exec, argv, inherited_sockets())


def _command_line() -> list[str]:
    """Return the arguments that gave this process; refuse what cannot be run twice."""
    if not os.access(sys.executable or "", os.X_OK):
        raise RestartRefused(f"cannot run {sys.executable or 'Python'} again: no such program")
    if getattr(sys, "frozen", False):
        return [sys.executable, *sys.argv[1:]]
    if sys.argv[:1] != ["-c"]:
        _check_program(sys.modules.get("__main__"))
    return [sys.executable, *sys.orig_argv[1:]]


def _check_program(main: object) -> None:
    """Refuse a program that was typed or piped in, is gone, or no longer compiles."""
    from importlib.machinery import SourceFileLoader

    path = getattr(main, "__file__", None)
    if path in (None, "<stdin>"):
        raise RestartRefused(
            "the program came from standard input or a prompt and cannot be read again; "
            "put it into a file, or restart it from outside"
        )
    if not isinstance(getattr(main, "__loader__", None), SourceFileLoader):
        return  # an archive, or compiled code
    path = os.path.join(STARTUP_CWD, path)
    try:
        with open(path, "rb") as file:
            compile(file.read(), path, "exec", dont_inherit=True)
    except OSError as exc:
        raise RestartRefused(f"cannot read {path} again: {exc.strerror}") from exc
    except SyntaxError as exc:
        raise RestartRefused(f"{path} does not compile, line {exc.lineno or 1}: {exc.msg}") from exc


def _check_directory() -> None:
    """Refuse a directory to which this process cannot go back."""
    try:
        os.stat(os.path.join(STARTUP_CWD, "."))
    except PermissionError as exc:  # privileges were dropped since
        raise RestartRefused(
            f"the directory in which this process began, {STARTUP_CWD}, is closed to "
            f"user {os.geteuid()}, who it is now; restart it from outside, and begin in another"
        ) from exc
    except OSError as exc:
        raise RestartRefused(
            f"the directory in which this process began, {STARTUP_CWD}, is gone; "
            "restart it from outside"
        ) from exc


def inherited_sockets() -> list[int]:
    """
    Return the descriptors that a service manager handed in.

    Source:
        sd_listen_fds(3). The pid stays, so LISTEN_PID holds for the next program as well.
    """
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return []
    return list(range(LISTEN_FDS_START, LISTEN_FDS_START + int(count)))


def _exec(argv: list[str], sockets: list[int]) -> None:
    """Replace this process. All has been stopped: nothing may keep it from going on."""
    for descriptor in sockets:
        try:
            os.set_inheritable(descriptor, True)
        except OSError:
            pass  # the application has closed it
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # there is none, or nobody reads it any more
    os.chdir(STARTUP_CWD)
    os.execv(argv[0], argv)
