"""An event that threads and tasks can wait for alike."""

import threading
from collections.abc import Callable
from time import monotonic

from .notes import in_main_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LISTEN = 1.0  # seconds between two moments at which a waiting main thread hears signals for sure


class Flag:
    """
    False until set; threads wait for it, tasks await it, and functions can be told.

    All flags of an engine share its one condition. Not for signal handlers: `set` takes a lock.
    """

    def __init__(self, condition: threading.Condition | None = None) -> None:
        self._condition = condition or threading.Condition()
        self._is_set = False
        self._calls: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        """Return whether it has been set."""
        return self._is_set

    def set(self) -> None:
        """Set it, wake all who wait, and tell those who asked to be told."""
        with self._condition:
            if self._is_set:
                return
            self._is_set = True
            calls, self._calls = self._calls, []
            self._condition.notify_all()
        for call in calls:
            call()

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until it is set, *timeout* seconds at most; return whether it is."""
        if self._is_set:
            return True
        with self._condition:
            return wait_for(self._condition, self.is_set, timeout)

    async def wait_async(self, timeout: float | None = None) -> bool:
        """Suspend this task until it is set, *timeout* seconds at most; return whether it is."""
        import asyncio

        if self._is_set:
            return True
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        wake = self.tell(lambda: call_soon(loop, _resolve, future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            pass
        finally:
            self.forget(wake)
        return self._is_set

    def tell(self, call: Callable[[], object]) -> Callable[[], object]:
        """Have *call* called once it is set, at once if it is already; return *call*."""
        with self._condition:
            if not self._is_set:
                self._calls.append(call)
                return call
        call()
        return call

    def forget(self, call: Callable[[], object]) -> None:
        """Undo `tell`."""
        with self._condition:
            if call in self._calls:
                self._calls.remove(call)


def wait_for(
    condition: threading.Condition, predicate: Callable[[], bool], timeout: float | None = None
) -> bool:
    """
    Do as `condition.wait_for`, and hear signals in the main thread.

    A signal that comes just as the thread falls asleep, or that the kernel hands to another one,
    does not wake it. So it wakes by itself, every second.
    """
    if not in_main_thread():
        return condition.wait_for(predicate, timeout)
    deadline = None if timeout is None else monotonic() + timeout
    while not (found := predicate()):
        left = LISTEN if deadline is None else deadline - monotonic()
        if left <= 0:
            break
        condition.wait(min(left, LISTEN))
    return found


def call_soon(loop: "Any", function: Callable[..., object], *args: object) -> None:
    """Call *function* on *loop* from any thread; a loop that is closed needs no telling."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def _resolve(future: "Any") -> None:
    if not future.done():
        future.set_result(None)
