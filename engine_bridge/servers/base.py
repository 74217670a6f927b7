"""
What all server adapters share: who called the present code, and how a server gives a new process.

A server leaves no note that it runs in a process. But its code has called ours: it stands on the
stack of the main thread, or, in a script that serves from a thread of its own, on the present one.

Source:
    `shared/reference/servers.md` has what each server does on which event, as measured.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, Self

from engine_bridge.core import nets
from engine_bridge.core.errors import EngineError, RestartRefused
from engine_bridge.core.host import Host, prepare_exec

from . import rolls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from types import FrameType


class Adapter(Protocol):
    """What the module of a server offers."""

    def detect(self, stack: "Stack") -> Host | None:
        """Return the host of this process, if the server runs in it."""


class Serving(Protocol):
    """
    One worker of a server, on sockets that were handed in; they stay open, and the caller's.

    It is made of the application, the sockets, options and a time-out, see `serving.py`. The
    sockets listen and do not block; the options are the server's own, by its own names; the
    time-out is how many seconds it takes at most to leave. It neither handles signals nor needs the
    main thread.

    Attributes:
        when_ready: What to call, in whatever thread or process of the server, once it can answer.
        when_closed: What to call, likewise, once it accepts no more; what had been waiting until
            then it has accepted.
    """

    when_ready: Callable[[], object]
    when_closed: Callable[[], object]

    def run(self) -> None:
        """
        Serve until `stop` is called; return once the last connection has ended.

        Raises:
            ServerNotAvailable: It is not installed, or cannot serve like that.
            Exception: What ended the server, were it not `stop`.
        """

    def stop(self) -> None:
        """
        Accept no more, answer what was accepted, have clients that stay close, then leave.

        From any thread, or a signal handler; it returns at once. The second time it cuts off.
        """


class Stack:
    """
    The calls that led to the present code.

    Args:
        with_main: Whether those of the main thread are to be known as well. For rare occasions: it
            takes a look at all threads, which CPython 3.11 does not always survive while some of
            them come and go.
    """

    def __init__(self, *, with_main: bool = False) -> None:
        self._own = list(_callers(sys._getframe(1)))
        main = threading.main_thread().ident
        self._main = self._own
        if main != threading.get_ident():
            self._main = list(_callers(sys._current_frames().get(main or 0))) if with_main else []

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let the calls go: whatever they have in hand would stay until the next collection."""
        self._own, self._main = [], []

    def find(self, module: str, function: str = "") -> "FrameType | None":
        """
        Return the innermost call of *function* in *module*.

        Args:
            module: Its name; one that ends with a dot stands for all in that package.
            function: Its name; empty for any.
        """
        for frame in (*self._own, *self._main):
            name: str = frame.f_globals.get("__name__", "")
            if not (name == module or (module.endswith(".") and f"{name}.".startswith(module))):
                continue
            if not function or frame.f_code.co_name == function:
                return frame
        return None

    def main_is_in(self, package: str, function: str = "") -> bool:
        """Whether the main thread is in *package*, or in *function* of that very module."""
        return any(
            name == package and frame.f_code.co_name == function
            if function
            else name.partition(".")[0] == package
            for frame in self._main
            for name in [frame.f_globals.get("__name__", "")]
        )


def _callers(frame: "FrameType | None") -> "Iterator[FrameType]":
    while frame is not None:
        yield frame
        frame = frame.f_back


class ServerHost(Host):
    """
    A process in which a server runs.

    Args:
        server: The server's name.
        restart: How it gives a new process; asked when that is wanted, and not before.
        role: As of `Host`.
        main_pid: Likewise.
        drain: `early` or `late` where the server is known for it; else it depends on whether our
            handler of SIGTERM is in place.
    """

    def __init__(
        self,
        server: str,
        restart: "Callable[[], Restart]",
        role: str = "worker",
        main_pid: int | None = None,
        *,
        drain: str = "",
    ) -> None:
        super().__init__(role, main_pid)
        self.server = server
        self._restart = restart
        self._drain = drain

    @property
    def drain(self) -> str:
        """`early` if the process hears that it is to go while it still serves, else `late`."""
        return self._drain or super().drain

    @property
    def restarts_by(self) -> str:  # type: ignore[override]  # of a server it is not known before
        """How `Engine.restart()` gets a new process, for people."""
        return self._restart().how

    def prepare_restart(self) -> Callable[[], object]:
        """
        Return what has the server give a new process.

        Raises:
            RestartRefused: It cannot; nothing has been stopped.
        """
        return self._restart().prepare(self)


def nothing(*args: object) -> None:
    """Do nothing: what is called unless somebody wants to hear of it."""


@contextmanager
def taking_options(server: str) -> "Iterator[None]":
    """
    Hand options to *server* inside.

    Raises:
        EngineError: It does not take them.
    """
    try:
        yield
    except (TypeError, ValueError) as exc:
        raise EngineError(f"{server} does not take these options: {exc}") from None


def waiting(listener: "socket") -> "Iterator[None]":
    """Go on while a connection waits to be accepted, for as many as may wait at one time."""
    import select
    from socket import SOMAXCONN

    poll = select.poll()
    poll.register(listener, select.POLLIN)
    for _ in range(SOMAXCONN):
        if not poll.poll(0):
            return
        yield


def version(package: str) -> str:
    """Return the version of an installed *package*; nothing if that is not known."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(package)
    except PackageNotFoundError:
        return ""


# -- new processes ---------------------------------------------------------------------------------


class Restart(Protocol):
    """
    A way to a new process.

    Attributes:
        how: What happens, for people.
    """

    how: str

    def prepare(self, host: Host) -> Callable[[], object]:
        """Return what does it; raise RestartRefused if it cannot be done."""


class Refused:
    """
    There is none.

    Args:
        why: What stands in the way, and what to do instead.
    """

    def __init__(self, why: str) -> None:
        self.how = f"cannot: {why}"
        self._why = why

    def prepare(self, host: Host) -> Callable[[], object]:
        """Refuse."""
        raise RestartRefused(self._why)


class Roll:
    """
    The main process replaces its workers when it gets SIGHUP.

    Workers that ask for the same roll, as all do when a file has changed, make one of it.
    """

    how = "SIGHUP to the main process, which replaces all workers"

    def prepare(self, host: Host) -> Callable[[], object]:
        """Return what sends the signal, unless another worker just has."""
        pid = host.main_pid
        try:
            os.kill(pid, 0)
        except OSError as exc:
            found = "is gone" if exc.errno == errno.ESRCH else f"belongs to another user ({exc})"
            raise RestartRefused(
                f"the main process {pid} of this worker {found}; restart it from outside"
            ) from exc
        return lambda: rolls.begin(pid, lambda: os.kill(pid, signal.SIGHUP))


class Anew:
    """
    The server is asked to leave; when it has, its command line runs again in this very process.

    Until it listens again who connects is refused.

    Args:
        leave: What asks it.
    """

    how = "leaves, and runs its command line anew in this process"

    def __init__(self, leave: Callable[[], object]) -> None:
        self._leave = leave

    def prepare(self, host: Host) -> Callable[[], object]:
        """Return what asks the server to leave; see that its command line can run again."""
        run_again = prepare_exec()

        def leave() -> None:
            nets.do_last(run_again)
            self._leave()

        return leave


def by_sigterm() -> None:
    """Send this process SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def by_ctrl_c() -> None:
    """
    Send this process SIGINT; a server of the standard library's kind is asked more gently.

    Source:
        socketserver.py, `_handle_request_noblock`: what is raised while it hands a request on to a
        thread has it shut that connection down.
    """
    with Stack(with_main=True) as stack:
        call = stack.find("socketserver", "serve_forever")
        server = None if call is None else call.f_locals["self"]
    if server is None or threading.current_thread() is threading.main_thread():
        os.kill(os.getpid(), signal.SIGINT)
    else:
        threading.Thread(target=server.shutdown, name="leave", daemon=True).start()


def single(server: str, leave: Callable[[], object], drain: str = "") -> ServerHost:
    """
    Return the host of a process in which *server* serves alone.

    Args:
        server: Its name.
        leave: As of `Anew`.
        drain: As of `ServerHost`.
    """

    def restart() -> Restart:
        with Stack(with_main=True) as stack:
            in_main = stack.main_is_in(server) or stack.main_is_in(*SERVE)
            return Anew(leave) if in_main else IN_A_THREAD

    return ServerHost(server, restart, drain=drain)


SERVE = ("engine_bridge.servers.serving", "serve")
IN_A_THREAD = Refused(
    "the server runs in a thread of a script, which alone can start it again; "
    "have the script start the engine, then it is the script that restarts"
)
