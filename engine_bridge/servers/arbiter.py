"""
gunicorn on sockets that were handed in: its main process, with one worker.

| ours | gunicorn's |
|---|---|
| options | its settings, but where to listen |
| `drain_timeout` | `graceful_timeout` |

Source:
    gunicorn 27, `arbiter.py`: signals are put into a queue, and SIGCHLD has it look for workers
    that have ended. `sock.py`: it unlinks a Unix socket unless that came from systemd.
    `gthread.py`: a worker that is told to go asks clients to close, and keeps idle ones for 2 s.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from queue import SimpleQueue
from socket import socket
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.sock import create_sockets
from gunicorn.workers.gthread import ThreadWorker

from engine_bridge.core.errors import EngineError
from engine_bridge.core.interface import interface_of

from . import gunicorn as hooks
from .application import load
from .base import waiting
from .worker import Worker

LEFT_TO_CALLER = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}
SIGNALS = {*Arbiter.SIGNALS, signal.SIGCHLD} - LEFT_TO_CALLER


class GunicornServing(Worker):
    """
    gunicorn's main process, in this one, and its worker.

    The worker loads the application, if it is given by name.
    """

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket],
        options: Mapping[str, Any],
        drain_timeout: float,
    ) -> None:
        super().__init__(app, sockets, options, drain_timeout)
        self.told: SimpleQueue[int] = SimpleQueue()  # becomes the queue of the main process
        self._times = 0

    def stop(self) -> None:
        """As of `Serving`."""
        self._times += 1
        self.told.put(signal.SIGTERM if self._times == 1 else signal.SIGQUIT)

    def run(self) -> None:
        """As of `Serving`."""
        pid = os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        before = {signum: signal.getsignal(signum) for signum in SIGNALS if is_main}
        try:
            _OwnArbiter(self).run()
        except SystemExit as exc:
            if os.getpid() != pid:
                raise  # the worker ends, with the status that the main process looks for
            if exc.code:
                raise EngineError(
                    f"gunicorn has ended with status {exc.code}; its log says why"
                ) from exc
        finally:
            if os.getpid() == pid:
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    def settings(self) -> dict[str, Any]:
        """Return what gunicorn is set to: what suits one worker, our hooks, then the options."""
        return {
            "worker_class": _Threads,  # so that a slow client does not keep all others waiting
            "threads": 4,
            "control_socket_disable": True,  # all would share one path
            **{name: getattr(hooks, name) for name in hooks.__all__},
            **self.options,
            "workers": 1,
            "graceful_timeout": ceil(self.drain_timeout),
            "post_worker_init": self._ready_hook(self.options.get("post_worker_init")),
        }

    def _ready_hook(self, hook: "Callable[[Any], object] | None") -> "Callable[[Any], None]":
        def run_hooks(worker: Any) -> None:
            for each in self.sockets:
                each.close()  # the worker's; it has others, which it closes when it is to go
            (hook or hooks.post_worker_init)(worker)
            self.when_ready()

        return run_hooks


class _Threads(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """gthread, which closes the listeners when it is to go: they may be nobody else's."""

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                for _ in waiting(listener):
                    self.accept(listener)
                listener.close()


class _Application(BaseApplication):  # type: ignore[misc]  # likewise
    def __init__(self, serving: GunicornServing) -> None:
        self._serving = serving
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._serving.settings().items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        app = load(self._serving.app)
        if interface_of(app) == "asgi" and issubclass(self.cfg.worker_class, _Threads):
            raise EngineError(
                f'{app!r} is an ASGI application, which gunicorn serves with worker_class="asgi"'
            )
        return app


class _OwnArbiter(Arbiter):  # type: ignore[misc]  # likewise
    def __init__(self, serving: GunicornServing) -> None:
        super().__init__(_Application(serving))
        self._when_closed = serving.when_closed
        self.systemd = True  # so it leaves a Unix socket where it is
        self.LISTENERS = create_sockets(
            self.cfg, self.log, [os.dup(each.fileno()) for each in serving.sockets]
        )
        early, serving.told = serving.told, self.SIG_QUEUE
        while not early.empty():
            self.SIG_QUEUE.put(early.get())

    def init_signals(self) -> None:
        """Leave the signals that end it to whoever runs it; in a thread there are none."""
        self.log.close_on_exec()
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self.signal)

    def murder_workers(self) -> None:
        """Look for workers that have ended as well, every second: SIGCHLD may not reach us."""
        self.reap_workers()
        super().murder_workers()

    def kill_workers(self, sig: int) -> None:
        """
        Tell that the listeners are closed, which they are when the workers are told to go.

        On SIGQUIT alone, which on Ctrl-C follows SIGINT, the engine would wait for its requests.
        """
        if sig == signal.SIGQUIT:
            super().kill_workers(signal.SIGTERM)
        super().kill_workers(sig)
        if not self.LISTENERS:
            self._when_closed()
