"""
A program that sends itself a signal at each of many points of an engine's life.

    sweep.py PLAN SIGNAL POINTS TIMES [FUNCTIONS]

One forked child per point. A trace function counts the bytecodes that the main thread runs in
files of ours, or only in those FUNCTIONS; at the chosen one, and TIMES - 1 times soon after it, it
raises the signal, and the handler runs there and then: more points than Python itself ever chooses.
The first child, without a signal, tells how many there are. Prints for each point a JSON list:
where it was, how the child ended, what it noted.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Collection
from types import FrameType
from typing import Any

import engine_bridge
from engine_bridge import Engine, State
from engine_bridge.core import signals
from engine_bridge.plugins import SignalHandler

OURS = os.path.dirname(engine_bridge.__file__)
SOON = 150  # bytecodes
LIMIT = 10.0  # seconds in which a child must have ended; else it is a deadlock


class Bomb:
    """Raises a signal at the bytecode number *point*, and again soon after."""

    def __init__(self, point: int, signum: int, times: int, functions: Collection[str]) -> None:
        self.points = [point + SOON * number for number in range(times)]
        self.signum = signum
        self.functions = functions
        self.count = 0
        self.notes = -1
        self.exploded = False
        self._unwound: FrameType | None = None

    def trace(self, frame: FrameType, event: str, arg: object) -> Any:
        """Count, for sys.settrace."""
        if frame.f_code is signals.unwind.__code__:
            # Between its end and its caller's Python never runs a handler.
            self._unwound = frame.f_back if event == "return" else None
            return self.trace
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if self.functions and frame.f_code.co_name not in self.functions:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.points and self.count >= self.points[0] > 0 and frame is not self._unwound:
                self.exploded = True
                self.points.pop(0)
                if not self.points:
                    sys.settrace(None)
                place = f"@{frame.f_code.co_qualname}:{frame.f_lineno} "
                os.write(self.notes, place.encode())
                signal.raise_signal(self.signum)
        return self.trace


def make_engine(notes: int, asynchronous: bool) -> Engine:
    """Return an engine that writes its channels to the descriptor *notes*."""
    engine = Engine(start_timeout=5, stop_timeout=5)
    for channel in ("start", "drain", "stop", "exit", "graceful"):
        for part in ("1", "2"):

            def note(text: str = f"{channel}{part} ") -> None:
                os.write(notes, text.encode())

            async def note_async(text: str = f"{channel}{part} ") -> None:
                await asyncio.sleep(0)
                os.write(notes, text.encode())

            engine.subscribe(channel, note_async if asynchronous else note)
    return engine


def in_thread(engine: Engine) -> None:
    """Start and exit in the main thread."""
    engine.start()
    engine.exit()


def in_task(engine: Engine) -> None:
    """Start and exit on a loop of the main thread."""

    async def main() -> None:
        async with engine:
            await asyncio.sleep(0)

    asyncio.run(main())


def in_block(engine: Engine) -> None:
    """Start, have another thread exit, and block meanwhile."""
    engine.start()
    threading.Thread(target=engine.exit, daemon=True).start()
    engine.block()


def by_wait(engine: Engine) -> None:
    """Start, have another thread exit, and wait for that meanwhile."""
    engine.start()
    threading.Thread(target=engine.exit, daemon=True).start()
    engine.wait(State.EXITING)


PLANS = {plan.__name__: plan for plan in (in_thread, in_task, in_block, by_wait)}


def live(plan: str, bomb: Bomb, notes: int) -> None:
    """Live one life, with the *bomb* aboard; the process ends as any script does."""
    name, _, asynchronous = plan.partition(":")
    engine = make_engine(notes, bool(asynchronous))
    heard = threading.Event()
    engine.subscribe("graceful", heard.set, priority=90)
    SignalHandler(engine).subscribe()
    bomb.notes = notes
    sys.settrace(bomb.trace)
    try:
        PLANS[name](engine)
    finally:
        sys.settrace(None)
        os.write(notes, f"#{bomb.count} ".encode())
        if bomb.signum == signal.SIGUSR1 and bomb.exploded:
            heard.wait(LIMIT / 2)


def outcome(pid: int, notes: int) -> tuple[object, str]:
    """Wait for a child; return how it ended and what it noted."""
    watch = os.pidfd_open(pid)
    ended = select.select([watch], [], [], LIMIT)[0]
    os.close(watch)
    if not ended:
        os.kill(pid, signal.SIGABRT)  # faulthandler tells where everything stands
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BlockingIOError):
        return (status if ended else "deadlock"), os.read(notes, 65536).decode()
    return status, ""


def run(plan: str, bomb: Bomb) -> tuple[object, str] | None:
    """Have a child live a life; return None in the child, when it has lived."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    pid = os.fork()
    if not pid:
        live(plan, bomb, write)
        return None
    os.close(write)
    try:
        return outcome(pid, read)
    finally:
        os.close(read)


def tell(found: tuple[object, str]) -> int:
    """Print what became of a child; return how many bytecodes it has run, if it tells."""
    words = found[1].split()
    places = [word for word in words if word.startswith("@")]
    counts = [word for word in words if word.startswith("#")]
    noted = [word for word in words if word[0] not in "@#"]
    print(json.dumps([" ".join(places), found[0], noted]), flush=True)
    return int(counts[0][1:]) if counts else 0


def main(plan: str, signum: int, points: int, times: int, functions: Collection[str]) -> None:
    """Go through the points, evenly spaced."""
    found = run(plan, Bomb(-SOON * times, signum, times, functions))
    if found is None:
        return
    total = tell(found)
    for number in range(points):
        point = 1 + number * (total - 1) // (points - 1)
        found = run(plan, Bomb(point, signum, times, functions))
        if found is None:
            return
        tell(found)


if __name__ == "__main__":
    import faulthandler

    faulthandler.enable()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
