"""Monitor: a function that is called again and again from the engine's start to its stop."""

import os
from collections.abc import Callable, Collection

from engine_bridge.core.aio import running_loop
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError, TransitionTimeout
from engine_bridge.plugins import arguments
from engine_bridge.plugins.background import NEVER, BackgroundTask, TaskStatus
from engine_bridge.plugins.base import Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

SOONEST_OVERDUE = 60.0  # seconds that a run may take, however often there is one
LONGEST_MARGIN = 1.0  # seconds that a stop has left when it gives up; a quarter, if that is less


class Monitor(Plugin):
    """
    Call a function every *frequency* seconds from the engine's start to its stop.

    It begins in a thread of its own at start priority 70; the start does not wait for its first
    run. On `graceful` it counts anew. The stop cancels it at once and waits for a run that is under
    way, for as long as the stop may take; one that hangs is named with its stack and left behind.

    SystemExit and KeyboardInterrupt of the function make the engine exit, and `engine.block` leave
    with their code.

    Args:
        engine: The engine to listen to.
        callback: What to call, sync or async; async ones run on the application's loop under ASGI,
            on the engine's elsewhere.
        frequency: Seconds between the starts of two runs; 0 or less means never.
        name: A name for people; by default the callback's.
        jitter: As for `BackgroundTask`.
        run_at_start: As for `BackgroundTask`.
        max_backoff: As for `BackgroundTask`.
        scope: As for `BackgroundTask`.
        lock: As for `BackgroundTask`.
        unhealthy_after: Failures in a row from which on it is reported as unhealthy.
        overdue_after: Seconds after a run was due at which it must have ended, else it is reported
            as unhealthy; by default *frequency*, but no less than 60.
        probes: Which of Health's probes an unhealthy monitor fails, of `livez`, `readyz` and
            `startupz`; by default none, it is only shown.

    Raises:
        EngineError: An argument is not what it should be.
    """

    channels = ("start", "stop", "graceful", "health")

    def __init__(
        self,
        engine: Engine,
        callback: "Callable[[], Any]",
        frequency: float = 60,
        name: str | None = None,
        *,
        jitter: float = 0.0,
        run_at_start: bool = False,
        max_backoff: float = 300.0,
        scope: str = "process",
        lock: "str | os.PathLike[str] | None" = None,
        unhealthy_after: int = 3,
        overdue_after: float | None = None,
        probes: Collection[str] = (),
    ) -> None:
        super().__init__(engine)
        self._task = BackgroundTask(
            arguments.seconds("frequency", frequency, NEVER),
            callback,
            engine=engine,
            name=name,
            jitter=jitter,
            run_at_start=run_at_start,
            max_backoff=max_backoff,
            scope=scope,
            lock=lock,
        )
        self.callback = callback
        self.unhealthy_after = _count("unhealthy_after", unhealthy_after)
        self._overdue_after = (
            None if overdue_after is None else arguments.seconds("overdue_after", overdue_after)
        )
        self.probes = arguments.probes(probes)

    @property
    def name(self) -> str:
        """Its name."""
        return self._task.name

    @property
    def frequency(self) -> float:
        """Seconds between the starts of two runs; a change holds at once."""
        return self._task.interval

    @frequency.setter
    def frequency(self, seconds: float) -> None:
        self._task.interval = arguments.seconds("frequency", seconds, NEVER)

    @property
    def status(self) -> TaskStatus:
        """How it stands at this moment."""
        return self._task.status

    def start(self) -> None:
        """Begin."""
        self._task.start()

    start.priority = 70  # type: ignore[attr-defined]  # once resources and ordinary parts are there

    def stop(self) -> "Awaitable[None] | None":
        """
        Run no more, and wait until a run that is under way has ended.

        Returns:
            What the engine has to await, where a loop runs in this thread.

        Raises:
            TransitionTimeout: The run has not ended in time, and is left behind.
        """
        self._task.cancel()
        if running_loop() is not None:
            return self._wait_async()
        for seconds in self._patience():
            if self._task.join(seconds):
                return None
            self._task.tell_of_hang(stopping=True)
        raise self._left_behind()

    async def _wait_async(self) -> None:
        for seconds in self._patience():
            if await self._task.join_async(seconds):
                return
            self._task.tell_of_hang(stopping=True)
        raise self._left_behind()

    def _patience(self) -> tuple[float, ...]:
        """Return how long to wait before it is told where the run stands, and then how long."""
        engine = self.engine
        progress = engine.progress  # of the stop; there is none where somebody turns us off
        left = engine.stop_timeout or engine.slow_after
        if progress is not None and progress.listener:
            left = min(left, max(progress.left, 0.0))
        left -= min(left / 4, LONGEST_MARGIN)  # before the engine leaves this very listener behind
        first = min(engine.slow_after, left)
        return (first, left - first)

    def _left_behind(self) -> TransitionTimeout:
        seconds = self.status.running_for or 0.0
        return TransitionTimeout("stop", f"a run of {self.name}", seconds, "stop_timeout")

    def unsubscribe(self) -> None:
        """Turn the plugin off; a run that is under way is waited for, but not on a loop."""
        super().unsubscribe()
        self._task.cancel()
        if running_loop() is None:
            for seconds in self._patience():
                if self._task.join(seconds):
                    return
                self._task.tell_of_hang(stopping=True)

    def graceful(self) -> None:
        """Count anew from now; a run that is under way is let finish."""
        self._task.restart()

    def health(self) -> "dict[str, Any]":
        """Report how it stands, for those who answer probes."""
        status = self._task.status
        is_overdue = status.late_by > self.overdue_after
        if is_overdue:
            self._task.tell_of_hang(stopping=False)
        facts = {key: value for key, value in status._asdict().items() if key != "name"}
        return {
            "name": self.name,
            "ok": not is_overdue and status.failures < self.unhealthy_after,
            "probes": self.probes,
            "facts": {**facts, "overdue": is_overdue},
        }

    @property
    def overdue_after(self) -> float:
        """Seconds after a run was due at which it must have ended."""
        if self._overdue_after is not None:
            return self._overdue_after
        return max(self.frequency, SOONEST_OVERDUE)


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EngineError(f"{name}=… wants a number of failures, 1 or more; got {value!r}")
    return value
