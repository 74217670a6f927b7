"""
How async listeners are run: on which loop, by whom, within which limits.

The engine's transitions are coroutines, driven in one of two ways by a *caller*. A `ThreadCaller`
blocks its thread wherever it must wait, so the coroutine never suspends and `drive` runs it to its
end in one go. A `TaskCaller` awaits. So each rule of the engine is written once.
"""

import threading
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic

from .bus import Listener
from .errors import EngineError, ResourceError
from .flag import Flag
from .transition import inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any, TypeVar

    from .life import Life
    from .transition import Transition

    Command = tuple[Coroutine[Any, Any, Any], asyncio.Future[Any], tuple[Transition, ...]]
    T = TypeVar("T")

LOOP_CHECK = 1.0  # seconds between two looks at whether a loop that we wait for still runs
CANCEL_GRACE = 1.0  # seconds that a cancelled listener has to clean up before it is left behind


class Overrun(Exception):
    """
    An async listener did not end in time.

    Args:
        stack: Where it stood.
        still_runs: Whether it went on although it was cancelled.
    """

    def __init__(self, stack: str, *, still_runs: bool) -> None:
        super().__init__()
        self.stack = stack
        self.still_runs = still_runs


class LoopGone(Exception):
    """A loop has ended before it came to what it was given."""


class Aborted(Exception):
    """An async start listener was cancelled because an exit was asked for."""


def drive(coroutine: "Coroutine[Any, Any, T]") -> "T":
    """Run a *coroutine* that never suspends, because its caller is a `ThreadCaller`."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise EngineError("a transition suspended in a thread")  # pragma: no cover  # cannot happen


def running_loop() -> "asyncio.AbstractEventLoop | None":
    """Return the loop that runs in this thread, without importing asyncio to find there is none."""
    import sys

    events = sys.modules.get("asyncio.events")
    return events._get_running_loop() if events is not None else None


def whereabouts() -> object:
    """Return what tells one flow of control from others: the task that runs, or the thread."""
    if running_loop() is None:
        return threading.get_ident()
    import asyncio

    return asyncio.current_task()


def result_from(loop: "asyncio.AbstractEventLoop", call: "Callable[[], Awaitable[Any]]") -> "Any":
    """
    Return what the async *call* returns, run on *loop*, which runs in another thread.

    Raises:
        LoopGone: The loop has ended without it; it may be run elsewhere.
        EngineError: The loop has ended in the midst of it.
    """
    import asyncio
    from concurrent.futures import wait

    has_begun = False

    async def run() -> object:
        nonlocal has_begun
        has_begun = True
        return await call()

    coroutine = run()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # it is closed
        coroutine.close()
        raise LoopGone from None
    idle = 0  # a loop that ends does not say so to those who wait for it
    while not wait([future], LOOP_CHECK).done:
        idle = 0 if loop.is_running() else idle + 1
        if loop.is_closed() or idle > 1:
            if has_begun:
                raise EngineError("the event loop ended while an async listener ran on it")
            future.cancel()
            coroutine.close()
            raise LoopGone
    return future.result()


class ThreadCaller:
    """A thread that may block runs the transition."""

    async def wait(self, flag: Flag, timeout: float | None = None) -> bool:
        """Wait for *flag*, *timeout* seconds at most; return whether it is set."""
        return flag.wait(timeout)

    async def call(self, life: "Life", listener: Listener, deadline: float, abort: Flag) -> None:
        """Run *listener* and, if it is async, see it to its end on the life's loop."""
        begin = _left_to_await(life, listener)
        if begin is None:
            return
        error = life.run(_limited(life, listener, begin, deadline, abort), deadline)
        if error is not None:
            raise error


class TaskCaller:
    """A task of a running loop runs the transition; it may not block."""

    def __init__(self, loop: "asyncio.AbstractEventLoop") -> None:
        self.loop = loop

    async def wait(self, flag: Flag, timeout: float | None = None) -> bool:
        """Await *flag*, *timeout* seconds at most; return whether it is set."""
        return await flag.wait_async(timeout)

    async def call(self, life: "Life", listener: Listener, deadline: float, abort: Flag) -> None:
        """Run *listener* and, if it is async, await its end on the life's loop."""
        begin = _left_to_await(life, listener)
        if begin is None:
            return
        limited = _limited(life, listener, begin, deadline, abort)
        loop = life.usable_loop() or self.loop
        if loop is self.loop:
            error = await limited
        else:
            import asyncio

            error = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(limited, loop))
        if error is not None:
            raise error


Caller = ThreadCaller | TaskCaller


def _left_to_await(life: "Life", listener: Listener) -> "Callable[[], Awaitable[Any]] | None":
    """Call *listener*, unless it is async; return what gives an awaitable, if there is one."""
    life.awaits = listener.is_async
    if listener.is_async:
        return listener.call
    result = listener.call()
    if not hasattr(result, "__await__"):
        return None
    life.awaits = True
    return lambda: result


async def _limited(
    life: "Life",
    listener: Listener,
    begin: "Callable[[], Awaitable[Any]]",
    deadline: float,
    abort: Flag,
) -> BaseException | None:
    """
    Await *listener* in a task of its own; cancel it past *deadline* or when *abort* is set.

    What it raised is returned: a SystemExit that leaves a task would end the application's loop.
    """
    import asyncio

    from .stacks import coroutine_stack

    loop = asyncio.get_running_loop()
    guarded = _guarded(begin())
    in_life_task = getattr(listener.call, "in_life_task", False)
    task = loop.create_task(life.in_life_task(guarded) if in_life_task else guarded)
    life.running = guarded
    stop = abort.tell(lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        await asyncio.wait({task}, timeout=max(deadline - monotonic(), 0))
        if not task.done():
            stack = "".join(coroutine_stack(guarded))
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE)
            return Overrun(stack, still_runs=not task.done())
        if task.cancelled():
            return Aborted() if abort.is_set() else asyncio.CancelledError()
        return task.result()
    except asyncio.CancelledError:
        task.cancel()  # our own caller was cancelled: so is the listener
        await asyncio.wait({task}, timeout=CANCEL_GRACE)
        raise
    finally:
        abort.forget(stop)
        life.running = None


async def _guarded(awaitable: "Awaitable[object]") -> BaseException | None:
    """Await *awaitable* and return what it raised; only being cancelled goes through."""
    import asyncio

    try:
        await awaitable
    except asyncio.CancelledError:
        raise
    except BaseException as exc:
        return exc
    return None


class LoopThread:
    """An asyncio loop in a daemon thread of the engine's own, for async listeners without one."""

    def __init__(self) -> None:
        import asyncio

        self.ending = False
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="engine loop", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is on its way out
            self._runner.close()
            raise

    def _main(self) -> None:
        import asyncio

        with self._runner:
            asyncio.set_event_loop(self.loop)
            self._runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stopping.wait()

    def stop(self) -> None:
        """End the loop, cancelling what still runs on it; not the task that asks, if it is ours."""
        import asyncio

        self.ending = True
        if threading.current_thread() is self._thread:
            task = asyncio.current_task()
            assert task is not None  # a mere callback that asks is told of the deadlock
            task.add_done_callback(lambda _: self._stopping.set())
            return
        self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(CANCEL_GRACE)


class LifeTask:
    """
    The one task in which a life's async resources are entered and left.

    Task groups and cancel scopes want that. If the task is cancelled, as a failing task group or
    the end of `asyncio.run` does, it has the engine stopped and stays to leave the resources.
    """

    def __init__(self, stop: "Callable[[], Coroutine[Any, Any, object]]") -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()
        self._stop = stop
        self._stopping: asyncio.Task[object] | None = None
        self._ending = False
        self._commands: asyncio.Queue[Command | None]
        self._commands = asyncio.Queue()
        self._carried_out: asyncio.Future[Any] | None = None
        self._task = self.loop.create_task(self._main(), name="engine resources")

    async def run(
        self, coroutine: "Coroutine[Any, Any, BaseException | None]"
    ) -> BaseException | None:
        """Have *coroutine* awaited in the task; return its result. To cancel this cancels it."""
        import asyncio

        future = self.loop.create_future()
        self._commands.put_nowait((coroutine, future, inside.get()))
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            if self._carried_out is future:
                self._task.cancel()
            else:
                future.cancel()
            await asyncio.wait({future})
            raise
        if future.cancelled():
            return ResourceError(
                "a resource was cancelled, not by the engine: the task group of another one failed"
            )
        result: BaseException | None = future.result()
        return result

    async def end(self) -> None:
        """Let the task return once it has done what was submitted."""
        import asyncio

        self._ending = True
        self._commands.put_nowait(None)
        if self._stopping is None:  # else it waits for the very transition that ends it
            await asyncio.wait({self._task}, timeout=CANCEL_GRACE)

    async def _main(self) -> None:
        import asyncio

        inside.set(())  # made within the start; the stop that it asks for is not
        while True:
            try:
                command = await self._commands.get()
            except asyncio.CancelledError:
                # An anyio scope cancels again and again until it is left: hence the loop.
                if self._stopping is None and not self._ending:
                    self._stopping = self.loop.create_task(self._stop())
                    # Where the stop was another's, on another loop, nobody else says so.
                    self._stopping.add_done_callback(lambda _: self._commands.put_nowait(None))
                continue
            if command is None:
                break
            await self._carry_out(*command)
        while self._stopping is not None and not self._stopping.done():
            try:
                await asyncio.wait({self._stopping})
            except asyncio.CancelledError:
                continue

    async def _carry_out(
        self,
        coroutine: "Coroutine[Any, Any, BaseException | None]",
        future: "asyncio.Future[Any]",
        within: "tuple[Transition, ...]",
    ) -> None:
        import asyncio

        if future.done():
            coroutine.close()
            return
        self._carried_out = future
        inside.set(within)
        try:
            result = await coroutine
        except asyncio.CancelledError:
            result = None
            future.cancel()
        finally:
            self._carried_out = None
            inside.set(())
        if not future.done():
            future.set_result(result)
