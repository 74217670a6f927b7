"""
Daemonizer: leave the terminal, and tell it truly how the start went.

Three processes take part, each forked by the one before:

- The *launcher* is what was started in the terminal. It waits for the keeper, and ends as that
  did. It never returns from the fork to the program.
- The *keeper* begins a new session, forks the daemon and waits: until that says, through a pipe,
  that its engine is STARTED, or has ended. Being the parent it knows the daemon's exit code.
- The *daemon* goes on with the start, as the transition's own process. It leads no session, so it
  never gets a terminal again.

The daemon's standard streams are the files from the beginning, for the children that it starts keep
what they find: one that had the terminal would hold up whoever waits for its end, such as a shell
in `$(…)`. But until the engine is STARTED, what Python writes to sys.stdout and sys.stderr goes
to the terminal as well: log lines, and the traceback or the sentence with which the script ends.

Nobody shall be left with a daemon that he was not told of. If the launcher is interrupted or
killed while it waits, a second pipe tells the keeper so, and that ends the daemon by SIGTERM. So it
does when a listener never returns: the engine has then rolled its start back, but the main thread
is stuck, and would be for ever.

Launcher and keeper leave by os._exit: atexit and buffers are the daemon's now.

Weighed and left: to make the launcher a subreaper (prctl(2)) and do without the keeper, which only
Linux has; to send the output through the keeper, which children of the daemon would outlive; to
keep the terminal until STARTED, as said.

Source:
    daemon(7), SysV daemons. sd_listen_fds(3) and sd_watchdog_enabled(3), for variables that name
    a process.
"""

import errno
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic

from engine_bridge.core import nets
from engine_bridge.core.aio import running_loop
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.records import (
    ERROR,
    INFO,
    WARNING,
    Record,
    StateChanged,
    last_resort,
)
from engine_bridge.core.states import State
from engine_bridge.plugins.base import (
    Plugin,
    absolute,
    check_owns_process,
    check_umask,
    hand_over,
    logging_handlers,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

VARIABLE = "ENGINE_BRIDGE_DAEMON"  # the daemon's pid, for the program that it runs next
NAMES_US = ("LISTEN_PID", "WATCHDOG_PID")  # variables of systemd's that must name the daemon
INSTEAD = "`engine-bridge run --daemonize` or `gunicorn --daemon`"

STARTED, STUCK = "started", "stuck"  # what the daemon says to the keeper
STREAMS = (0, 1, 2)
ENDS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # what ends a launcher that waits
NEVER = float("inf")
MOMENT = 5.0  # seconds from the end of the pipe to the end of the process; no more than a safeguard

_is_daemon = False  # this process has left its terminal, as has what it forks


class Daemonizer(Plugin):
    """
    Go on in the background, once the engine starts; the command returns when that has succeeded.

    The command's exit code is 0 once the engine is STARTED. Else it is the daemon's own, 128 + n if
    signal n has killed it, and what it wrote stands in the terminal. A command that is interrupted
    meanwhile takes the daemon with it.

    A process is daemonized once: not by a second start, nor in the new program after a restart.
    Files that have been renamed are opened anew on `graceful`.

    Args:
        engine: The engine to listen to.
        stdin: A file to read standard input from.
        stdout: A file to append standard output to.
        stderr: A file to append standard error to.
        umask: The permissions that new files do not get.
        directory: The working directory. All paths are meant from the one before that.

    Raises:
        EngineError: An argument is not what it should be.
    """

    channels = ("start", "exit", "graceful", "fork", "hand_over")

    def __init__(  # noqa: PLR0917  # CherryPy's, in its order
        self,
        engine: Engine,
        stdin: "str | os.PathLike[str]" = os.devnull,
        stdout: "str | os.PathLike[str]" = os.devnull,
        stderr: "str | os.PathLike[str]" = os.devnull,
        umask: int = 0o022,
        directory: "str | os.PathLike[str]" = "/",
    ) -> None:
        super().__init__(engine)
        usage = "Daemonizer(engine, stdout='/var/log/app.out', directory='/srv/app')"
        self.stdin = absolute(stdin, usage)
        self.stdout = absolute(stdout, usage)
        self.stderr = absolute(stderr, usage)
        self.directory = absolute(directory, usage)
        self.umask = check_umask(umask, "Daemonizer(engine, umask=0o027)")
        self._files: list[int] = []  # opened, and not yet in the place of the streams
        self._tees: list[_Tee] = []  # while the terminal reads along
        self._keeper: _Held | None = None  # the pipe to the keeper, while that waits
        self._thread = 0
        _recognize()

    def subscribe(self) -> None:
        """
        Turn the plugin on.

        Raises:
            EngineError: A server owns this process, or the platform has no fork(2).
        """
        if not hasattr(os, "fork"):
            raise EngineError(
                "Daemonizer needs fork(2), which this platform does not have; "
                "leave it out here and let a service manager run the program"
            )
        check_owns_process(self, INSTEAD)
        super().subscribe()

    def unsubscribe(self) -> None:
        """Turn the plugin off; what has been daemonized stays so."""
        super().unsubscribe()
        self._let_go()

    def start(self) -> None:
        """
        Go on in a daemon, unless this is one.

        Raises:
            EngineError: A server owns this process, it has more than one thread, an event loop
                runs, or a file cannot be opened.
        """
        _recognize()
        check_owns_process(self, INSTEAD)
        if not _is_daemon:
            self._daemonize()
        else:
            self.graceful()
        if _is_daemon:
            os.umask(self.umask)
            self._enter_directory()

    start.priority = 10  # type: ignore[attr-defined]  # before anything that a fork would spoil

    def exit(self) -> None:
        """Tell the program that this process may run next what it is."""
        if _is_daemon:
            os.environ[VARIABLE] = str(os.getpid())

    exit.priority = 100  # type: ignore[attr-defined]  # children of other listeners need not see it

    def graceful(self) -> None:
        """Open those files of the streams anew that have been renamed or removed."""
        if not _is_daemon:
            return
        _flush()
        for stream, path in zip(STREAMS, self._paths(), strict=True):
            try:
                if not _has_name(stream, path):
                    _put(self._open(stream, path), stream)
            except EngineError as exc:
                self.engine.log(f"{exc}; it stays as it was", ERROR)

    def fork(self) -> None:
        """In a forked child: what is said to the keeper is the parent's to say."""
        self._let_go()

    def hand_over(self, uid: int, gid: int) -> None:
        """Give the files of the streams to the user that this process becomes."""
        if _is_daemon:
            for stream, path in ((1, self.stdout), (2, self.stderr)):
                hand_over(self.engine, stream, path, uid, gid)

    # -- from the terminal to the daemon --------------------------------------------------------

    def _open(self, stream: int, path: str) -> int:
        return _open(stream, path, 0o666 & ~self.umask)

    def _paths(self) -> tuple[str, str, str]:
        return self.stdin, self.stdout, self.stderr

    def _daemonize(self) -> None:
        others = [each for each in nets.engines() if each is not self.engine and each.owes_exit]
        if others:
            raise EngineError(
                "cannot daemonize: another engine of this process has started, and what it holds "
                f"names process {os.getpid()}; start it later than this one"
            )
        _fill_gaps()
        lost = _native_threads()
        try:
            for stream, path in zip(STREAMS, self._paths(), strict=True):
                self._files.append(self._open(stream, path))
            self.engine.alone(self._fork)
        finally:
            if not _is_daemon:
                self._let_go()
        if _is_daemon:
            self._settle(lost)

    def _settle(self, lost: list[str]) -> None:
        """In the daemon: watch how the start goes, and tell others where they are now."""
        self._tees = [_Tee("stdout", _Held(os.dup(1))), _Tee("stderr", _Held(os.dup(2)))]
        files, self._files = self._files, []
        for stream, descriptor in zip(STREAMS, files, strict=True):
            _put(descriptor, stream)
        for tee in self._tees:
            tee.begin()
        self.engine.observe(self._look, everything=False)
        self.engine.log(f"Daemonized: this is process {os.getpid()}", INFO)
        if lost:
            self.engine.log(
                f"{len(lost)} threads of C libraries did not survive the fork ({', '.join(lost)}); "
                "if something hangs from now on, import those libraries on `start`",
                WARNING,
            )
        self.engine.publish("detached")

    def _fork(self) -> None:
        """Return in the daemon, or where the process has been told to leave anyway."""
        global _is_daemon  # noqa: PLW0603  # as in _recognize
        engine = self.engine
        _flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if not engine.notes.times_told:
                _check_alone()
                self._keeper = _Held(_fork_twice(mask, engine.start_timeout, engine.stop_timeout))
                self._thread = threading.get_ident()
                _is_daemon = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _look(self, record: Record) -> None:
        """See how the start went."""
        if not isinstance(record, StateChanged):
            return
        if record.new == str(State.STARTED):
            self._say(STARTED)
        elif record.old == str(State.STOPPING) and self._is_stuck():
            self._say(STUCK)

    def _is_stuck(self) -> bool:
        """Whether another thread had to go on with the start, for its own never came back."""
        return threading.get_ident() != self._thread and not self.engine.alive

    def _say(self, word: str) -> None:
        if word == STARTED:
            self._leave_terminal()  # first: the launcher's return means that nobody writes there
        if self._keeper is not None and not self._keeper.write(word):
            self.engine.log(
                "the command that launched this daemon was killed: nobody was told of the start",
                WARNING,
            )
        self._let_go()

    def _leave_terminal(self) -> None:
        tees, self._tees = self._tees, []
        for tee in tees:
            tee.end()

    def _let_go(self) -> None:
        """Close what is held only until the engine is STARTED."""
        self.engine.unobserve(self._look)
        self._leave_terminal()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()
        while self._files:
            os.close(self._files.pop())

    def _enter_directory(self) -> None:
        """Go to the working directory; modules are still imported from where they were."""
        sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
        try:
            os.chdir(self.directory)
        except OSError as exc:
            raise EngineError(
                f"cannot go to the directory {self.directory}: {exc.strerror}; "
                "create it, or name another: Daemonizer(engine, directory='/srv/app')"
            ) from exc


class _Held:
    """
    A descriptor that is held while listeners run, who may close all that they find.

    Its number may be given to another file then, which must be neither written to nor closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._file = os.fstat(descriptor)

    def write(self, text: str) -> bool:
        """Write *text*; return whether somebody can read it."""
        try:
            if self._is_there():
                os.write(self._descriptor, text.encode(errors="backslashreplace"))
                return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close it, once."""
        if self._is_there():
            os.close(self._descriptor)
        self._descriptor = -1

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file)
        except OSError:
            return False


class _Tee:
    """
    A standard stream of Python's that for a while is written to the terminal as well.

    Args:
        name: Its name in sys.
        terminal: A descriptor of its own; children do not get it.
    """

    def __init__(self, name: str, terminal: _Held) -> None:
        self._name = name
        self._terminal = terminal
        self._file: Any = None

    def begin(self) -> None:
        """Take the place of the stream, also in the handlers of logging that have it already."""
        self._file = getattr(sys, self._name)
        self._replace(self._file, self)

    def end(self) -> None:
        """Give the place back, and leave the terminal; who still has this writes to the file."""
        self._replace(self, self._file)
        self._terminal.close()

    def write(self, text: str) -> "Any":
        """Write *text* to both."""
        self._terminal.write(text)
        return self._file.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all *lines* to both."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._file, name)

    def _replace(self, old: "Any", new: "Any") -> None:
        if getattr(sys, self._name) is old:
            setattr(sys, self._name, new)
        for handler in logging_handlers():
            if getattr(handler, "stream", None) is old:
                handler.setStream(new)


def _recognize() -> None:
    """See whether this program was begun by a daemon that restarted, and hide that from others."""
    global _is_daemon  # noqa: PLW0603  # state of the process is what it is
    if os.environ.pop(VARIABLE, "") == str(os.getpid()):
        _is_daemon = True


# -- what must hold before -----------------------------------------------------------------------


def _check_alone() -> None:
    """Refuse to fork what only the parent would go on with."""
    if running_loop() is not None:
        raise EngineError(
            "cannot daemonize: an event loop runs, which does not survive a fork; "
            "call engine.start() before asyncio.run(…)"
        )
    known = {thread.ident: thread.name for thread in threading.enumerate()}
    idents = set(sys._current_frames()) | set(known)
    names = [repr(known.get(each, f"thread {each}")) for each in idents - {threading.get_ident()}]
    if names:
        raise EngineError(
            f"cannot daemonize: threads do not survive a fork, and there are {len(names)} more: "
            f"{', '.join(sorted(names))}; start them on `start`, later than priority 10"
        )


def _fill_gaps() -> None:
    """Have descriptors 0 to 2 taken, lest a file of ours get one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) in STREAMS:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _open(stream: int, path: str, mode: int) -> int:
    """
    Return a descriptor of the file at *path*, for *stream*; do not wait for a pipe's reader.

    Args:
        stream: The number of the standard stream.
        path: The file; one that is written to is made if it is missing.
        mode: The rights that it then gets.

    Raises:
        EngineError: It cannot be opened.
    """
    name = ("stdin", "stdout", "stderr")[stream]
    flags = os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as exc:
        found = "nobody reads from that pipe" if exc.errno == errno.ENXIO else exc.strerror
        raise EngineError(
            f"cannot open {path} as {name}: {found}; "
            f"see that this user may, or name another: Daemonizer(engine, {name}=…)"
        ) from exc
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise EngineError(f"cannot open {path} as {name}: it is a directory; name a file")
    os.set_blocking(descriptor, True)
    return descriptor


def _has_name(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _put(descriptor: int, stream: int) -> None:
    """Put *descriptor* in the place of a standard stream; Python may not have had that one."""
    os.dup2(descriptor, stream)
    os.close(descriptor)
    name = ("stdin", "stdout", "stderr")[stream]
    if getattr(sys, name) is None:
        mode, errors = ("r", "strict") if stream == 0 else ("w", "backslashreplace")
        file = open(stream, mode, buffering=1, errors=errors, closefd=False)  # noqa: SIM115  # it stays
        setattr(sys, name, file)


def _flush() -> None:
    """Write what is buffered, lest it be written twice, or to another file."""
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except (AttributeError, OSError, ValueError):
            pass  # there is none, or nobody reads it any more


def _native_threads() -> list[str]:
    """Return the names of threads that Python does not know: a C library's. Linux only."""
    known = {str(thread.native_id) for thread in threading.enumerate()}
    names = []
    try:
        for thread in set(os.listdir("/proc/self/task")) - known:
            with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
                names.append(file.read().strip())
    except OSError:
        pass  # another platform, or the thread has just ended
    return names


# -- three processes -----------------------------------------------------------------------------


def _fork_twice(mask: "set[signal.Signals | int]", start_limit: float, stop_limit: float) -> int:
    """
    Return in the daemon: the pipe on which to say how the start went.

    Args:
        mask: The signals to block afterwards; here all are.
        start_limit: Seconds that the start may take.
        stop_limit: Seconds that the daemon has to end, once nothing starts any more.

    Raises:
        EngineError: No process can be forked.
    """
    launcher_pid = os.getpid()
    told, tell = os.pipe()
    watched, hold = os.pipe()  # the launcher holds one end for as long as it wants the daemon
    on_child = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would lose the exit code
    try:
        keeper = os.fork()
    except OSError as exc:
        _close(told, tell, watched, hold)
        _restore(signal.SIGCHLD, on_child)
        raise EngineError(f"cannot daemonize: no process can be forked: {exc.strerror}") from exc
    if keeper:
        _close(told, tell, watched)
        _leave(partial(_launch, keeper, hold, mask))
    os.close(hold)
    os.setsid()
    try:
        daemon = os.fork()
    except OSError as exc:
        _leave(partial(_complain, f"no process can be forked: {exc.strerror}", 1))
    if daemon:
        os.close(tell)
        _leave(_Keeper(daemon, told, watched, start_limit, stop_limit).wait)
    _close(told, watched)
    _restore(signal.SIGCHLD, on_child)
    for name in NAMES_US:
        if os.environ.get(name) == str(launcher_pid):
            os.environ[name] = str(os.getpid())
            os.environ.pop("LISTEN_PIDFDID", None)  # says the same by a number that only that had
    return tell


def _launch(keeper: int, hold: int, mask: "set[signal.Signals | int]") -> int:
    """In the launcher: return the keeper's exit code; if interrupted, have the daemon ended."""
    interrupts: list[int] = []
    ends = [signum for name in ENDS if not _is_ignored(signum := getattr(signal, name))]

    def interrupt(signum: int, frame: object) -> None:
        interrupts.append(signum)
        os.close(hold)
        for each in ends:
            signal.signal(each, signal.SIG_DFL)  # the second one ends this process at once

    _forget_handlers()
    for signum in ends:
        signal.signal(signum, interrupt)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
    if interrupts and code:
        os.kill(os.getpid(), interrupts[0])
    if code < 0:
        who = f"process {keeper}, which waited for the daemon to start,"
        return _complain(f"{who} was killed by {_name(-code)}; see whether it runs", 128 - code)
    return code


class _Keeper:
    """
    Waits for the daemon, and finds the launcher's exit code.

    Args:
        daemon: The process, a child.
        told: The pipe on which it says how its start went.
        watched: The pipe that ends with the launcher.
        start_limit: Seconds that the start may take.
        stop_limit: Seconds that the daemon has to end, once nothing starts any more.
    """

    def __init__(
        self, daemon: int, told: int, watched: int, start_limit: float, stop_limit: float
    ) -> None:
        self._daemon = daemon
        self._told = told
        self._watched = watched
        self._start_limit = start_limit
        self._stop_limit = stop_limit
        self._deadline = NEVER
        self._why = ""  # the daemon has been told to end

    def wait(self) -> int:
        """Return the launcher's exit code, once the daemon has started or ended."""
        bell = _bell_for_children()
        os.set_blocking(self._told, False)
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(self._told, select.POLLIN)
        poll.register(self._watched, 0)  # that it ends is told all the same
        while True:
            ended, status = os.waitpid(self._daemon, os.WNOHANG)
            said = _read(self._told)  # only now: what was said before the end is there
            if said == STARTED and not self._why:
                return 0
            if ended:
                return self._outcome(os.waitstatus_to_exitcode(status))
            if said == STUCK:
                self._end("a listener never returned", self._stop_limit)
            if monotonic() >= self._deadline and not self._end_by_force():
                return 1
            rest = self._deadline - monotonic()
            for descriptor, event in poll.poll(None if rest == NEVER else max(rest, 0) * 1000):
                if descriptor == bell:
                    os.read(bell, 100)
                elif event & select.POLLHUP:
                    poll.unregister(descriptor)
                    self._hung_up(descriptor)

    def _hung_up(self, descriptor: int) -> None:
        if descriptor == self._watched:
            limit = self._start_limit + self._stop_limit
            self._end("the command that launched it was interrupted", limit)
        elif not self._why:
            self._deadline = monotonic() + MOMENT

    def _end(self, why: str, limit: float) -> None:
        """Tell the daemon to end within *limit* seconds."""
        if not self._why:
            os.kill(self._daemon, signal.SIGTERM)
        self._why, self._deadline = why, min(self._deadline, monotonic() + limit)

    def _end_by_force(self) -> bool:
        """End a daemon that should have ended; return whether there is one to wait for."""
        if not self._why:
            _complain(
                f"process {self._daemon} runs, but will never tell whether it has started: amid "
                "its start it began another program, or closed all its descriptors"
            )
            return False
        _complain(f"process {self._daemon} did not end when it was told to ({self._why}): killed")
        os.kill(self._daemon, signal.SIGKILL)
        self._deadline = NEVER
        return True

    def _outcome(self, code: int) -> int:
        """Return the launcher's exit code for a daemon that ended with *code*."""
        because = f": {self._why}" if self._why else ""
        if code < 0:
            text = f"process {self._daemon} was killed by {_name(-code)}, not yet started{because}"
            return _complain(text, 128 - code)
        if code == 0:
            return _complain(f"process {self._daemon} ended before it had started{because}", 1)
        return code


def _bell_for_children() -> int:
    """Return a descriptor that can be read when a child has ended; block all other signals."""
    bell, ring = os.pipe()
    os.set_blocking(ring, False)
    _forget_handlers()
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGCHLD})
    return bell


def _read(told: int) -> str:
    """Return what the daemon said, if it said something."""
    try:
        return os.read(told, 100).decode()
    except BlockingIOError:
        return ""


def _leave(work: "Callable[[], int]") -> "NoReturn":
    """End this process with the code that *work* returns; never go back to the program."""
    code = 1
    try:
        code = work()
    except BaseException:
        last_resort("the launch of a daemon")
    finally:
        os._exit(code)


def _complain(text: str, code: int = 1) -> int:
    """Say *text* in the terminal; return *code*."""
    try:
        os.write(2, f"no daemon: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody reads it
    return code


def _forget_handlers() -> None:
    """Have no code of the program run for a signal: it is the daemon's."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_IGN)


def _is_ignored(signum: int) -> bool:
    return signal.getsignal(signum) is signal.SIG_IGN


def _restore(signum: int, handler: "Any") -> None:
    if handler is not None:  # None: one that is written in C, which cannot be set
        signal.signal(signum, handler)


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
