"""
The nets that catch a process which leaves without saying so, and what a fork must reset.

No single hook runs under every server. So several are spread when an engine starts; the first one
that is reached ends the engine, the others find nothing left to do. One hook a process, whatever
the number of engines: it ends those that this very process started.
"""

import atexit
import os
import sys
import threading
import weakref

from . import signals
from .records import WARNING, last_resort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .door import Gate
    from .engine import Engine
    from .lifecycle import Lifecycle

LAZY = ("asgi", "wsgi")  # doors that nothing closes but these nets

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_gates: "weakref.WeakSet[Gate]" = weakref.WeakSet()
_process = os.getpid()  # whose engines they are
_spread_in = 0  # the process that has its nets
_ends_before_join_in = 0  # likewise, for the one that a script does not want
_last: "tuple[int, Callable[[], object]]" = (0, os.getpid)
_carried_over: "Lifecycle | None" = None  # whose process gives its place to a child


def add(engine: "Engine") -> None:
    """Have *engine* reset after a fork and ended with the process."""
    _engines.add(engine)


def add_gate(gate: "Gate") -> None:
    """Register the gate of an application, for server hooks that start it eagerly."""
    _gates.add(gate)


def gates(kind: str) -> "list[Gate]":
    """Return the gates of this process's applications of *kind*, `wsgi` or `asgi`."""
    return [gate for gate in tuple(_gates) if gate.kind == kind]


def engines() -> "list[Engine]":
    """Return the engines of this process."""
    return list(_engines)


def spread(engine: "Lifecycle", door: str) -> None:
    """
    Spread the nets of this process, unless they are; warn of what they cannot give *engine*.

    Args:
        engine: The one that *door* starts.
        door: As in `Life.door`.
    """
    global _spread_in  # noqa: PLW0603  # state of the process is what it is
    if engine.drain_delay and not signals.can_delay(engine):
        text = (
            f"drain_delay={engine.drain_delay:g} has no effect under this server: "
            "it stops to serve as soon as it is told to go"
        )
        engine.log(text, WARNING)
    if door != "script":
        _spread_before_threads_are_joined()
        _spread_before_uvicorn_lets_go()
        _spread_before_waitress_leaves()
        _spread_before_hypercorn_waits()
    if _spread_in == os.getpid():
        return
    _spread_in = os.getpid()
    atexit.unregister(end_all)  # inherited by a fork; some forks drop it
    atexit.register(end_all)
    _spread_for_multiprocessing()
    _spread_for_uwsgi()
    _spread_for_mod_wsgi()


def _spread_before_threads_are_joined() -> None:
    """
    End the engines before the interpreter waits for threads, which comes before atexit.

    A thread that begins on `start`, ends on `stop` and is no daemon would else keep a server's
    process for ever.

    A script may leave its work to such threads when its main thread ends, so there it is no net. A
    server that runs in one, its main thread gone, is past this point: nothing can be registered.

    Source:
        threading.py, `_register_atexit`, which concurrent.futures uses to end its own threads.
    """
    global _ends_before_join_in  # noqa: PLW0603  # as above
    if _ends_before_join_in == os.getpid():
        return
    _ends_before_join_in = os.getpid()
    register = getattr(threading, "_register_atexit", None)  # private, so perhaps gone one day
    if register is not None:
        try:
            register(end_engines)
        except RuntimeError:
            pass  # the main thread has ended; atexit is left


def _spread_before_uvicorn_lets_go() -> None:
    """
    End the engines that no lifespan ends while uvicorn still catches signals.

    Once it has shut down it puts SIG_DFL back and sends itself what it has caught, which kills the
    process ahead of atexit. So does the SIGTERM that its parent sends after a Ctrl-C.

    Source:
        uvicorn/server.py, `Server.capture_signals`, as of 0.54.
    """
    server = signals.uvicorn_server()
    if server is None or "shutdown" in vars(server):
        return
    shut_down = server.shutdown

    async def shut_down_and_end(sockets: "Any" = None) -> None:
        import asyncio

        # Where a worker thread has started the engine no handler of ours could be set.
        drains = asyncio.gather(*(each.drain_async() for each in lazy()), return_exceptions=True)
        try:
            await shut_down(sockets=sockets)
        finally:
            await drains
            for engine in lazy():
                if server.force_exit:
                    engine.hurry()
                await _end_on_loop(engine)

    server.shutdown = shut_down_and_end


def _spread_before_waitress_leaves() -> None:
    """
    End the engines that a request has started when waitress, told to go, shuts down.

    On Ctrl-C no handler of ours is called. A stream that does not hear of the drain then takes all
    of the five seconds that waitress gives its threads. Whoever called waitress may take a while
    as well until atexit, and the parent of `pserve --reload` kills after one second.

    Source:
        waitress/server.py, `BaseWSGIServer.run`, and task.py, `ThreadedTaskDispatcher.shutdown`, as
        of 3.0; hupper/worker.py, `worker_main`, as of 1.12.
    """
    dispatcher: Any = getattr(sys.modules.get("waitress.task"), "ThreadedTaskDispatcher", None)
    if dispatcher is None or hasattr(dispatcher.shutdown, "ends_engines"):
        return
    shut_down = dispatcher.shutdown

    def shut_down_and_end(*args: "Any", **kwargs: "Any") -> "Any":
        if not isinstance(sys.exception(), SystemExit | KeyboardInterrupt):
            return shut_down(*args, **kwargs)  # closed by its owner: the process may live on
        for engine in lazy():
            engine.notes.put(engine.drain)  # in another thread: waitress waits meanwhile
        try:
            return shut_down(*args, **kwargs)
        finally:
            for engine in lazy():
                _end(engine)

    vars(shut_down_and_end)["ends_engines"] = True
    dispatcher.shutdown = shut_down_and_end


def _spread_before_hypercorn_waits() -> None:
    """
    Have the engines drain as soon as hypercorn stops to serve, while it waits for requests.

    It tells its workers by no signal but by an event, and the lifespan only when all requests are
    done or cancelled: streams that did not hear of the drain by then were cut off.

    Source:
        hypercorn/asyncio/run.py, `worker_serve`, as of 0.18.
    """
    hypercorn: Any = sys.modules.get("hypercorn.asyncio.run")
    raise_shutdown = getattr(hypercorn, "raise_shutdown", None)
    if raise_shutdown is None or hasattr(raise_shutdown, "drains_engines"):
        return

    async def drain_and_raise_shutdown(trigger: "Any") -> None:
        try:
            await raise_shutdown(trigger)
        except hypercorn.ShutdownError:
            for engine in _started_by("lifespan", *LAZY):
                engine.notes.put(engine.drain)  # in another thread: the loop still serves
            raise

    vars(drain_and_raise_shutdown)["drains_engines"] = True
    hypercorn.raise_shutdown = drain_and_raise_shutdown


def lazy() -> "list[Engine]":
    """Return the engines that a request has started in this process."""
    return _started_by(*LAZY)


def _started_by(*doors: str) -> "list[Engine]":
    return [each for each in engines() if each.pid == os.getpid() and each.door in doors]


async def _end_on_loop(engine: "Engine") -> None:
    """End *engine*; nothing can fail any more, nor may it keep the server from leaving."""
    try:
        await engine.exit_async()
    except (Exception, SystemExit):
        pass  # each failure is in the log


def _spread_for_multiprocessing() -> None:
    """Workers made by multiprocessing skip atexit before Python 3.13, but run finalizers."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, end_all, exitpriority=0)


def _spread_for_uwsgi() -> None:
    """Use the single slot there is; whoever was in it goes on being called."""
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is None:
        return
    earlier = getattr(uwsgi, "atexit", None)

    def at_uwsgi_exit() -> None:
        end_all()
        if earlier is not None:
            earlier()

    uwsgi.atexit = at_uwsgi_exit


def _spread_for_mod_wsgi() -> None:
    """Hear of the shutdown; a sub-interpreter of mod_wsgi gets no atexit."""
    mod_wsgi: Any = sys.modules.get("mod_wsgi")
    if mod_wsgi is not None and hasattr(mod_wsgi, "subscribe_shutdown"):
        mod_wsgi.subscribe_shutdown(lambda event, **info: end_all())


def do_last(call: "Callable[[], object]") -> None:
    """
    Have *call* done when this process has ended all else, unless it is told to go meanwhile.

    Whoever asks has the process leave next, which may count as one time that it was told.
    """
    global _last  # noqa: PLW0603  # as above
    _last = (os.getpid(), call)


def does_something_last() -> bool:
    """Whether `do_last` was asked for in this process."""
    return _last[0] == os.getpid()


def _do_last() -> None:
    _, call = _last
    if does_something_last() and all(each.notes.times_told <= 1 for each in engines()):
        call()


@signals.shielded
def end_all() -> None:
    """End every engine that this process started, then do what signals still have to do."""
    end_engines()
    signals.settle_all()


def end_engines() -> None:
    """End every engine that this process started; nothing can fail any more."""
    for engine in engines():
        if engine.pid == os.getpid() and (engine.owes_exit or engine.in_transition):
            _end(engine)


def _end(engine: "Engine") -> None:
    try:
        signals.chain(engine)  # a server that returned has put back what kills at once
        engine.notes.work_off()  # their thread may not have come to it
        engine.exit()
    except BaseException as exc:  # the process is leaving: whatever it was, it is in the log
        if not isinstance(exc, Exception | SystemExit):
            last_resort("the end of an engine")


def carry_over(engine: "Lifecycle", fork: "Callable[[], object]") -> None:
    """Call *fork*; what it forks takes this process's place, so *engine* is not reset there."""
    global _carried_over  # noqa: PLW0603  # as above
    _carried_over = engine
    try:
        fork()
    finally:
        _carried_over = None


def notice_fork() -> None:
    """
    Do what is due after a fork, if Python has not been told of one.

    Source:
        uWSGI, `--py-call-osafterfork`, which is not the default.
    """
    if _process != os.getpid():
        _after_fork()


def _after_fork() -> None:
    global _process  # noqa: PLW0603  # as above
    _process = os.getpid()
    if _carried_over is None:
        signals.after_fork()
    for engine in engines():
        if engine is _carried_over:
            continue
        try:
            engine.after_fork()
        except Exception:
            last_resort("the reset of an engine after a fork")


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_do_last)  # now, so that it comes after what is registered later
