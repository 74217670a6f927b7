"""How long it takes from a save until the new code says its first line."""

import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from .measure import (
    FLOOR,
    OURS,
    Budget,
    Row,
    Table,
    calmest,
    differences,
    peers,
    ratios,
    spread,
    taking_turns,
)
from .processes import ENVIRONMENT

ROUNDS = 12
CALM = 0.5
LIMIT = 20.0
REST = 1.2  # seconds after which everybody watches again
POLL = 1.0  # seconds; CherryPy looks so often, and must not always be met at the same moment
OVER = Budget(50e-3, "<= floor + 50 ms")

BEGIN = """
import helper
from engine_bridge import engine
from engine_bridge.plugins import Autoreloader, SignalHandler
SignalHandler(engine).subscribe()
"""
SAY = """
print(helper.VALUE, flush=True)
"""
OUR_SCRIPT = (
    BEGIN + "Autoreloader(engine, backend={backend!r}).subscribe()\nengine.start()" + SAY
) + "engine.block()\n"

# All say the same first line. The floor begins anew without having been told to.
SCRIPTS = {
    FLOOR: BEGIN + "engine.start()" + SAY + "engine.block()\n",
    OURS: OUR_SCRIPT.format(backend="auto"),
    "ours, polling": OUR_SCRIPT.format(backend="polling"),
    "CherryPy": """
import helper
from cherrypy.process.wspbus import Bus
from cherrypy.process.plugins import Autoreloader
bus = Bus()
Autoreloader(bus).subscribe()
bus.start()
print(helper.VALUE, flush=True)
bus.block()
""",
    "uvicorn --reload": """
import helper
print(helper.VALUE, flush=True)
async def app(scope, receive, send):
    pass
""",
}
COMMANDS = {"uvicorn --reload": ["-m", "uvicorn", "app:app", "--reload", "--port", "0"]}


def run() -> list[Table]:
    samples = _measure()
    over = differences(samples, OURS, FLOOR)
    row = Row(
        "one file of a script",
        ours=spread(samples[OURS], 1e-3),
        floor=spread(samples[FLOOR], 1e-3),
        peers=peers(samples, 1e-3),
        ratio=spread(ratios(samples), digits=2),
        budget=OVER.text,
        verdict=OVER.verdict(over),
    )
    added = Row("of it, added to the floor", ours=spread(over, 1e-3))
    return [Table("from a save until the new code's first line", "ms", [row, added])]


def _measure() -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as root:
        turns: dict[str, Callable[[], float]] = {}
        running = []
        try:
            for name, source in SCRIPTS.items():
                folder = Path(root, name.replace(" ", "-"))
                folder.mkdir()
                (folder / "app.py").write_text(source)
                program = Program(folder, COMMANDS.get(name, ["app.py"]))
                program.save()
                if name == FLOOR:
                    turns[name] = program.begin_anew
                else:
                    running.append(program)
                    program.start()
                    turns[name] = program.save_and_wait
            samples = taking_turns(turns, ROUNDS)
        finally:
            for program in running:
                program.end()
    return calmest(samples, CALM, judges=(OURS, FLOOR))


class Program:
    """A program that says the value that it has loaded."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self._folder = folder
        self._words = words
        self._value = 0

    def save(self) -> None:
        """Save the file as editors do."""
        self._value += 1
        new = self._folder / "new"
        new.write_text(f"VALUE = {self._value}\n")
        new.rename(self._folder / "helper.py")

    def start(self) -> None:
        """Run it, and wait for its first line."""
        self._process = subprocess.Popen(
            [sys.executable, *self._words],
            cwd=self._folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait()

    def save_and_wait(self) -> float:
        """Return the seconds from a save to the line of the new code."""
        sleep(REST + random.uniform(0, POLL))
        self.save()
        since = monotonic()
        self._wait()
        return monotonic() - since

    def begin_anew(self) -> float:
        """Return the seconds from the start of a process to its line."""
        self.save()
        since = monotonic()
        self.start()
        seconds = monotonic() - since
        self.end()
        return seconds

    def _wait(self) -> None:
        """Read up to the present value."""
        assert self._process.stdout is not None
        with _readable(self._process.stdout) as line:
            while line() != b"%d\n" % self._value:
                pass

    def end(self) -> None:
        """End it and what it has started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def _readable(file: IO[bytes]) -> Iterator[Callable[[], bytes]]:
    """Yield what returns the next line of *file*, or fails where none comes."""
    poll = select.poll()
    poll.register(file, select.POLLIN)

    def line() -> bytes:
        if not poll.poll(LIMIT * 1000):
            raise RuntimeError(f"a program that is measured said nothing within {LIMIT} s")
        return file.readline() or _gone()

    yield line


def _gone() -> bytes:
    raise RuntimeError("a program that is measured has ended")
