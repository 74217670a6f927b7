"""How long a process that waits takes to leave, once it is told to."""

import random
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from .measure import (
    FLOOR,
    OURS,
    Budget,
    Row,
    Samples,
    Table,
    calmest,
    differences,
    peers,
    ratios,
    spread,
    taking_turns,
)
from .processes import cost_of_leaving, seconds_after_sigterm

T = TypeVar("T")

CALM = 0.25
POLL = 0.1  # seconds; CherryPy looks up so often
THREAD = Budget(1.2, "<= 1.2x floor")
SIGTERM = Budget(50e-3, "<= floor + 50 ms")

# The floor imports what ours imports: what the interpreter needs to take modules apart at its end
# is no work of `exit()`. What that costs shows beside the script that imports nothing of ours.
BARE = "bare Event"

# Each defines `wait`, which returns when `leave` has been called in another thread.
WAITS = {
    FLOOR: """
import threading, engine_bridge
told = threading.Event()
wait, leave = told.wait, told.set
""",
    BARE: """
import threading
told = threading.Event()
wait, leave = told.wait, told.set
""",
    OURS: """
import threading
from engine_bridge import engine
engine.start()
wait, leave = engine.block, engine.exit
""",
    "CherryPy": """
import threading
from cherrypy.process.wspbus import Bus
bus = Bus()
bus.start()
wait, leave = bus.block, bus.exit
""",
    "MagicBus": """
import threading
threading.Thread.isAlive = threading.Thread.is_alive  # it calls what Thread no longer has
from magicbus.process import ProcessBus
bus = ProcessBus()
bus.transition("RUN")
def leave():
    try:
        bus.transition("EXITED")
    except OSError:
        pass  # the waiter closed its pipe meanwhile, magicbus#16
wait = bus.block
""",
}
LEAVE_IN_A_THREAD = """
import sys, time
def tell():
    time.sleep(float(sys.argv[1]))
    print(time.monotonic(), time.process_time(), flush=True)
    leave()
threading.Thread(target=tell).start()
wait()
"""

HANDLERS = {
    FLOOR: """
import signal
signal.signal(signal.SIGTERM, lambda signum, frame: leave())
""",
    OURS: """
from engine_bridge.plugins import SignalHandler
SignalHandler(engine).subscribe()
""",
    "CherryPy": """
from cherrypy.process.plugins import SignalHandler
SignalHandler(bus).subscribe()
""",
    "MagicBus": """
from magicbus.plugins.signalhandler import SignalHandler
SignalHandler(bus).set_handler("SIGTERM", leave)
""",
}
WAIT_FOR_SIGTERM = """
print("ready", flush=True)
wait()
"""


def run() -> list[Table]:
    in_thread = {name: source + LEAVE_IN_A_THREAD for name, source in WAITS.items()}
    by_signal = {name: WAITS[name] + code + WAIT_FOR_SIGTERM for name, code in HANDLERS.items()}
    left = _rounds(in_thread, cost_of_leaving, 40)
    wall = _calmest({name: [cost.wall for cost in costs] for name, costs in left.items()})
    cpu = _calmest({name: [cost.cpu for cost in costs] for name, costs in left.items()})
    ended = _calmest(_rounds(by_signal, seconds_after_sigterm, 12))
    return [
        Table(
            "from the word until the process is gone",
            "ms",
            [
                _row("exit() in a thread", wall, THREAD.text, THREAD.verdict(ratios(wall))),
                _row("exit() in a thread, CPU", cpu),
                _row(
                    "SIGTERM",
                    ended,
                    SIGTERM.text,
                    SIGTERM.verdict(differences(ended, OURS, FLOOR)),
                ),
            ],
        )
    ]


def _rounds(
    sources: dict[str, str], measure: Callable[[str, float], T], rounds: int
) -> dict[str, list[T]]:
    """Measure each source in each round, the word coming at a random moment."""

    def turn(source: str) -> T:
        return measure(source, random.uniform(0, POLL))

    return taking_turns({name: partial(turn, source) for name, source in sources.items()}, rounds)


def _calmest(samples: Samples) -> Samples:
    """Keep the calmest rounds, but not those in which a peer that polls was lucky."""
    return calmest(samples, CALM, judges=(OURS, FLOOR))


def _row(what: str, samples: Samples, budget: str = "", verdict: str = "") -> Row:
    return Row(
        what,
        ours=spread(samples[OURS], 1e-3, 1),
        floor=spread(samples[FLOOR], 1e-3, 1),
        peers=peers(samples, 1e-3, 1),
        ratio=spread(ratios(samples), digits=2),
        budget=budget,
        verdict=verdict,
    )
