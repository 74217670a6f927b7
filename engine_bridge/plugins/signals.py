"""
SignalHandler: what an operator's signals ask of the engine.

A handler that was there before is called as well; under a server it is the server's, and decides
when the process leaves. `core/signals.py` tells how that is kept safe at any moment.
"""

import signal
import sys
from collections.abc import Callable

from engine_bridge.core import signals
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError, RestartRefused
from engine_bridge.core.records import INFO, WARNING
from engine_bridge.core.stacks import dump
from engine_bridge.plugins.base import Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SignalHandler(Plugin):
    """
    Publish a channel for each signal, named like it.

    `handlers` maps names of signals to listeners; it is plain data, change it before `subscribe()`.
    None in the place of a listener leaves the signal alone.

    | signal | in a script | in a process of a server |
    |---|---|---|
    | SIGTERM, SIGINT | exit; the second ends the drain, the third kills | drain, it decides |
    | SIGHUP | restart when detached, exit when the terminal went away | the same |
    | SIGUSR1 | graceful | graceful |
    | SIGUSR2 | stacks of all threads and tasks to the log | the same, where it is free |

    A script in `block` returns from it. What else its main thread does is unwound: by
    SystemExit(143) for SIGTERM, a start that is aborted included, by KeyboardInterrupt for SIGINT.

    Raises:
        EngineError: A name in `handlers` is not a signal's.
    """

    channels = (*Plugin.channels, "detached")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.handlers: dict[str, Callable[[], Any] | None] = {
            "SIGTERM": self.handle_SIGTERM,
            "SIGINT": self.handle_SIGTERM,
            "SIGHUP": self.handle_SIGHUP,
            "SIGUSR1": engine.graceful,
            "SIGUSR2": self.handle_SIGUSR2,
        }
        for name in [name for name in self.handlers if not hasattr(signal, name)]:
            del self.handlers[name]  # Windows has fewer
        self._tty = _is_terminal()
        self._claims: dict[int, int] = {}

    def subscribe(self) -> None:
        """Install the handlers, and have each signal's listener called on its channel."""
        numbers = {name: number_of(name) for name in self.handlers}
        super().unsubscribe()
        before, self._claims = self._claims, {}
        for name, listener in self.handlers.items():
            if listener is None:
                continue
            signum = numbers[name]
            if listener == self.handle_SIGUSR2 and not _is_free(signum):
                continue
            self.listen(name, listener)
            self._claims[signum] = signals.LEAVES if self._leaves(listener) else signals.DECIDES
            if not signals.watch(self.engine, signum, self._claims[signum]):
                self.engine.log(*_why_not(name, signum))
        for signum in before.keys() - self._claims.keys():
            signals.unwatch(self.engine, signum)
        super().subscribe()

    def unsubscribe(self) -> None:
        """Put back the handlers that are still ours, and listen no more."""
        super().unsubscribe()
        while self._claims:
            signals.unwatch(self.engine, self._claims.popitem()[0])

    def start(self) -> None:
        """Install again what a server, or the end of an earlier life, has taken away."""
        for signum, claim in self._claims.items():
            signals.watch(self.engine, signum, claim)

    start.priority = 1  # type: ignore[attr-defined]  # a signal during the start is heard

    def detached(self) -> None:
        """Be told that this process has left its terminal: SIGHUP means restart from now on."""
        self._tty = False
        for name, listener in self.handlers.items():
            signum = number_of(name)
            if listener == self.handle_SIGHUP and signum in self._claims:
                self._claims[signum] = signals.DECIDES
                signals.watch(self.engine, signum, signals.DECIDES)

    def _leaves(self, listener: "Callable[[], Any]") -> bool:
        """Whether *listener* makes a script end, so that its main thread must leave as well."""
        if listener == self.handle_SIGHUP:
            return self._tty
        return listener in (self.handle_SIGTERM, self.engine.exit)

    def handle_SIGTERM(self) -> None:  # noqa: N802  # CherryPy's way to name it
        """Exit, if the process is ours; under a server the core drains and the server leaves."""
        if self.engine.owns_process:
            try:
                self.engine.exit()
            except ChannelFailures:
                pass  # each failure is in the log, and `block` raises them

    def handle_SIGHUP(self) -> None:  # noqa: N802  # as in CherryPy
        """Restart a detached process; exit when the terminal went away."""
        if self._tty:
            self.engine.log("SIGHUP: the terminal went away, exiting", INFO)
            self.handle_SIGTERM()
            return
        try:
            self.engine.restart()
        except RestartRefused as exc:
            self.engine.log(f"SIGHUP: no restart: {exc}", WARNING)

    def handle_SIGUSR2(self) -> None:  # noqa: N802  # as its neighbours
        """Write the stacks of all threads and tasks, and the engine's last records, to the log."""
        self.engine.log(dump(self.engine), WARNING)


def number_of(name: str) -> int:
    """
    Return the number of the signal *name*.

    Raises:
        EngineError: There is no such signal.
    """
    number = getattr(signal, str(name), None)
    if not isinstance(number, signal.Signals):
        known = ", ".join(entry.name for entry in signal.Signals)
        raise EngineError(f"no signal {name!r} on this system; known: {known}")
    return int(number)


def _is_free(signum: int) -> bool:
    """Whether nobody uses *signum* yet."""
    present = signal.getsignal(signum)
    return present is signal.SIG_DFL or isinstance(present, signals.Handler)


def _why_not(name: str, signum: int) -> tuple[str, int]:
    """Say why no handler is installed, and how loud that must be said."""
    present = signal.getsignal(signum)
    if present is signal.SIG_IGN:
        return f"{name} was ignored when this process began, e.g. by nohup, and stays so", INFO
    if present is None:
        return f"no handler for {name}: code written in C has one, which is left alone", WARNING
    if signum in (getattr(signal, "SIGKILL", 0), getattr(signal, "SIGSTOP", 0)):
        return f"no handler for {name}: the system lets nobody catch it", WARNING
    text = f"no handler for {name}: only the main thread can install it"
    return f"{text}; subscribe the SignalHandler there", WARNING


def _is_terminal() -> bool:
    """Whether somebody sits in front of this process; a closed or missing stdin says no."""
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:
        return False
