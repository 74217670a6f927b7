"""
FollowMain: a worker leaves when its main process is gone.

A main process that is killed by SIGKILL, or by the kernel when memory is short, tells its workers
nothing. Most then serve on, unknown to whoever starts the service again, and hold its port.

Weighed and left: PR_SET_PDEATHSIG. It must be set by the main thread, is lost with a change of the
user, and comes when the thread ends that has forked, even if its process lives on.

Source:
    pidfd_open(2): such a descriptor becomes readable when the process ends. prctl(2).
"""

import os
import select
import signal
import threading
from collections.abc import Callable

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import current_host
from engine_bridge.core.records import WARNING
from engine_bridge.plugins.base import Plugin


class FollowMain(Plugin):
    """
    Send this process SIGTERM when the main process of its server is gone.

    It leaves as if it had been told to: it drains, stops, and is gone. In a process without another
    main process, such as a script, there is nobody to follow and nothing happens.

    Args:
        engine: The engine that runs in the worker.
    """

    channels = ("start", "fork")

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._watch: _Watch | None = None

    def subscribe(self) -> None:
        """
        Turn the plugin on, at once where the process is a worker already.

        Raises:
            EngineError: The system has no way to wait for a process that is no child.
        """
        if not hasattr(os, "pidfd_open"):
            raise EngineError(
                "FollowMain needs pidfd_open(2), of Linux 5.3 or later, which is not here; "
                "leave it out, and have a service manager end the whole service"
            )
        super().subscribe()
        self.start()

    def unsubscribe(self) -> None:
        """Turn the plugin off."""
        super().unsubscribe()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    def start(self) -> None:
        """Begin to watch, once it is known whom."""
        host = self.engine.host or current_host()
        if host.main_pid == os.getpid() or self._watch is not None:
            return
        try:
            self._watch = _Watch(host.main_pid, self._leave)
        except ProcessLookupError:
            self._leave(host.main_pid)

    start.priority = 10  # type: ignore[attr-defined]  # before whatever takes long

    def fork(self) -> None:
        """In a forked child: the thread is the parent's, and so is its main process."""
        if self._watch is not None:
            self._watch.forget()
            self._watch = None

    def _leave(self, pid: int) -> None:
        self.engine.log(f"the main process {pid} is gone; this worker leaves", WARNING)
        os.kill(os.getpid(), signal.SIGTERM)


class _Watch:
    """
    A thread that waits for the end of a process, without a wakeup until then.

    Args:
        pid: The process.
        call: What to call with its number when it has ended.
    """

    def __init__(self, pid: int, call: Callable[[int], object]) -> None:
        self._process = os.pidfd_open(pid)
        self._told, self._tell = os.pipe()
        self._thread = threading.Thread(
            target=self._run, args=(pid, call), name="FollowMain", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Watch no more."""
        os.write(self._tell, b".")
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.forget()

    def forget(self) -> None:
        """Close the descriptors; that is all to do in a forked child, where no thread is."""
        for descriptor in (self._process, self._told, self._tell):
            os.close(descriptor)

    def _run(self, pid: int, call: Callable[[int], object]) -> None:
        waiting = select.poll()
        waiting.register(self._process, select.POLLIN)
        waiting.register(self._told, select.POLLIN)
        if self._told not in dict(waiting.poll()):
            call(pid)
