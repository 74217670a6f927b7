"""Where everything stands: all threads, all tasks, and what the engine did last."""

import gc
import sys
import threading
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .engine import Engine


def dump(engine: "Engine") -> str:
    """Return the stacks of all threads and asyncio tasks, the engine's state and last records."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [repr(engine), *(record.message() for record in engine.last_records)]
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, '?')} ({ident}):")
        parts.append("".join(traceback.format_stack(frame)))
    for task in _tasks():
        parts.append(f"task {task.get_name()}:")
        parts.append("".join(coroutine_stack(task.get_coro())))
    return "\n".join(parts)


def thread_stack(ident: int) -> str:
    """Return where the thread *ident* stands; empty if it has ended."""
    frame = sys._current_frames().get(ident)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""


def coroutine_stack(coroutine: "Any") -> list[str]:
    """Return the lines of a suspended coroutine's stack, outermost call first."""
    lines: list[str] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
        if frame is None:
            break
        summary = traceback.StackSummary.extract(iter([(frame, frame.f_lineno)]))
        lines += traceback.format_list(summary)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "ag_await", None)
    return lines


def _tasks() -> "list[Any]":
    """
    Return the tasks of every loop.

    Nobody keeps a list of the loops; asyncio's own list of tasks differs from version to version.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return []
    found = (
        entry for entry in gc.get_objects() if issubclass(type(entry), asyncio.AbstractEventLoop)
    )
    return [task for loop in found for task in asyncio.all_tasks(loop)]
