"""A plugin of the project's own."""

import logging
import threading
from collections.abc import Callable

from engine_bridge import Engine
from engine_bridge.plugins import Plugin

logger = logging.getLogger(__name__)


class Every(Plugin):
    """Calls a function every so many seconds, in a thread, from `start` to `stop`."""

    def __init__(self, engine: Engine, callback: Callable[[], object], seconds: float) -> None:
        super().__init__(engine)
        self._callback = callback
        self._seconds = float(seconds)
        self._leave = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._leave.clear()
        self._thread = threading.Thread(target=self._run, name="every")
        self._thread.start()

    def stop(self) -> None:
        """End, once a call that is under way has returned."""
        self._leave.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._leave.wait(self._seconds):
            try:
                self._callback()
            except Exception:
                logger.exception("a periodic task failed; the next try is in %g s", self._seconds)
