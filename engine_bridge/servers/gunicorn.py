"""
The engine under gunicorn: `gunicorn -c python:engine_bridge.servers.gunicorn app:app`.

`-c` takes one file only. With a `gunicorn.conf.py` of your own, have it say
`from engine_bridge.servers.gunicorn import *` and define further hooks below.

With these hooks a WSGI application's engine starts in each worker before its first request, in the
main thread; a failing start ends the worker, and with it gunicorn, with exit status 3. ASGI workers
start it by lifespan. `engine.restart()` sends SIGHUP to the main process.

Source:
    gunicorn 27, order of the hooks: `when_ready` and `pre_fork` in the main process;
    `post_worker_init`, once the application is loaded, and `worker_exit` in the worker; `on_exit`
    in the main process.
"""

import os
import signal

from engine_bridge.core import nets, signals
from engine_bridge.core.door import Door
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, StartAborted, plain_text
from engine_bridge.core.host import Host

from .base import IN_A_THREAD, Restart, Roll, ServerHost, Stack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BOOT_ERROR = 3  # gunicorn's Arbiter.WORKER_BOOT_ERROR

TO_WORKERS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1}

__all__ = ["on_exit", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]

_mask: "set[int] | None" = None  # of the main process, while it forks


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if gunicorn runs in it."""
    call = stack.find("gunicorn.arbiter", "spawn_worker")
    if call is not None:
        return ServerHost("gunicorn", _restart, main_pid=call.f_locals["worker"].ppid)
    if stack.find("gunicorn.workers.") is not None:  # a thread or greenlet has a stack of its own
        return ServerHost("gunicorn", _restart, main_pid=os.getppid())
    return None if stack.find("gunicorn.") is None else ServerHost("gunicorn", Roll, "main")


def _restart() -> Restart:
    with Stack(with_main=True) as stack:
        served = stack.find("engine_bridge.servers.arbiter", "run")
        if served is not None and not served.f_locals["is_main"]:
            return IN_A_THREAD  # where gunicorn hears no signal
    return Roll()


def when_ready(server: "Any") -> None:
    """Tell the engines of a preloaded application that this is the main process."""
    _halt_once(server)
    for engine in _engines():
        engine.host = ServerHost("gunicorn", Roll, "main")
        engine.publish("main_start")


def _halt_once(server: "Any") -> None:
    """
    Have the main process stop in good order though more than one worker fails to boot.

    The first ends it; the next one it would meet amid its own end, which that cuts short: the exit
    status would be 1, the PID file and other workers would stay.
    """
    from gunicorn.errors import HaltServer

    stop, reap_workers = server.stop, server.reap_workers

    def reap_whatever_they_say() -> None:
        while True:
            try:
                return reap_workers()  # type: ignore[no-any-return]  # it returns nothing
            except HaltServer:
                pass  # that worker is reaped: go on with the others

    def stop_with_all_of_them(graceful: bool = True) -> None:
        server.reap_workers = reap_whatever_they_say
        stop(graceful)

    server.stop = stop_with_all_of_them


def pre_fork(server: "Any", worker: "Any") -> None:
    """
    Keep signals for the new worker back until it can take them.

    Until `init_signals` it has the handlers of the main process, which put them where the worker
    never looks. It then serves on, and a gunicorn that was told to go waits for it until
    `graceful_timeout` and kills it, with a start and without a stop.
    """
    global _mask  # noqa: PLW0603  # a mask is the process's
    mask = _mask = signal.pthread_sigmask(signal.SIG_BLOCK, TO_WORKERS)
    init_signals = worker.init_signals

    def init_and_take_signals() -> None:
        init_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    worker.init_signals = init_and_take_signals  # in a hook of its own we would be overridden


def _after_fork_in_main() -> None:
    global _mask
    mask, _mask = _mask, None
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def post_worker_init(worker: "Any") -> None:
    """Start the engines of WSGI applications; those of ASGI applications have a lifespan."""
    for engine in nets.engines():
        engine.host = ServerHost("gunicorn", _restart, main_pid=worker.ppid)
    for gate in nets.gates("wsgi"):
        signals.chain(gate.engine)
        try:
            Door(gate.engine, "wsgi").open()
        except StartAborted:
            if gate.engine.notes.times_told:
                raise SystemExit(0) from None  # after a failed boot the main process would give up
            raise
        except ChannelFailures as exc:
            text = plain_text(exc)
            if not text:
                raise  # gunicorn logs the trace
            worker.log.error("%s", text)
            raise SystemExit(BOOT_ERROR) from None


def worker_exit(server: "Any", worker: "Any") -> None:
    """End the engines, if nothing else has; gunicorn also calls this in the main process."""
    if os.getpid() == worker.pid:
        nets.end_all()


def on_exit(server: "Any") -> None:
    """Tell the engines of a preloaded application that the main process leaves."""
    for engine in _engines():
        engine.publish("main_exit")


def _engines() -> list[Engine]:
    """Return the engines that an application of this process has."""
    gates = nets.gates("wsgi") + nets.gates("asgi")
    return list({id(gate.engine): gate.engine for gate in gates}.values())


os.register_at_fork(after_in_parent=_after_fork_in_main)
