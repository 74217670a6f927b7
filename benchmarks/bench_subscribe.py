"""`subscribe()` and `unsubscribe()` of one listener on a channel that has others."""

from collections.abc import Callable
from typing import Any

from engine_bridge import Engine

from .measure import FLOOR, OURS, Table, compared, in_rounds, statement
from .peers import buses

PAIR = "subscribe('channel', listener); unsubscribe('channel', listener)"
FLOOR_PAIR = "listeners.append(listener); listeners.remove(listener)"


def run() -> list[Table]:
    rows = [
        compared(f"with {count} others", in_rounds(_pair(count)), unit=1e-6, digits=2)
        for count in (5, 1000)
    ]
    return [Table("subscribe() and unsubscribe(), a pair", "us", rows)]


def _pair(count: int) -> dict[str, Any]:
    others: list[Callable[[], object]] = [_make_listener(number) for number in range(count)]
    candidates = {
        FLOOR: statement(FLOOR_PAIR, listeners=list(others), listener=_listener),
    }
    for name, bus in {OURS: Engine(), **buses()}.items():
        for other in others:
            bus.subscribe("channel", other)
        candidates[name] = statement(
            PAIR, subscribe=bus.subscribe, unsubscribe=bus.unsubscribe, listener=_listener
        )
    return candidates


def _make_listener(number: int) -> Callable[[], object]:
    return lambda: number


def _listener() -> None:
    """Do nothing."""
