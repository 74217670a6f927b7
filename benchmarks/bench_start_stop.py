"""A cycle of `start()` and `stop()`."""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from engine_bridge import Engine

from .measure import FLOOR, OURS, Row, Table, Timed, compared, in_rounds, statement
from .peers import buses

CHANNELS = {"CherryPy": ("start", "stop"), "MagicBus": ("START", "STOP"), OURS: ("start", "stop")}
CYCLES = {
    "CherryPy": "bus.start(); bus.stop()",
    "MagicBus": "bus.transition('RUN'); bus.transition('IDLE')",
    OURS: "bus.start(); bus.stop()",
}


def run() -> list[Table]:
    return [Table("start() and stop(), a cycle", "us", [_row(0), _row(5)])]


def _row(count: int) -> Row:
    starts = [_make_listener() for _ in range(count)]
    stops = [_make_listener() for _ in range(count)]
    with _all_buses() as every:
        candidates: dict[str, Timed] = {
            FLOOR: statement(
                "for call in starts: call()\nfor call in stops: call()", starts=starts, stops=stops
            )
        }
        for name, bus in every.items():
            for channel, listeners in zip(CHANNELS[name], (starts, stops), strict=True):
                for listener in listeners:
                    bus.subscribe(channel, listener)
            candidates[name] = statement(CYCLES[name], bus=bus)
        samples = in_rounds(candidates)
    return compared(f"{count} listeners on each", samples, unit=1e-6, digits=1)


@contextmanager
def _all_buses() -> Iterator[dict[str, Any]]:
    """Yield the buses; afterwards undo what the peers left in `atexit`, one entry a cycle."""
    every = {OURS: Engine(), **buses()}
    try:
        yield every
    finally:
        atexit.unregister(every["CherryPy"]._clean_exit)
        atexit.unregister(every["MagicBus"].clean_exit._clean_exit)


def _make_listener() -> Callable[[], object]:
    return lambda: None
