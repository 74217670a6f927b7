"""
How everything here is measured: in rounds, all candidates in each, in rotated order.

The machine may be shared: a neighbour on the same core halves its speed for some milliseconds,
without a trace in CPU time. So turns are short, ratios and differences are formed within a round,
where both sides met the same weather, and of all rounds the calmest quarter is summarised:
median (min-max). What runs in this process is measured in CPU time of its thread.
"""

import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import monotonic, thread_time
from types import FunctionType
from typing import Any, TypeVar, cast

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
# Runs something the given number of times; returns the seconds it took.
Timed = Callable[[int], float]
Samples = dict[str, list[float]]

ROUNDS = 200
CALM = 0.25  # the share of the rounds that counts
TURN = 0.0005  # seconds that one candidate runs in a round
LIMIT, FEWEST = 30.0, 5  # seconds, and the rounds that there are in any case
OURS, FLOOR = "ours", "floor"


@dataclass(frozen=True, slots=True)
class Budget:
    """What DESIGN §10 allows: at most `limit`, said as `text`."""

    limit: float
    text: str

    def verdict(self, values: Sequence[float]) -> str:
        """Say `met`, `missed`, or `close`: over it, though a quarter of the rounds is within."""
        if median(values) <= self.limit:
            return "met"
        return "missed" if quantiles(values, n=4)[0] > self.limit else "close"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; every cell is ready to print."""

    what: str
    ours: str
    floor: str = ""
    peers: str = ""
    ratio: str = ""
    budget: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """What one bench has to say."""

    title: str
    unit: str
    rows: list[Row]


def statement(source: str, **names: Any) -> Timed:
    """Time the statement *source*, which sees *names* and is compiled for this one candidate."""
    return timeit.Timer(source, timer=thread_time, globals=names).timeit


def own_code(function: Function) -> Function:
    """
    Return a copy of *function* that shares no code with it.

    Python adapts code to the types that it meets, so candidates must not share what calls them.
    """
    assert isinstance(function, FunctionType)
    code, names = function.__code__.replace(), function.__globals__
    return cast("Function", FunctionType(code, names, function.__name__))


def in_rounds(
    candidates: Mapping[str, Timed], rounds: int = ROUNDS, share: float = CALM
) -> Samples:
    """
    Let *candidates* take turns; return the seconds of one run, by candidate and calm round.

    Args:
        candidates: What to time, by name.
        rounds: How many turns each candidate gets.
        share: The part of the rounds, the calmest ones, that counts.
    """
    turns = {name: _turn(timed) for name, timed in candidates.items()}
    return calmest(taking_turns(turns, rounds), share)


def taking_turns(turns: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """
    Call all *turns* in each of *rounds*, in rotated order; return what each gave.

    On a busy machine there may be fewer rounds: none begins after `LIMIT`.
    """
    until = monotonic() + LIMIT
    gave: dict[str, list[T]] = {name: [] for name in turns}
    order = list(turns)
    for number in range(rounds):
        if number >= FEWEST and monotonic() > until:
            break
        for name in order:
            gave[name].append(turns[name]())
        order.append(order.pop(0))
    return gave


def calmest(samples: Samples, share: float, judges: Iterable[str] = ()) -> Samples:
    """
    Keep a *share* of the rounds of *samples*: those in which all candidates together took least.

    Args:
        samples: What was measured, by candidate and round.
        share: The part to keep.
        judges: The candidates by which a round is judged; all of them if not given.
    """
    usual = {name: median(samples[name]) for name in judges or samples}

    def weather(number: int) -> float:
        return sum(samples[name][number] / usual[name] for name in usual)

    rounds = len(next(iter(samples.values())))
    kept = sorted(range(rounds), key=weather)[: max(FEWEST, round(rounds * share))]
    return {name: [values[number] for number in kept] for name, values in samples.items()}


def _turn(timed: Timed) -> Callable[[], float]:
    """Return what runs *timed* for one turn; warms up what specialises itself."""
    number = 1
    while (seconds := timed(number)) < TURN / 2:
        number *= 2
    number = max(1, round(number * TURN / seconds))
    return lambda: timed(number) / number


def ratios(samples: Samples, name: str = OURS, to: str = FLOOR) -> list[float]:
    """Return how many times as long *name* took, round by round."""
    return [mine / theirs for mine, theirs in zip(samples[name], samples[to], strict=True)]


def differences(samples: Samples, name: str, to: str) -> list[float]:
    """Return how much longer *name* took, round by round."""
    return [mine - theirs for mine, theirs in zip(samples[name], samples[to], strict=True)]


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 0) -> str:
    """Write *values*, counted in *unit*, as `median (min-max)`."""
    low, middle, high = (f"{of(values) / unit:.{digits}f}" for of in (min, median, max))
    return f"{middle} ({low}-{high})"


def compared(
    what: str, samples: Samples, budget: Budget | None = None, unit: float = 1e-9, digits: int = 0
) -> Row:
    """Return the row of *samples*: ours and the floor in full, the peers by their medians."""
    times = ratios(samples) if FLOOR in samples else []
    return Row(
        what,
        ours=spread(samples[OURS], unit, digits),
        floor=spread(samples[FLOOR], unit, digits) if times else "",
        peers=peers(samples, unit, digits),
        ratio=spread(times, digits=2) if times else "",
        budget=budget.text if budget else "",
        verdict=budget.verdict(times) if budget else "",
    )


def peers(samples: Samples, unit: float, digits: int = 0) -> str:
    """Name everybody else in *samples*, with the median."""
    return ", ".join(
        f"{name} {median(values) / unit:.{digits}f}"
        for name, values in samples.items()
        if name not in (OURS, FLOOR)
    )
