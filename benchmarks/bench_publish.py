"""`publish()`, quiet and while other threads subscribe and unsubscribe."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from engine_bridge import Engine

from .measure import FLOOR, OURS, Budget, Row, Table, compared, in_rounds, own_code, statement
from .peers import buses

Listener = Callable[..., object]

PLAIN = Budget(2.5, "<= 2.5x floor")
WITH_ARGUMENT = Budget(3.0, "<= 3x floor")
CHURN_SECONDS = 2.0
SWITCH_INTERVAL = 1e-5  # seconds; the default of 5 ms hides most races


def run() -> list[Table]:
    return [
        Table("publish()", "ns", [*_quiet_rows(), _unknown_row(), _raising_row()]),
        Table(
            f"publish() for {CHURN_SECONDS:g} s while three threads subscribe and unsubscribe",
            "raised",
            [_churn_row()],
        ),
    ]


def loop_over(listeners: list[Listener]) -> None:
    """Call them all: the floor."""
    for listener in listeners:
        listener()


def loop_over_with(listeners: list[Listener], value: object) -> None:
    for listener in listeners:
        listener(value)


def _quiet_rows() -> Iterator[Row]:
    for count in (0, 1, 5, 20):
        for priorities in ("equal", "mixed") if count > 1 else ("",):
            what = f"{count} listener{'' if count == 1 else 's'} {priorities}".strip()
            yield compared(what, in_rounds(_plain(count, priorities)), PLAIN)
            yield compared(
                f"{what}, one argument",
                in_rounds(_with_argument(count, priorities)),
                WITH_ARGUMENT,
            )


def _plain(count: int, priorities: str) -> dict[str, Any]:
    listeners = [_make_listener() for _ in range(count)]
    return {
        FLOOR: statement("loop(listeners)", loop=loop_over, listeners=listeners),
        **{
            name: statement("publish('channel')", publish=bus.publish)
            for name, bus in _buses_with(listeners, priorities).items()
        },
    }


def _with_argument(count: int, priorities: str) -> dict[str, Any]:
    listeners = [_make_listener_with() for _ in range(count)]
    return {
        FLOOR: statement("loop(listeners, 1)", loop=loop_over_with, listeners=listeners),
        **{
            name: statement("publish('channel', 1)", publish=bus.publish)
            for name, bus in _buses_with(listeners, priorities).items()
        },
    }


def _make_listener() -> Listener:
    return own_code(lambda: None)  # different listeners have different code


def _make_listener_with() -> Listener:
    return own_code(lambda value: None)


def _buses_with(listeners: Iterable[Listener], priorities: str = "equal") -> dict[str, Any]:
    """Return all buses with *listeners* on `channel`, which exists in any case."""
    every = {OURS: Engine(), **buses()}
    for bus in every.values():
        bus.subscribe("channel", loop_over)
        bus.unsubscribe("channel", loop_over)
        for number, listener in enumerate(listeners):
            bus.subscribe("channel", listener, 50 - number if priorities == "mixed" else 50)
    return every


def _unknown_row() -> Row:
    candidates = {
        name: statement("publish('no such channel')", publish=bus.publish)
        for name, bus in _buses_with(()).items()
    }
    return compared("unknown channel", in_rounds(candidates))


def _raising_row() -> Row:
    listeners = [_make_listener(), _fail, _make_listener()]
    attempt = "try:\n    publish('channel')\nexcept Exception:\n    pass"
    floor = "try:\n    loop(listeners)\nexcept Exception:\n    pass"
    candidates = {
        FLOOR: statement(floor, loop=loop_over, listeners=[listeners[0], *listeners[::2], _fail]),
        **{
            name: statement(attempt, publish=bus.publish)
            for name, bus in _buses_with(listeners).items()
        },
    }
    return compared("3 listeners, one raises", in_rounds(candidates))


def _fail() -> None:
    raise ValueError("on purpose")


def _churn_row() -> Row:
    told = {name: _publish_under_churn(bus) for name, bus in _buses_with(()).items()}
    raised, _ = told[OURS]
    return Row(
        "calls that raised",
        ours=_share(*told.pop(OURS)),
        peers=", ".join(f"{name} {_share(*counts)}" for name, counts in told.items()),
        budget="0",
        verdict="missed" if raised else "met",
    )


def _publish_under_churn(bus: Any) -> tuple[int, int]:
    """Publish for `CHURN_SECONDS`; return how many calls raised, of how many."""
    raised = calls = 0
    for listener in [_make_listener() for _ in range(5)]:
        bus.subscribe("channel", listener)
    with _churning(bus):
        until = monotonic() + CHURN_SECONDS
        while monotonic() < until:
            calls += 1
            try:
                bus.publish("channel")
            except Exception:
                raised += 1
    return raised, calls


@contextmanager
def _churning(bus: Any) -> Iterator[None]:
    """Have three threads subscribe and unsubscribe meanwhile."""
    enough = threading.Event()

    def churn() -> None:
        listeners = [_make_listener() for _ in range(10)]
        while not enough.is_set():
            for listener in listeners:
                bus.subscribe("channel", listener)
            for listener in listeners:
                bus.unsubscribe("channel", listener)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)


def _share(raised: int, calls: int) -> str:
    return f"{raised} of {calls} ({raised / calls:.1%})" if raised else f"0 of {calls}"
