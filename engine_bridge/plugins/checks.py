"""
Checks that Health makes: each with a limit, and an outcome that holds for a while.

A check runs in a thread of its own, for a sync one may block and nobody can end it. So neither an
event loop nor a server's thread waits for it beyond its limit; and while one run has not ended no
other begins, so however long something hangs, it holds one thread.
"""

import threading
from collections.abc import Callable
from time import monotonic

from engine_bridge.core.bus import is_async
from engine_bridge.core.engine import Engine
from engine_bridge.core.flag import Flag
from engine_bridge.core.records import WARNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


GRACE = 1.0  # seconds from the limit of an async check to its cancellation


class Check:
    """One check, and its last run."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        function: "Callable[[], Any]",
        *,
        cache: float,
        timeout: float,
        probes: tuple[str, ...],
    ) -> None:
        self.engine = engine
        self.name = name
        self.function = function
        self.cache = cache
        self.timeout = timeout
        self.probes = probes
        self.forget()

    def forget(self) -> None:
        """Know of no run; in a forked child there is none, and the lock is anybody's."""
        self._lock = threading.Lock()
        self._run: Run | None = None

    def begin(self) -> "Run":
        """Return the run whose outcome holds, or that is under way; else a new one."""
        with self._lock:
            if self._run is None or self._run.is_stale():
                self._run = Run(self)
                self._run.start()
            return self._run


class Run:
    """One run of a check, in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.done = Flag()
        self.error = ""
        self.began = monotonic()
        self.ended = self.began
        self._thread = threading.Thread(
            target=self._main, name=f"health check {check.name}", daemon=True
        )
        self._coroutine: Any = None  # of an async function, while it runs
        self._has_told = False

    def start(self) -> None:
        """Begin; at interpreter exit there may be no thread to do it."""
        try:
            self._thread.start()
        except RuntimeError as exc:
            self._end(str(exc))

    def _main(self) -> None:
        try:
            self._end("it returned False" if self._result() is False else "")
        except BaseException as exc:  # nobody else would hear of a SystemExit
            self._end(f"{type(exc).__name__}: {exc}".removesuffix(": "))

    def _result(self) -> object:
        check = self.check
        if is_async(check.function):
            return check.engine.result_of(self._limited)
        return check.function()

    async def _limited(self) -> object:
        """Await the function; cancel it once whoever waits for it has seen where it stands."""
        import asyncio

        self._coroutine = coroutine = self.check.function()
        try:
            async with asyncio.timeout(self.check.timeout + GRACE) as limit:
                return await coroutine
        except TimeoutError:
            if limit.expired():
                raise TimeoutError(self._no_answer()) from None
            raise
        finally:
            self._coroutine = None

    def _end(self, error: str) -> None:
        self.error = error
        self.ended = monotonic()
        self.done.set()

    def is_stale(self) -> bool:
        """Whether its outcome holds no more."""
        return self.done.is_set() and monotonic() - self.ended >= self.check.cache

    def seconds_left(self) -> float:
        """Return how long it is to be waited for."""
        return max(self.began + self.check.timeout - monotonic(), 0.0)

    def complaint(self) -> str:
        """Return what is wrong; empty if all is well. One that hangs is told with its stack."""
        if self.done.is_set():
            return self.error
        if not self._has_told:
            self._has_told = True
            self._tell_of_hang()
        return self._no_answer()

    def _no_answer(self) -> str:
        return f"no answer within {self.check.timeout:g} s"

    def _tell_of_hang(self) -> None:
        from engine_bridge.core.stacks import coroutine_stack, thread_stack

        seconds, coroutine = monotonic() - self.began, self._coroutine
        if coroutine is not None:
            stack = "".join(coroutine_stack(coroutine))
        else:
            stack = thread_stack(self._thread.ident or 0)
        text = f"health: check {self.check.name!r} still runs after {seconds:.1f} s\n{stack}"
        self.check.engine.log(text, WARNING)
