"""What an engine holds from one start to the stop that answers it."""

import threading
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic

from .aio import CANCEL_GRACE, LifeTask, LoopGone, LoopThread, Overrun, TaskCaller, result_from
from .flag import Flag

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from threading import Condition
    from typing import Any

    from .aio import Caller

OTHER_LOOP_GRACE = 2 * CANCEL_GRACE  # a loop that does not answer for so long is taken for stuck


class Life:
    """One start … stop: its loop, its resources' state, who started, how far its drain is."""

    def __init__(
        self,
        condition: "Condition",
        door: str,
        loop: "asyncio.AbstractEventLoop | None",
        stop: "Callable[[], Coroutine[Any, Any, object]]",
        warn: Callable[[str], None],
    ) -> None:
        self.door = door
        self.loop_thread = threading.get_ident() if loop is not None else 0
        self.loop = loop  # the application's; None: the engine brings its own when one is needed
        self.state: dict[str, Any] = {}
        self.started: list[Callable[..., Any]] = []
        self.announced = False  # `drain` has been published
        self.settled = Flag(condition)  # the drain is over: nothing in flight, or told to hurry
        self.over = Flag(condition)
        self.awaits = False  # the listener of this moment is async: its loop is to end it in time
        self.running: Coroutine[Any, Any, Any] | None = None  # that listener, once it has begun
        self._stop = stop
        self._warn = warn
        self._life_task: LifeTask | None = None
        self._own: LoopThread | None = None
        self._making = threading.Lock()  # of _own
        self._is_closed = False
        self._runner: asyncio.Runner | None = None

    def open(self) -> None:
        """Have the life's own task from the start, so that the end of its loop is heard of."""
        self._life_task = LifeTask(self._stop)

    def usable_loop(self) -> "asyncio.AbstractEventLoop | None":
        """Return the loop on which async listeners run, if it runs."""
        own = self._own
        if own is not None and not own.ending:
            return own.loop
        return self.loop if self.loop is not None and self.loop.is_running() else None

    @property
    def grace(self) -> float:
        """Seconds past its limit in which the present listener may be ended by its loop."""
        return OTHER_LOOP_GRACE if self.awaits else 0.0

    def run(
        self, coroutine: "Coroutine[Any, Any, BaseException | None]", deadline: float
    ) -> BaseException | None:
        """Run *coroutine* on the life's loop from a thread that may block; return its result."""
        import asyncio

        loop = self.usable_loop() or self._new_loop()
        if loop is None:
            self._runner = self._runner or asyncio.Runner(loop_factory=asyncio.new_event_loop)
            return self._runner.run(coroutine)
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result(max(deadline - monotonic(), 0) + OTHER_LOOP_GRACE)
        except TimeoutError:
            future.cancel()
            return Overrun("its loop does not answer\n", still_runs=True)

    def _new_loop(self) -> "asyncio.AbstractEventLoop | None":
        """Start a loop in a thread of our own; None where no thread can be started any more."""
        if self.loop is not None:
            self._warn(
                "the application's loop is gone: async listeners run on a fresh one; "
                "stop the engine before its loop ends, e.g. by the ASGI lifespan"
            )
        with self._making:
            if self._is_closed:
                raise LoopGone
            if self._own is None:  # else another thread was quicker
                try:
                    self._own = LoopThread()
                except RuntimeError:
                    return None
            return self._own.loop

    def give_up_loop(self) -> None:
        """Have later async listeners run elsewhere: the thread of the loop is stuck."""
        if self._own is None and self.loop is not None:
            self._new_loop()

    def result_of(self, call: "Callable[[], Awaitable[Any]]") -> "Any":
        """
        Return what the async *call* returns, run on the life's loop; block until it has.

        Raises:
            LoopGone: The life has ended without it.
        """
        loop = self.usable_loop() or self._new_loop()
        if loop is None:
            raise RuntimeError("no loop can be started any more: the interpreter is on its way out")
        return result_from(loop, call)

    async def in_life_task(
        self, coroutine: "Coroutine[Any, Any, BaseException | None]"
    ) -> BaseException | None:
        """Have *coroutine* awaited in the life's own task; await this on its loop."""
        import asyncio

        if self._life_task is None or self._life_task.loop is not asyncio.get_running_loop():
            self._life_task = LifeTask(self._stop)
        return await self._life_task.run(coroutine)

    async def close(self, caller: "Caller") -> None:
        """End the life's task and loop."""
        if self._life_task is not None and isinstance(caller, TaskCaller):
            if self._life_task.loop is caller.loop:
                await self._life_task.end()
        elif self._life_task is not None and self.usable_loop() is self._life_task.loop:
            self.run(self._end_task(), monotonic() + CANCEL_GRACE)
        with self._making:
            self._is_closed = True
        if self._own is not None:
            self._own.stop()
        if self._runner is not None:
            self._runner.close()
        self.state.clear()

    async def _end_task(self) -> None:
        if self._life_task is not None:
            await self._life_task.end()
