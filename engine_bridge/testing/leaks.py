"""
See what a test leaves behind: threads, tasks, descriptors, signal handlers.

Everything is compared with what was there before, so what a test runner holds does not matter. What
is just ending gets a moment to end.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from engine_bridge.core import signals
from engine_bridge.core.aio import running_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MOMENT = 2.0  # seconds; generous: they only pass when something is left
PAUSE = 0.005  # seconds between two looks

Found = dict[Any, str]  # what tells it apart, how to name it
Look = Callable[[], Found]


def threads() -> Found:
    """Return all threads; on Linux also those that `threading` does not know."""
    names = {thread.native_id: repr(thread) for thread in threading.enumerate()}
    try:
        numbers = list(map(int, os.listdir("/proc/self/task")))
    except OSError:
        numbers = [number for number in names if number is not None]
    return {("thread", number): f"thread {number} {names.get(number, '')}" for number in numbers}


def descriptors() -> Found:
    """Return the open file descriptors; nothing where the system does not list them."""
    found: Found = {}
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):  # the descriptor that listed them
                    target = _target(folder, name)
                    found["descriptor", name, target] = f"descriptor {name}: {target}"
            break
    return found


def _target(folder: str, name: str) -> str:
    if folder == "/proc/self/fd":
        return os.readlink(f"{folder}/{name}")
    status = os.fstat(int(name))
    return f"device {status.st_dev}, inode {status.st_ino}"


def tasks() -> Found:
    """Return the tasks of the loop that runs here, but for the one that asks."""
    if running_loop() is None:
        return {}
    import asyncio

    others = asyncio.all_tasks() - {asyncio.current_task()}
    return {("task", id(task)): f"task {task!r}" for task in others}


def left(look: Look, before: Found, moment: float = MOMENT) -> Found:
    """Return what *look* finds now and did not before, having given it *moment* seconds to go."""
    found: Found = {}
    for found in _looks(look, before, moment):
        time.sleep(PAUSE if found else 0)
    return found


def _looks(look: Look, before: Found, moment: float) -> Iterator[Found]:
    """
    Yield what is new until there is nothing, or the time is up; the last one counts.

    The last look comes after a pause that began late: on a busy machine one pause may take all the
    time there is, and what is just ending had no turn.
    """
    deadline = time.monotonic() + moment
    collected = is_last = False
    while True:
        found = {key: name for key, name in look().items() if key not in before}
        is_late = time.monotonic() > deadline
        yield found
        if not found or is_last:
            return
        is_last = collected and is_late
        if not collected:
            gc.collect()  # what only a cycle still holds is no leak
            collected = True


def no_leaks(*, moment: float = MOMENT) -> "NoLeaks":
    """
    Fail if what runs inside leaves something behind: a context manager.

    `with` looks at threads, descriptors and signal handlers, `async with` at the loop's tasks too.
    Handlers are put back; those of an engine do not count, since they end with its exit.

    Args:
        moment: Seconds to go, for what is just ending.

    Raises:
        AssertionError: It names all that is left.
    """
    return NoLeaks(moment)


class NoLeaks:
    """What `no_leaks` returns."""

    def __init__(self, moment: float) -> None:
        self._moment = moment

    def __enter__(self) -> None:
        self._looks = {look: look() for look in (threads, descriptors, tasks)}
        self._handlers = {number: _handler(number) for number in signal.valid_signals()}

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        complaints = self._restore_handlers()
        if error is not None:
            return  # that is the news; it may well be why something is left
        del self._looks[tasks]  # they cannot go while the loop waits for us
        for look, before in self._looks.items():
            complaints += left(look, before, self._moment).values()
        _complain(complaints)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: "type[BaseException] | None",
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        import asyncio

        complaints = self._restore_handlers()
        if error is not None:
            return
        for look, before in self._looks.items():
            found: Found = {}
            for found in _looks(look, before, self._moment):
                await asyncio.sleep(PAUSE if found else 0)
            complaints += found.values()
        _complain(complaints)

    def _restore_handlers(self) -> list[str]:
        """Put back the handlers that have changed, and name them."""
        complaints = []
        for number, before in self._handlers.items():
            now = _handler(number)
            if now == before:
                continue
            complaints.append(f"handler of {signal.Signals(number).name}: {now}")
            with suppress(ValueError, TypeError, OSError):  # not the main thread; not Python's
                signal.signal(number, before)
        return complaints


def _handler(number: int) -> Any:
    """Return the handler of a signal; None for what is not the test's business."""
    handler = signal.getsignal(number)
    while isinstance(handler, signals.Handler):
        handler = handler.predecessor
    if getattr(handler, "__module__", "") == "pytest_timeout":
        return None  # it gives up its SIGALRM when a test has failed
    return handler


def _complain(complaints: list[str]) -> None:
    if complaints:
        raise AssertionError("\n  ".join(["left behind:", *complaints]))
