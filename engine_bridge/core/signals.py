"""
Signals: note that one came, wake somebody who may act on it, leave the rest to who was there first.

A handler runs between any two bytecodes of the main thread, perhaps inside a lock that it would
need. So ours leaves a note and returns. Who reads it publishes the channel named after the signal
and then does what is left to do, which the handler has decided, by the predecessor that it found
and by what the engine claims:

- A callable predecessor, such as a server's handler, is called, and decides when the process
  leaves. We drain. uvicorn's can be held back for `drain_delay`, since it only sets attributes;
  that of Twisted, on which daphne serves, is held back until the engine has exited.
- SIG_DFL would kill: the handler sets SIG_DFL back, the engine drains and stops, and sends the
  signal again. The exit status is what it would have been; a second signal kills at once.
- SIG_IGN, or a handler installed from C, is left alone.
- `SignalHandler` claims signals for a script, which owns its process. The listeners decide; where
  they leave, the main thread must too. In `block` it returns, once the exit is complete. Elsewhere
  it is unwound, by SystemExit(128 + number) or KeyboardInterrupt, and atexit waits for the exit.
  But not in the midst of our own code, which that would break: there it happens at the end of it,
  see `shielded` and `unwind`. So a start that is aborted ends a script with 143, without a trace.

Whatever the notes need must be in place before they are put: another thread may act at once.

Facts about servers are from their source, as measured for uvicorn 0.54, gunicorn 27 with
uvicorn-worker 0.4, hypercorn 0.18, daphne 4.2, waitress 3.0 and cheroot 11.1.
"""

import _thread
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial

from . import notes
from .errors import EngineError
from .notes import in_main_thread
from .records import ERROR, Message, SignalCaught
from .states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any, TypeVar

    from .engine import Engine
    from .lifecycle import Lifecycle

    Function = TypeVar("Function", bound=Callable[..., Any])

AGAIN = 0.01  # seconds between two tries to raise what was dropped
CHAINED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGABRT")
# The main loops of these servers drain on SystemExit, and atexit follows.
LEAVE_ON_SYSTEM_EXIT = ("waitress", "cheroot")

# What an engine claims. HEARS: nothing, it drains or stops in time. DECIDES: nothing happens but
# what the channel's listeners do. LEAVES: they leave; in a process of a server the same as HEARS.
HEARS, DECIDES, LEAVES = range(3)

Leave = Callable[["Engine"], object]

_watchers: "dict[int, tuple[tuple[weakref.ref[Engine], int], ...]]" = {}
_changing = threading.Lock()  # of _watchers; never taken in a handler
_owed: "dict[int, set[Engine]]" = {}  # signals to send again once these engines have stopped
_passing: set[int] = set()  # signals that a predecessor handles at this moment
_put_off: "deque[tuple[Handler, int]]" = deque()  # those that came meanwhile
_raised: "dict[int, tuple[int, BaseException]]" = {}  # by identity, what our handlers raised
_dropped: list[BaseException] = []  # of those, what nobody got
_is_again = False  # whether the next signal is one that we send for those
_unwinding: list[BaseException] = []  # what unwinds the main thread when it leaves our code
_shielded: "set[CodeType]" = set()
_quitting: "weakref.WeakSet[Any]" = weakref.WeakSet()  # uvicorn's servers that SIGQUIT has told


class Handler:
    """What we install for a signal, around the handler that was there."""

    def __init__(self, predecessor: "Any") -> None:
        self.predecessor = predecessor
        self._held_for: set[Engine] = set()

    def __call__(self, signum: int, frame: "FrameType | None") -> None:
        """Note that *signum* came, and do what must be done here and now."""
        if _is_again:
            _raise_again(frame)
            return
        caught = _Caught(signum)
        if not caught.engines:
            self._stand_aside(signum, frame)
        elif callable(self.predecessor) and not (
            self.predecessor is signal.default_int_handler and caught.claim != HEARS
        ):
            self._for_server(caught, frame)
        elif caught.claim == DECIDES:
            caught.note()
        elif caught.claim == LEAVES:
            _for_script(caught, frame)
        else:
            self._for_default(caught, frame)

    def _stand_aside(self, signum: int, frame: "FrameType | None") -> None:
        """Be as good as not there."""
        if self.predecessor is signal.default_int_handler:
            _unwind_main(signum, frame)
        elif callable(self.predecessor):
            self._call_predecessor(signum, frame)
        else:
            _default(signum)

    def _for_server(self, caught: "_Caught", frame: "FrameType | None") -> None:
        self._held_for = set()
        if caught.times == 1 and self.can_hold():
            leaving = (engine for engine, claim in caught.engines.items() if claim != DECIDES)
            cuts_off = _is_twisted(self._server)
            self._held_for = {engine for engine in leaving if cuts_off or engine.drain_delay}
        caught.note(partial(self._leave_to_server, caught.signum), by=(HEARS, LEAVES))
        if not self._held_for:
            self._call_predecessor(caught.signum, frame)

    def _leave_to_server(self, signum: int, engine: "Engine") -> None:
        """Drain, since the server decides when to go; a start it cannot interrupt is aborted."""
        try:
            if engine.state is State.STARTED and signum != getattr(signal, "SIGABRT", None):
                engine.drain()
                if engine in self._held_for:  # else the server leaves already
                    engine.pause_for_drain_delay()
                if engine in self._held_for and _is_twisted(self._server):
                    engine.exit()
            else:
                engine.exit()
        finally:
            self._release(signum, engine)

    def can_hold(self) -> bool:
        """Whether the predecessor can be called later, from any thread: theirs can."""
        return _is_uvicorn(self._server) or _is_twisted(self._server)

    @property
    def _server(self) -> object:
        return getattr(self.predecessor, "__self__", None)

    def _release(self, signum: int, engine: "Engine") -> None:
        """Call the predecessor that was held back, unless a second signal has."""
        try:
            self._held_for.remove(engine)
        except KeyError:
            return
        if not self._held_for:
            _before_server_handler(signum)
            self.predecessor(signum, None)
            _after_server_handler(signum)

    def _call_predecessor(self, signum: int, frame: "FrameType | None") -> None:
        """
        Call it, though not inside that of another signal: servers' handlers take locks.

        On Ctrl-C a gunicorn worker gets SIGINT and, a moment later, SIGQUIT from the main process;
        both shut down gthread's pool, which does not bear it twice at a time. SIGABRT is for a
        worker that hangs, perhaps in such a handler.
        """
        if signum in _passing:
            self._call(signum, frame)
        elif _passing and signum != signal.SIGABRT:
            _put_off.append((self, signum))
            return
        else:
            self._call_predecessors_in_turn(signum, frame)
        _after_server_handler(signum)

    def _call_predecessors_in_turn(self, signum: int, frame: "FrameType | None") -> None:
        _passing.add(signum)
        try:
            self._call(signum, frame)
        finally:
            _passing.discard(signum)
            if _put_off and not _passing:
                handler, signum = _put_off.popleft()
                handler._call_predecessor(signum, frame)

    def _call(self, signum: int, frame: "FrameType | None") -> None:
        _before_server_handler(signum)
        try:
            self.predecessor(signum, frame)
        except SystemExit as exc:  # gunicorn's, on SIGQUIT
            if not _amid_our_code(frame):
                raise
            _unwinding.append(exc)

    def _for_default(self, caught: "_Caught", frame: "FrameType | None") -> None:
        signum = caught.signum
        if signum == signal.SIGTERM and _hypercorn_drains():
            caught.note(partial(self._leave_to_server, signum))
        elif signum == signal.SIGTERM and _runs_in(frame, LEAVE_ON_SYSTEM_EXIT):
            caught.note(partial(self._leave_to_server, signum))
            _raise(signum, _end_by(signum))
        else:
            _owed[signum] = set(caught.engines)
            signal.signal(signum, signal.SIG_DFL)
            caught.note(_exit_and_settle)


class _Caught:
    """One signal that came, and the engines that it concerns."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        self.engines: dict[Engine, int] = {}  # and what they claim
        self.claim = HEARS  # the strongest
        for reference, claimed in _watchers.get(signum, ()):
            engine = reference()
            if engine is None or not _concerns(engine, claimed):
                continue
            claim = HEARS if claimed == LEAVES and not engine.owns_process else claimed
            self.engines[engine] = claim
            self.claim = max(self.claim, claim)
        # Our handler called another's, which calls an older one of ours: noted and counted already.
        self._is_passed_on = signum in _passing
        self._tells_to_leave = self.claim == LEAVES or (
            self.claim == HEARS and signum in (signal.SIGTERM, signal.SIGINT)
        )
        self.times = self._count()

    def _count(self) -> int:
        """Return how often the process has been told to leave, this time included."""
        if not self._tells_to_leave or self._is_passed_on:
            return 1
        for engine in self.engines:
            engine.notes.times_told += 1
        return max((engine.notes.times_told for engine in self.engines), default=1)

    def note(self, leave: Leave | None = None, *, by: tuple[int, ...] = (HEARS,)) -> None:
        """Have the channel published for each engine, then *leave* done where that is claimed."""
        for engine, claim in self.engines.items():
            engine.notes.put(partial(self._work, engine, leave if claim in by else None))

    def _work(self, engine: "Engine", leave: Leave | None) -> None:
        if self._tells_to_leave and not engine.notes.times_told:
            return  # the life that it was to end is over, and another has begun
        if not self._is_passed_on:
            self._publish(engine)
        if leave is not None:
            leave(engine)

    def _publish(self, engine: "Engine") -> None:
        name = signal.Signals(self.signum).name
        engine.tell(SignalCaught(name=name))
        if self.times > 1:
            engine.hurry()
        try:
            engine.publish(name)
        except EngineError as exc:
            engine.tell(Message(text=f"{name}: {exc}", level=ERROR, error=exc))


def _concerns(engine: "Engine", claim: int) -> bool:
    """Whether a signal means something to *engine* now; one that has not begun need not end."""
    if claim == DECIDES:
        return True
    return engine.owes_exit or engine.in_transition or bool(engine.notes.readers)


def _for_script(caught: _Caught, frame: "FrameType | None") -> None:
    """Have the engines exit, and the main thread leave whatever it does."""
    if caught.times > 2:
        _default(caught.signum)
    caught.note(_exit)
    if caught.times == 2 and not threading.main_thread().is_alive():
        return  # it has left already, and waits for other threads
    main = threading.get_ident()
    if not any(main in engine.notes.readers for engine in caught.engines):
        _unwind_main(
            caught.signum, frame, any(main == each.transition_thread for each in caught.engines)
        )


def _exit(engine: "Engine") -> None:
    engine.exit()


def _exit_and_settle(engine: "Engine") -> None:
    try:
        engine.exit()
    finally:
        settle(engine)


def _default(signum: int) -> None:
    """Let the signal do what it does by default."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _unwind_main(signum: int, frame: "FrameType | None", in_transition: bool = False) -> None:
    if in_transition or _amid_our_code(frame):
        _unwinding.append(_end_by(signum))
    else:
        _raise(signum, _end_by(signum))


def _end_by(signum: int) -> BaseException:
    """Return what ends the main thread, with the exit status that a shell would tell."""
    return KeyboardInterrupt() if signum == signal.SIGINT else SystemExit(128 + signum)


# -- what Python drops ---------------------------------------------------------------------------


def _raise(signum: int, end: BaseException) -> None:
    """
    Raise *end* in the main thread, and again where it is dropped.

    Where it leaves a destructor, or the callback of a weak reference, Python reports it and goes
    on. A main thread that collects garbage in that moment would not leave.

    Source:
        Python Language Reference, `object.__del__`; `sys.unraisablehook`.
    """
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)
    _raised[id(end)] = (signum, end)
    raise end


class _Hook:
    """What Python reports dropped exceptions to: ours come again, others go to who was there."""

    def __init__(self, earlier: "Callable[[Any], object]") -> None:
        self._earlier = earlier

    def __call__(self, unraisable: "Any") -> None:
        signum, end = _raised.get(id(unraisable.exc_value), (0, None))
        if end is None:
            self._earlier(unraisable)
        else:
            _dropped.append(end)
            _thread.start_new_thread(_send_again, (signum,))


def _send_again(signum: int) -> None:
    """Send the main thread the signal anew until our handler has raised what was dropped."""
    global _is_again  # noqa: PLW0603  # the handler tells by it that it has heard
    main = threading.main_thread().ident
    while _dropped and main is not None:
        if not _is_again:
            _is_again = True
            signal.pthread_kill(main, signum)
        time.sleep(AGAIN)


def _raise_again(frame: "FrameType | None") -> None:
    """Raise what was dropped, unless the hook still runs, which would drop it as well."""
    global _is_again  # noqa: PLW0603  # as above
    _is_again = False
    while frame is not None and frame.f_code is not _Hook.__call__.__code__:
        frame = frame.f_back
    if frame is None and _dropped:
        raise _dropped.pop()


# -- code of ours in which the main thread must not be unwound ----------------------------------


def shielded(function: "Function") -> "Function":
    """Mark *function*: a signal unwinds the main thread at its end, where it calls `unwind`."""
    _shielded.add(function.__code__)
    return function


def unwind() -> None:
    """Raise what a signal would have raised already, had it not come amid our code."""
    if _unwinding and in_main_thread() and not _amid_our_code(sys._getframe(2)):
        end = _unwinding[0]
        _unwinding.clear()
        if not isinstance(sys.exception(), SystemExit | KeyboardInterrupt):  # it is unwound by it
            raise end


def is_unwinding() -> bool:
    """Whether the main thread has reason to leave our code."""
    return bool(_unwinding) and in_main_thread()


def _amid_our_code(frame: "FrameType | None") -> bool:
    while frame is not None:
        if frame.f_code in _shielded:
            return True
        frame = frame.f_back
    return False


# -- who listens to what ------------------------------------------------------------------------


def chain(engine: "Engine") -> None:
    """Hear of the signals that would end this process under a server."""
    for name in CHAINED:
        signum = getattr(signal, name, None)
        if signum is None or signal.getsignal(signum) is signal.default_int_handler:
            continue  # KeyboardInterrupt leads to atexit anyway
        if name == "SIGABRT" and signal.getsignal(signum) is signal.SIG_DFL:
            continue  # a C library gives up: nothing of ours would still run
        if _is_asyncios(signal.getsignal(signum)):
            continue  # it cancels the loop's tasks; its runner takes back only what is its own
        watch(engine, int(signum), HEARS)


def _is_asyncios(handler: "Any") -> bool:
    """Whether *handler* is the one that `asyncio.run` sets for SIGINT."""
    function = getattr(handler, "func", None)  # a functools.partial
    return getattr(function, "__module__", "") == "asyncio.runners"


def watch(engine: "Engine", signum: int, claim: int) -> bool:
    """Have *engine* hear of *signum*; return whether a handler of ours is in place."""
    with _changing:
        entries = _watchers.get(signum, ())
        earlier = max((old for reference, old in entries if reference() is engine), default=HEARS)
        others = [entry for entry in entries if entry[0]() not in (None, engine)]
        _watchers[signum] = (*others, (weakref.ref(engine), claim or earlier))
    present = signal.getsignal(signum)
    if isinstance(present, Handler):
        return True
    if present in (None, signal.SIG_IGN):
        return False
    try:
        _install(signum, Handler(present), present)
    except (ValueError, OSError):
        return False  # not the main thread, or a signal that cannot be caught
    return True


def unwatch(engine: "Lifecycle", signum: int | None = None) -> None:
    """
    Have *engine* hear no more of *signum*; put back a handler that nobody of ours needs.

    Args:
        engine: The engine.
        signum: None means all but those on which it decides: they do not end with an exit.
    """
    for number in tuple(_watchers) if signum is None else (signum,):
        with _changing:
            kept = tuple(
                (reference, claim)
                for reference, claim in _watchers.get(number, ())
                if reference() not in (None, engine)
                or (reference() is engine and signum is None and claim == DECIDES)
            )
            _watchers[number] = kept
        present = signal.getsignal(number)
        if not kept and isinstance(present, Handler) and in_main_thread():
            _install(number, present.predecessor, present.predecessor)


def _install(signum: int, handler: "Any", original: "Any") -> None:
    """Set *handler*; let it restart system calls if *original* did: signal.signal undoes that."""
    signal.signal(signum, handler)
    package = (getattr(original, "__module__", None) or "").partition(".")[0]
    if package == "asyncio" or (package == "gunicorn" and signum == signal.SIGTERM):
        signal.siginterrupt(signum, False)


def after_fork() -> None:
    """In a forked child: what the parent owes and hears of is the parent's; stand aside."""
    global _changing, _is_again  # another thread of the parent may have held it
    _changing, _is_again = threading.Lock(), False
    notes.after_fork()
    _watchers.clear()
    _owed.clear()
    _passing.clear()
    _put_off.clear()
    _unwinding.clear()
    _raised.clear()
    _dropped.clear()


# -- signals that were put off ------------------------------------------------------------------


def settle(engine: "Engine") -> None:
    """Send again what was put off until *engine* had stopped, once it was the last one."""
    for signum, engines in tuple(_owed.items()):
        engines.discard(engine)
        if not engines and _owed.pop(signum, None) is not None:
            os.kill(os.getpid(), signum)


def settle_all() -> None:
    """Send again what was put off; called last thing, when every engine has stopped."""
    for signum in tuple(_owed):
        if _owed.pop(signum, None) is not None:
            os.kill(os.getpid(), signum)


# -- what particular servers need ---------------------------------------------------------------


def can_delay(engine: "Lifecycle") -> bool:
    """Whether `drain_delay` can be kept: the process is ours, or the handler can be held back."""
    return engine.owns_process or can_hold_sigterm()


def hears_sigterm() -> bool:
    """Whether a handler of ours hears of SIGTERM."""
    return isinstance(signal.getsignal(signal.SIGTERM), Handler)


def can_hold_sigterm() -> bool:
    """Whether the server's handler of SIGTERM can be called when it suits us."""
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(handler, Handler) and handler.can_hold()


def uvicorn_server() -> "Any":
    """Return uvicorn's server, if it runs in this process and catches signals; else None."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, Handler):
        handler = handler.predecessor
    server = getattr(handler, "__self__", None)
    return server if _is_uvicorn(server) else None


def _is_uvicorn(server: object) -> bool:
    return hasattr(server, "should_exit") and hasattr(server, "force_exit")


def _is_twisted(server: object) -> bool:
    """
    Whether *server* is Twisted's reactor, on which daphne serves.

    Told to go it cancels at once what is in flight, and the loop runs no more: too late for us.

    Source:
        daphne 4.2, `Server.kill_all_applications`; Twisted 26, `ReactorBase.sigTerm`.
    """
    return type(server).__module__.startswith("twisted.internet.")


def _before_server_handler(signum: int) -> None:
    """
    Have uvicorn take SIGINT for the first word to go, where the one before was a SIGQUIT.

    On Ctrl-C gunicorn's main process may be quicker to send SIGQUIT than the terminal SIGINT, which
    would have uvicorn drop the request in flight, and the lifespan.

    Source:
        uvicorn/server.py, `Server.handle_exit`, as of 0.54: the second SIGINT forces it.
    """
    server = uvicorn_server()
    if signum == signal.SIGINT and server is not None and server in _quitting:
        _quitting.discard(server)
        server.should_exit = False


def _after_server_handler(signum: int) -> None:
    """Have uvicorn leave where gunicorn's worker only flags itself, at which nobody looks."""
    server = uvicorn_server()
    if signum != getattr(signal, "SIGQUIT", None) or server is None or server.should_exit:
        return
    _quitting.add(server)
    server.should_exit = True


def _hypercorn_drains() -> bool:
    """Whether hypercorn told this worker to go: it sends SIGTERM to those that are still busy."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return False
    kwargs = getattr(multiprocessing.current_process(), "_kwargs", {})
    event = kwargs.get("shutdown_event")
    return event is not None and bool(event.is_set())


def _runs_in(frame: "FrameType | None", packages: tuple[str, ...]) -> bool:
    """Whether the code that was interrupted was called by one of *packages*."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in packages:
            return True
        frame = frame.f_back
    return False
