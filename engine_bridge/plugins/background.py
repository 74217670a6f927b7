"""
BackgroundTask: call a function again and again, and survive what it does.

A task has one daemon thread, which sleeps on a condition until its next run is due, and is woken by
nothing else but a change: cancelled, restarted, another interval. An async function is awaited on
the engine's loop, and the thread waits for it; so there is one way to be late, to fail and to be
cancelled, and two runs of one task never overlap.

A thread that is left behind by a stop, in a function that does not return, stays the task's only
one: when the task starts again, that thread goes on as soon as it can.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from math import inf
from time import monotonic
from typing import NamedTuple

from engine_bridge import engine as default_engine
from engine_bridge.core.bus import describe, is_async
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.flag import Flag, call_soon
from engine_bridge.core.hostlock import HostLock
from engine_bridge.core.records import ERROR, INFO, WARNING, Record
from engine_bridge.core.transition import before_waiting
from engine_bridge.plugins import arguments
from engine_bridge.plugins.base import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable
    from typing import Any

SCOPES = ("process", "host")
NEVER = -arguments.LONGEST  # an interval of 0 or less

# The tasks whose function the code that runs now belongs to.
_inside: ContextVar[tuple["BackgroundTask", ...]] = ContextVar("_inside", default=())


class TaskFailed(Record):
    """The function of a periodic task raised `error`, for the `failures`th time in a row."""

    __slots__ = ("error", "failures", "retry_in", "task")
    task: str
    failures: int
    retry_in: float
    error: BaseException
    level = ERROR

    def _text(self) -> str:
        again = f", {self.failures} times in a row" if self.failures > 1 else ""
        when = "no more" if self.retry_in == inf else f"in {self.retry_in:.0f} s"
        return f"{self.task} failed{again}; next try {when}: {_line(self.error)}"


class TaskRecovered(Record):
    """The function of a periodic task succeeded again."""

    __slots__ = ("failures", "task")
    task: str
    failures: int
    level = INFO

    def _text(self) -> str:
        return f"{self.task} succeeded again, after {self.failures} failures"


class TaskHangs(Record):
    """A run of a periodic task has not ended in time, or not when it was to stop."""

    __slots__ = ("seconds", "stack", "stopping", "task")
    task: str
    seconds: float
    stack: str
    stopping: bool
    level = WARNING

    def _text(self) -> str:
        what = "is to stop and still runs" if self.stopping else "still runs"
        return f"{self.task} {what} after {self.seconds:.1f} s\n{self.stack}"


class TaskStatus(NamedTuple):
    """
    How a task stands.

    Attributes:
        name: Its name.
        started: Whether it runs from time to time, or waits for the lock.
        running_for: Seconds that the present run has taken so far; None between runs.
        late_by: Seconds since the present, or next, run was due; 0 before that.
        runs: How often the function has been called in this process.
        failures: How often it has failed in a row.
        last_success: When it last returned, as `time.time()` tells it.
        last_failure: When it last raised, likewise.
        last_error: What it raised then, in a line; kept when it succeeds again.
        next_run: When it is due, as `time.time()` tells it; None if it is off.
        leads: Whether this process has the lock of `scope="host"`; else None.
    """

    name: str
    started: bool
    running_for: float | None
    late_by: float
    runs: int
    failures: int
    last_success: float | None
    last_failure: float | None
    last_error: str
    next_run: float | None
    leads: bool | None


class BackgroundTask:
    """
    Call a function every *interval* seconds, in a thread or on the engine's loop.

    *interval* is what lies between the starts of two runs. When a run takes longer, the starts that
    it has missed are left out. The first run comes after one interval. A run that fails is told and
    put off: the wait doubles with each failure in a row, up to *max_backoff*.

    Args:
        interval: Seconds; 0 or less means never. It may be changed at any time.
        function: What to call, sync or async.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        engine: The engine that tells what fails, and on whose loop an async function runs; the
            default one of the package if none is given.
        name: A name for people; by default the function's.
        jitter: Seconds of which up to so many, at random, are added to each wait, so that processes
            that started together do not all run at once.
        run_at_start: Whether the first run comes at once.
        max_backoff: Seconds that a failing function waits at most, unless *interval* is longer.
        scope: `process`, or `host`: of all processes of the machine with such a task of this
            *name* and this user, one runs it, until it stops or dies.
        lock: The file by which these find each other; by default one below /tmp.

    Raises:
        EngineError: An argument is not what it should be.
    """

    def __init__(
        self,
        interval: float,
        function: "Callable[..., Any]",
        args: "Sequence[Any]" = (),
        kwargs: "Mapping[str, Any] | None" = None,
        engine: Engine | None = None,
        *,
        name: str | None = None,
        jitter: float = 0.0,
        run_at_start: bool = False,
        max_backoff: float = 300.0,
        scope: str = "process",
        lock: "str | os.PathLike[str] | None" = None,
    ) -> None:
        self._interval = arguments.seconds("interval", interval, NEVER)
        if not callable(function):
            raise EngineError(f"a periodic task wants a function to call, got {function!r}")
        self.function = function
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.engine = default_engine if engine is None else engine
        self.name = name or describe(function)
        self.jitter = arguments.seconds("jitter", jitter)
        self.run_at_start = run_at_start
        self.max_backoff = arguments.seconds("max_backoff", max_backoff)
        self._lock = _host_lock(scope, name, lock)
        self._runs = self._failures = 0
        self._last_success: float | None = None
        self._last_failure: float | None = None
        self._last_error = ""
        self._reset()

    def _reset(self) -> None:
        """Be as before the start: in a new object, and in a forked child, which has no thread."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._free = Flag()  # set while nobody has to wait for the thread
        self._free.set()
        self._cancelled = False
        self._base = 0.0  # when the last run was to start; the next one counts from there
        self._due = inf
        self._since: float | None = None  # when the present run began
        self._told_of_hang: set[bool] = set()  # of the present run: in its life, and at a stop
        self._async_run: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def _after_fork(self) -> None:
        if self._lock is not None:
            self._lock.close()
        self._reset()

    # -- what others ask -----------------------------------------------------------------------

    @property
    def interval(self) -> float:
        """Seconds between the starts of two runs; 0 or less means never."""
        return self._interval

    @interval.setter
    def interval(self, seconds: float) -> None:
        self._interval = arguments.seconds("interval", seconds, NEVER)
        with self._changed:
            self._plan(self._base + self._interval)

    @property
    def status(self) -> TaskStatus:
        """How it stands at this moment."""
        since, due, now = self._since, self._due, monotonic()
        started = self._thread is not None and not self._cancelled
        is_due = started and due < inf
        return TaskStatus(
            name=self.name,
            started=started,
            running_for=None if since is None else now - since,
            late_by=max(now - due, 0.0) if is_due else 0.0,
            runs=self._runs,
            failures=self._failures,
            last_success=self._last_success,
            last_failure=self._last_failure,
            last_error=self._last_error,
            next_run=time.time() + due - now if is_due else None,
            leads=None if self._lock is None else self._lock.held,
        )

    def start(self) -> None:
        """
        Begin; nothing happens if it has begun.

        Raises:
            EngineError: The file of the lock cannot be had.
        """
        with self._changed:
            if self._thread is not None:
                if self._cancelled:  # left behind by a stop: it goes on
                    self._cancelled = False
                    self._free = Flag()
                    self._plan_first()
                    self.engine.subscribe("fork", self._after_fork)
                return
            if self._lock is not None:
                self._lock.check()
            self._cancelled = False
            self._free = Flag()
            self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
            self._plan_first()
            self.engine.subscribe("fork", self._after_fork)
            try:
                self._thread.start()
            except BaseException:  # no thread is to be had
                self.engine.unsubscribe("fork", self._after_fork)
                self._thread = None
                self._free.set()
                raise

    def restart(self) -> None:
        """Count anew from now, as after a start; a run that is under way is let finish."""
        with self._changed:
            if self._thread is not None and not self._cancelled:
                self._plan_first()

    def cancel(self) -> None:
        """Run no more, from now on; an async function that runs is cancelled. Does not wait."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            if self not in _inside.get() and not self._free.is_set():
                self._cancel_async_run()

    def join(self, timeout: float | None = None) -> bool:
        """
        Wait until a cancelled task has ended, *timeout* seconds at most.

        What the function itself calls, and who is waited for by it, need not wait.

        Returns:
            Whether it has ended, or will by itself.
        """
        if self in _inside.get():
            return True
        thread = self._thread
        return self._free.wait(timeout) and self._see_off(thread)

    async def join_async(self, timeout: float | None = None) -> bool:
        """Do what `join` does without blocking the loop."""
        if self in _inside.get():
            return True
        thread = self._thread
        return await self._free.wait_async(timeout) and self._see_off(thread)

    def _see_off(self, thread: threading.Thread | None) -> bool:
        """Let a thread that has done its last step end."""
        if thread is not None and self._thread is not thread:
            thread.join()
        return True

    def tell_of_hang(self, *, stopping: bool) -> None:
        """Say that the present run takes too long, and where it stands; once for each reason."""
        since = self._since
        if since is None or stopping in self._told_of_hang:
            return
        self._told_of_hang.add(stopping)
        seconds = monotonic() - since
        record = TaskHangs(task=self.name, seconds=seconds, stack=self.stack(), stopping=stopping)
        self.engine.tell(record)

    def stack(self) -> str:
        """Return where the present run stands."""
        from engine_bridge.core.stacks import coroutine_stack, thread_stack

        run, thread = self._async_run, self._thread
        if run is not None:
            return "".join(coroutine_stack(run[1].get_coro()))
        return thread_stack(thread.ident or 0) if thread is not None else ""

    # -- the thread ----------------------------------------------------------------------------

    def _main(self) -> None:
        while self._wait_until_due():
            self._tick()

    def _wait_until_due(self) -> bool:
        """Sleep until the next run is due; return False at the end of the thread."""
        with self._changed:
            while self._is_current() and not self._cancelled:
                rest = self._due - monotonic()
                if rest <= 0:
                    return True
                self._changed.wait(None if rest == inf else rest)
            if not self._is_current():  # a fork: this is another process
                return False
            if self._lock is not None:
                self._lock.close()
            self.engine.unsubscribe("fork", self._after_fork)
            self._thread = None
        self._free.set()
        return False

    def _is_current(self) -> bool:
        return self._thread is threading.current_thread()

    def _tick(self) -> None:
        """Run, if it is ours to run, and plan the next run."""
        error: BaseException | None = None
        try:
            if self._lock is not None and not self._lock.claim():
                with self._changed:
                    self._plan_regular()
                return
            error = self._run()
        except Exception as exc:  # the lock's file
            error = exc
        if self._is_current():
            self._note(error)

    def _run(self) -> BaseException | None:
        """Call the function once; return what it raised."""
        self._told_of_hang = set()
        self._since = monotonic()
        self._runs += 1
        inside = _inside.set((*_inside.get(), self))
        waiting = before_waiting.set(self._be_waited_for)
        try:
            result = None
            if not is_async(self.function):
                result = self.function(*self.args, **self.kwargs)
            if is_async(self.function) or hasattr(result, "__await__"):
                return self.engine.result_of(partial(self._await_function, result))  # type: ignore[no-any-return]  # what it returns
        except BaseException as exc:
            return exc
        finally:
            before_waiting.reset(waiting)
            _inside.reset(inside)
            self._since = None
        return None

    async def _await_function(self, result: "Awaitable[Any] | None") -> BaseException | None:
        """
        Await the function; return what it raised, unless it was cancelled.

        A SystemExit that left the task would end the application's loop.
        """
        import asyncio

        task = asyncio.current_task()
        assert task is not None  # `result_of` makes one
        with self._changed:
            self._async_run = (asyncio.get_running_loop(), task)
            if self._cancelled:  # in the meantime: nobody else tells this task
                task.cancel()
        try:
            await (self.function(*self.args, **self.kwargs) if result is None else result)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            return exc
        finally:
            self._async_run = None
        return None

    def _cancel_async_run(self) -> None:
        if self._async_run is not None:
            loop, task = self._async_run
            call_soon(loop, task.cancel)

    def _be_waited_for(self, engine: object) -> None:
        """Tell a stop that it need not wait for us: the function waits for that very stop."""
        if engine is self.engine:
            self._free.set()

    def _note(self, error: BaseException | None) -> None:
        """Note how the run ended, plan the next, and say what has to be said."""
        failures = self._failures
        asks_to_exit = isinstance(error, SystemExit | KeyboardInterrupt)
        with self._changed:
            if self._free.is_set() and not self._cancelled:
                self._free = Flag()  # it was excused from a wait that is over
            if self._cancelled and _is_cancellation(error):
                return
            if error is None:
                self._failures, self._last_success = 0, time.time()
                self._plan_regular()
            elif asks_to_exit:
                self._plan(inf)
            else:
                self._failures, self._last_failure = failures + 1, time.time()
                self._last_error = _line(error)
                self._plan_retry()
            rest = self._due - monotonic()
        if error is None:
            if failures:
                self.engine.tell(TaskRecovered(task=self.name, failures=failures))
        elif asks_to_exit:
            self._leave(error)
        else:
            self.engine.tell(
                TaskFailed(task=self.name, failures=failures + 1, retry_in=rest, error=error)
            )

    def _leave(self, error: BaseException) -> None:
        """Have the engine exit, and the thread in `block` leave with the code of *error*."""
        text = f"{self.name} asks the engine to exit: {_line(error)}"
        self.engine.log(text, WARNING)

        def leave() -> None:
            try:
                self.engine.exit()
            except EngineError:
                pass  # each failure is in the log, and `block` raises them
            if isinstance(error, SystemExit):
                raise SystemExit(error.code)

        self.engine.notes.put(leave)
        self.engine.notes.wake()  # only a signal wakes a main thread in `block` by itself

    # -- when ----------------------------------------------------------------------------------

    def _plan_first(self) -> None:
        self._base = monotonic()
        self._plan(self._base if self.run_at_start else self._base + self._interval)

    def _plan_regular(self) -> None:
        """Plan the next run after one that was not put off; what was missed is left out."""
        now = monotonic()
        if self._interval > 0:
            missed = max(now - self._base, 0.0) // self._interval
            self._base += missed * self._interval
        self._plan(self._base + self._interval)

    def _plan_retry(self) -> None:
        """Plan the next run after one that failed."""
        longest = max(self.max_backoff, self._interval)
        wait = min(self._interval * 2.0 ** min(self._failures, 30), longest)
        self._base = monotonic() + wait - self._interval
        self._plan(self._base + self._interval)

    def _plan(self, due: float) -> None:
        """Have the next run at *due*, or never if it is off; called under the lock."""
        self._due = due if self._interval > 0 else inf
        if self.jitter:
            import random

            self._due += random.uniform(0, self.jitter)
        self._changed.notify_all()


# -- arguments -----------------------------------------------------------------------------------


def _host_lock(
    scope: str, name: str | None, lock: "str | os.PathLike[str] | None"
) -> HostLock | None:
    if scope not in SCOPES:
        raise EngineError(f"scope=… wants one of {', '.join(SCOPES)}; got {scope!r}")
    if scope == "process":
        if lock is not None:
            raise EngineError(
                f'lock={lock!r} goes with scope="host", which runs a task once a host'
            )
        return None
    if lock is not None:
        return HostLock(
            "", absolute(lock, "Monitor(…, scope='host', lock='/run/app/cleanup.lock')")
        )
    if not name:
        raise EngineError(
            'scope="host" wants a name=… by which the processes find each other, one that no other '
            "application of this user has; or the path of a file, lock=…"
        )
    return HostLock(name)


def _is_cancellation(error: BaseException | None) -> bool:
    """Tell asyncio's and that of futures, without the import of either."""
    return type(error).__name__ == "CancelledError"


def _line(error: BaseException) -> str:
    """Return *error* as one line, type first."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
