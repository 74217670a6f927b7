"""
Systemd: tell the service manager what the engine does, and take the sockets that it hands over.

It speaks the protocol of sd_notify(3) itself: lines of `NAME=value` in one datagram to the socket
that $NOTIFY_SOCKET names. Without that variable it does nothing at all.

Three things are easily got wrong:

1. STOPPING=1 is final: systemd counts from there to its stop timeout, and then kills. So it is said
   when the process leaves, not when an engine stops that a script may start again; a restart says
   RELOADING=1 instead, and the new process READY=1.
2. Only one process may speak, the one that systemd watches. A worker says nothing, nor does a fork.
3. The manager may be slow, or gone. Nothing waits for it; what its queue had no room for is sent
   later, in order.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic, monotonic_ns

from engine_bridge.core.bus import describe
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError, StartAborted
from engine_bridge.core.flag import call_soon
from engine_bridge.core.host import LISTEN_FDS_START
from engine_bridge.core.records import (
    DEBUG,
    WARNING,
    Draining,
    ListenerFinished,
    ListenerSlow,
    Record,
    SignalCaught,
    StateChanged,
)
from engine_bridge.core.states import State
from engine_bridge.plugins.base import Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

PULSES = 10  # in the time that each extension gives: a machine may be busy
RETRY = 0.5  # seconds; no event tells that a datagram socket has room for us
KEPT = 20  # messages that wait for room; all that matters is among the last
LONGEST = 500  # characters of a line; systemd ignores a datagram of more than 4096 bytes

READY, RELOADING, STOPPING = "READY=1", "RELOADING=1", "STOPPING=1"
DRAINING = "DRAINING"  # beside the names of the states
WORDS = {
    "STARTING": "starting",
    DRAINING: "draining",
    "STOPPING": "stopping",
    "STOPPED": "stopped",
    "EXITING": "stopping",
}


class Systemd(Plugin):
    """
    Report to systemd, or whoever else has set $NOTIFY_SOCKET.

    READY=1 once the engine is STARTED; RELOADING=1 and READY=1 around `graceful`, and around a
    restart; STOPPING=1 when the process begins to leave; STATUS= with each change, for `systemctl
    status`. With WatchdogSec= in the unit, WATCHDOG=1 at half that interval.

    The watchdog is fed while the process could still do its work: no listener has been left behind,
    the engine's lock can be had, and the event loop on which async listeners run goes round. A
    transition counts as work as long as its present listener is within its limit.

    Args:
        engine: The engine to report on.
        extend: Seconds that a slow start or stop asks systemd for, again and again, while its
            present listener is within its limit; 0 leaves systemd's own limits alone.
        check: What else must hold for the watchdog to be fed: a function that is called in a thread
            of the plugin's own, at half the interval. False, an exception, or no answer at all,
            means that systemd is to end the process.

    Raises:
        EngineError: An argument is not what it should be.

    Source:
        sd_notify(3), sd_watchdog_enabled(3); systemd.service(5), NotifyAccess= and Type=.
    """

    channels = ("start", "exit", "fork")

    def __init__(
        self,
        engine: Engine,
        *,
        extend: float = 10.0,
        check: "Callable[[], object] | None" = None,
    ) -> None:
        super().__init__(engine)
        _check_arguments(extend, check)
        self._extend = extend
        self._check = check
        self._address = ""  # of $NOTIFY_SOCKET
        self._invoked_pid = 0  # the process that systemd started; 0: it does not say
        self._pid = 0
        self._interval = 0.0  # seconds between two WATCHDOG=1
        self._forget_process()

    def _forget_process(self) -> None:
        self._lock = threading.RLock()  # a signal handler may publish where it is held
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_fork = False
        self._phase = ""  # what was told last: a state, or DRAINING
        self._announced = ""  # RELOADING=1 or STOPPING=1, on the way out of this life
        self._failure = ""  # of the start
        self._status = ""
        self._reloads = 0
        self._unsent: list[str] = []
        self._complaints: list[str] = []
        self._is_unheard = False
        self._is_starving = False
        self._next_beat = self._next_pulse = 0.0
        self._asked_loop: Any = None  # which has not answered yet

    def subscribe(self) -> None:
        """Read the environment, and report from now on; without $NOTIFY_SOCKET do nothing."""
        if self._read in self.engine.observers:
            return
        text = os.environ.get("NOTIFY_SOCKET", "")
        if not text:
            return
        if text[0] not in "/@":
            self.engine.log(
                f"NOTIFY_SOCKET={text!r} is neither a path from / nor a name with @; "
                "the service manager is told nothing",
                WARNING,
            )
            return
        self._forget_process()
        self._address = text
        self._invoked_pid = _number("SYSTEMD_EXEC_PID")
        self._pid = os.getpid()
        self._interval = watchdog_seconds() / 2
        super().subscribe()
        self.listen("graceful", self.begin_reload, -inf)
        self.listen("graceful", self.end_reload, inf)
        self.engine.observe(self._read, everything=False)
        if self.engine.state is State.STARTED:
            self.start()
            self._tell_change("STARTED")

    def unsubscribe(self) -> None:
        """Report no more, and end the thread."""
        super().unsubscribe()
        self.engine.unobserve(self._read)
        self._end_thread()

    # -- channels -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work beside the transitions, now that nobody will fork any more."""
        if self._why_silent() or (self._thread is not None and self._thread.is_alive()):
            return
        self._wake = threading.Event()
        self._thread = threading.Thread(
            target=self._main, args=(self._wake,), name="engine systemd", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as exc:  # the limit of the system is reached
            self.engine.log(
                f"the watchdog is not fed, and no slow listener gets more time: {exc}", WARNING
            )

    start.priority = 11  # type: ignore[attr-defined]  # once daemonized: a fork loses its threads

    def exit(self) -> None:
        """End the thread; a new process that follows has a whole interval to come up in."""
        if self._interval and self.engine.restarting and not self._why_silent():
            with self._turn():
                self._send("WATCHDOG=1")
        self._end_thread()

    exit.priority = inf  # type: ignore[attr-defined]  # exit listeners may be slow as well

    def fork(self) -> None:
        """In a forked child: be silent, for systemd watches the parent."""
        self._forget_process()
        self._is_fork = True

    def begin_reload(self) -> None:
        """Say RELOADING=1: `graceful` has been published, nobody has heard it yet."""
        with self._turn():
            self._reloads += 1
            if self._reports_reloads():
                self._say(*_reloading(), status="reloading")

    def end_reload(self) -> None:
        """Say READY=1: all who listen to `graceful` have done so, in all threads."""
        with self._turn():
            self._reloads -= 1
            if not self._reloads and self._reports_reloads():
                self._say(READY, status=self._now())

    def _reports_reloads(self) -> bool:
        return self._phase == "STARTED" and not self._why_silent()

    # -- what happens -------------------------------------------------------------------------

    def _read(self, record: Record) -> None:
        if isinstance(record, ListenerFinished | ListenerSlow):
            self._note_failure(record)
        elif isinstance(record, StateChanged | Draining | SignalCaught):
            phase = DRAINING if isinstance(record, Draining) else getattr(record, "new", "")
            self._tell_change(phase)
            self._wake.set()

    def _note_failure(self, record: ListenerFinished | ListenerSlow) -> None:
        """Remember why the start failed; it is told with the state that follows."""
        if record.channel != "start" or self._failure:
            return
        if isinstance(record, ListenerSlow):
            if record.left_behind:
                self._failure = f"{record.listener} still ran after {record.seconds:.1f} s"
        elif record.error is not None and not isinstance(record.error, StartAborted):
            self._failure = f"{record.listener}: {type(record.error).__name__}: {record.error}"
            number = _errno(record.error)
            if number:
                with self._turn():
                    if not self._why_silent():
                        self._say(f"ERRNO={number}", status=f"start failed: {self._failure}")

    def _tell_change(self, phase: str) -> None:
        """Tell that *phase* has begun; empty: that something else may have changed."""
        if phase == "STARTING":
            self._failure = self._announced = self._status = ""
        silent = self._why_silent()
        if silent:
            if phase == "STARTING":
                self.engine.log(silent, DEBUG)
            return
        with self._turn():
            if phase:
                self._phase = phase
                self._next_pulse = monotonic() + self._extend / PULSES
            if phase == "STARTED":
                self._say(READY, *self._main_pid(), status=self._now())
            elif self._phase:
                self._say(*self._last_word(), status=self._now())

    def _why_silent(self) -> str:
        """Return why it is not this process that speaks; empty if it is."""
        pid, host = os.getpid(), self.engine.host
        if self._is_fork:
            return "systemd is told nothing by this process: it watches the one that forked it"
        if pid == self._invoked_pid or host is None or host.main_pid == pid:
            return ""
        return (
            f"systemd is told nothing by this {host.role}: it watches process {host.main_pid}, "
            "and hears no other (NotifyAccess=main)"
        )

    def _main_pid(self) -> list[str]:
        """Return the line that is needed where systemd has started another process than this."""
        pid = os.getpid()
        return [] if pid == (self._invoked_pid or self._pid) else [f"MAINPID={pid}"]

    def _last_word(self) -> list[str]:
        """Return what is to be said, once, when this life ends with its process."""
        if self._announced == STOPPING or not self._leaves():
            return []
        word = RELOADING if self.engine.restarting else STOPPING
        if word == self._announced:
            return []
        self._announced = word
        return [STOPPING] if word == STOPPING else _reloading()

    def _leaves(self) -> bool:
        """Whether the process is on its way out, as far as the engine knows."""
        if self._phase == "EXITING" or self._announced:
            return True
        if self._phase != DRAINING:
            return False
        progress = self.engine.progress
        exits = progress is not None and progress.kind == "exit"
        return exits or not self.engine.owns_process

    def _now(self, listener: str = "") -> str:
        """Return one line on what the engine does, as far as its change was told."""
        if self._failure and self._phase != "STARTED":
            return f"start failed: {self._failure}"
        if self._phase == "STARTED":
            return "reloading" if self._reloads else "serving"
        text = "stopping" if self._announced else WORDS[self._phase]
        if self._phase == DRAINING:
            text = f"draining, {self.engine.in_flight} in flight"
        if self._announced == RELOADING:
            text = f"restarting: {text}"
        return f"{text}: {listener}" if listener else text

    # -- beside what happens ------------------------------------------------------------------

    def _main(self, wake: threading.Event) -> None:
        self._next_beat = monotonic()
        while self._wake is wake:
            if self._interval and monotonic() >= self._next_beat:
                self._next_beat = monotonic() + self._interval
                self._feed()
            with self._turn():
                if self._wake is not wake:
                    return
                self._pulse()
                self._flush()
                pause = self._pause()
            wake.wait(pause)
            wake.clear()

    def _end_thread(self) -> None:
        """Have the thread end; it may be in a `check` that never returns."""
        wake, self._wake = self._wake, threading.Event()
        wake.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread.ident and thread is not threading.current_thread():
            thread.join(RETRY)

    def _pause(self) -> float | None:
        """Return the seconds until something is due; None: not before something happens."""
        due = []
        if self._interval:
            due.append(max(self._next_beat - monotonic(), 0))
        if self._extend and (self.engine.in_transition or self._phase == DRAINING):
            due.append(max(self._next_pulse - monotonic(), 0))
        if self._unsent:
            due.append(RETRY)
        return min(due, default=None)

    def _pulse(self) -> None:
        """Ask for more time, and name the listener that takes it."""
        if self._unsent or not self._extend or monotonic() < self._next_pulse:
            return
        pause = self._extend / PULSES
        self._next_pulse = monotonic() + pause
        progress = self.engine.progress
        if progress is not None:
            slow = progress.listener if progress.seconds >= pause else ""
            extension = f"EXTEND_TIMEOUT_USEC={self._extend * 1e6:.0f}"
            self._say(*([extension] if progress.left > 0 else []), status=self._now(slow))
        elif self._phase == DRAINING:
            self._say(status=self._now())

    def _feed(self) -> None:
        """Send WATCHDOG=1, or have the event loop send it, unless something is wrong."""
        starving = self._why_starving()
        if not starving:
            self._is_starving = False
        elif not self._is_starving:
            from engine_bridge.core.stacks import dump

            self._is_starving = True
            self.engine.log(
                f"systemd's watchdog is not fed, and ends this process: {starving}\n"
                + dump(self.engine),
                WARNING,
            )

    def _why_starving(self) -> str:
        engine = self.engine
        progress = engine.progress
        if not engine.answers(self._interval):
            return "a thread sits on the engine's lock"
        if progress is None or progress.left <= 0:
            if not (engine.alive or engine.restarting):
                return "a listener has not returned" if engine.state is not State.EXITING else ""
            if self._check is not None:
                try:
                    if not self._check():
                        return f"{describe(self._check)} says that the process is not alive"
                except Exception as exc:
                    return f"{describe(self._check)} raised {type(exc).__name__}: {exc}"
            loop = engine.loop
            if loop is not None:
                if loop is self._asked_loop:
                    return f"the event loop has not gone round for {self._interval:g} s"
                self._asked_loop = loop
                call_soon(loop, self._beat)
                return ""
        self._beat()
        return ""

    def _beat(self) -> None:
        self._asked_loop = None
        with self._turn():
            self._send("WATCHDOG=1")

    # -- datagrams ----------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one thread speak at a time; what went wrong is logged when it has finished."""
        with self._lock:
            yield
            complaints, self._complaints = self._complaints, []
        for text in complaints:
            self.engine.log(text, WARNING)

    def _say(self, *lines: str, status: str) -> None:
        """Send *lines*, and *status* if it is a new one, in one datagram."""
        status = _one_line(status)
        if status != self._status:
            self._status = status
            lines = (*lines, f"STATUS={status}")
        if lines:
            self._unsent = [*self._unsent[-KEPT:], "\n".join(lines)]
            self._flush()

    def _flush(self) -> None:
        """Send what waits, in order, as far as there is room."""
        while self._unsent:
            if not self._send(self._unsent[0]):
                return
            del self._unsent[:1]

    def _send(self, message: str) -> bool:
        """Send *message*; return whether there is nothing more to be done about it."""
        import socket

        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(errors="backslashreplace"), self._where())
        except BlockingIOError:
            self._complain("its queue is full, what is to be said is sent later")
            return False
        except OSError as exc:
            self._complain(exc.strerror or str(exc))
            return True
        self._is_unheard = False
        return True

    def _where(self) -> str:
        """Return the address as the system wants it: an abstract name begins with a null byte."""
        return "\0" + self._address[1:] if self._address[0] == "@" else self._address

    def _complain(self, why: str) -> None:
        if not self._is_unheard:
            self._is_unheard = True
            self._complaints.append(
                f"the service manager does not hear us at {self._address}: {why}"
            )


def watchdog_seconds() -> float:
    """
    Return after how many seconds without a WATCHDOG=1 this process is killed; 0: never.

    Source:
        sd_watchdog_enabled(3).
    """
    pid = os.environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return 0.0
    return _number("WATCHDOG_USEC") / 1e6


def _number(variable: str) -> int:
    """Return the number that an environment variable holds; 0 for anything else."""
    text = os.environ.get(variable, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0  # 64 bits


def _reloading() -> list[str]:
    """
    Return the lines that begin a reload.

    Source:
        sd_notify(3): the time tells systemd whether the reload came after its request.
    """
    return [RELOADING, f"MONOTONIC_USEC={monotonic_ns() // 1000}"]


def _one_line(text: str) -> str:
    """Return *text* without anything that would begin another assignment."""
    return "".join(char if char.isprintable() else " " for char in text)[:LONGEST]


def _errno(error: BaseException | None) -> int:
    """Return what the system said, if it is behind *error*; else 0."""
    while error is not None:
        number = getattr(error, "errno", None) if isinstance(error, OSError) else None
        if number:
            return int(number)
        error = error.__cause__
    return 0


# -- sockets that were handed over ---------------------------------------------------------------

_handed_over: "dict[str, list[socket.socket]] | None" = None  # kept, or they would be closed


def listen_sockets() -> "dict[str, list[socket.socket]]":
    """
    Return the sockets that a service manager has handed to this process, by name.

    The name is what FileDescriptorName= in the socket unit says, by default that of the unit;
    `unknown` where the manager gives none. Called again it returns the same sockets. They are not
    inherited by programs that are run from here, but stay open over `Engine.restart()`: so leave
    them open. What is handed over and is no socket is left alone.

    Raises:
        EngineError: The variables do not fit together, or not to what is open.

    Source:
        sd_listen_fds_with_names(3).
    """
    global _handed_over  # noqa: PLW0603  # what a process was given is global to it
    pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    if not pid or not count:
        return {}
    if not _is_number(pid):
        raise _unfit("LISTEN_PID", "is not the number of a process")
    if int(pid) != os.getpid():
        return {}
    if _handed_over is None:
        _handed_over = _take(count, os.environ.get("LISTEN_FDNAMES", ""))
    return {name: list(sockets) for name, sockets in _handed_over.items()}


def _take(count: str, names: str) -> "dict[str, list[socket.socket]]":
    import socket

    if not _is_number(count):
        raise _unfit("LISTEN_FDS", "is not a number of descriptors")
    descriptors = range(LISTEN_FDS_START, LISTEN_FDS_START + int(count))
    named = names.split(":") if names else []
    if named and len(named) != len(descriptors):
        raise _unfit("LISTEN_FDNAMES", f"does not name {len(descriptors)} descriptors")
    for descriptor in descriptors:  # all of them before there is any object that closes one
        try:
            os.set_inheritable(descriptor, False)
        except OSError as exc:
            raise _unfit("LISTEN_FDS", f"counts descriptor {descriptor}, which is closed") from exc
    found: dict[str, list[socket.socket]] = {}
    for descriptor in descriptors:
        try:
            taken = socket.socket(fileno=descriptor)
        except OSError:
            continue  # a pipe, a device, or what the process itself has stored with the manager
        name = named[descriptor - LISTEN_FDS_START] if named else "unknown"
        found.setdefault(name, []).append(taken)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _unfit(variable: str, what: str) -> EngineError:
    return EngineError(
        f"{variable}={os.environ.get(variable)!r} {what}; "
        "unset the LISTEN_ variables, or have a socket unit start this program"
    )


def _check_arguments(extend: object, check: object) -> None:
    is_number = isinstance(extend, int | float) and not isinstance(extend, bool)
    if not is_number or not 0 <= extend < inf:  # type: ignore[operator]  # it is a number
        raise EngineError(f"Systemd(extend=…) wants seconds, 0 or more; got {extend!r}")
    if check is not None and not callable(check):
        raise EngineError(f"Systemd(check=…) wants a function to call, got {check!r}")
