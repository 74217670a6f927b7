"""`import engine_bridge` in a cold process."""

from functools import partial
from statistics import median

from .measure import (
    OURS,
    Budget,
    Row,
    Samples,
    Table,
    calmest,
    differences,
    spread,
    taking_turns,
)
from .processes import Cost, cost_of, output_of

ROUNDS, CALM = 40, 0.25
BARE = "bare"
SOURCES = {
    BARE: "pass",
    OURS: "import engine_bridge",
    "MagicBus": "import magicbus.process",
    "CherryPy": "import cherrypy.process.wspbus",
}
# CPU seconds of `python -c pass` where the budget was set (`reference/performance.md`, 1e).
REFERENCE = 11.5e-3
CPU = Budget(15e-3, "<= 15 ms")
MEMORY = Budget(5, "<= 5 MiB")
LATE = ("asyncio", "logging", "subprocess", "dataclasses", "inspect")  # imported when first needed


def run() -> list[Table]:
    costs = _costs()
    cpu = {name: [cost.cpu for cost in costs[name]] for name in costs}
    wall = {name: [cost.wall for cost in costs[name]] for name in costs}
    memory = {name: [cost.memory for cost in costs[name]] for name in costs}
    rows = [
        _row("CPU ms", cpu, 1e-3),
        _row(f"CPU ms, where Python takes {REFERENCE * 1e3:g}", _at_reference(cpu), 1e-3, CPU),
        _row("wall ms", wall, 1e-3),
        _row("MiB", memory, 1, MEMORY),
        _late_row(),
    ]
    return [Table("import, over `python -c pass` of the same round", "ms and MiB", rows)]


def _at_reference(samples: Samples) -> Samples:
    """Return *samples* as they would be on a machine of the reference's pace."""
    return {
        name: [value * REFERENCE / bare for value, bare in zip(values, samples[BARE], strict=True)]
        for name, values in samples.items()
    }


def _costs() -> dict[str, list[Cost]]:
    for source in SOURCES.values():
        cost_of(source)  # compiles what is not yet
    return taking_turns(
        {name: partial(cost_of, source) for name, source in SOURCES.items()}, ROUNDS
    )


def _row(what: str, samples: Samples, unit: float, budget: Budget | None = None) -> Row:
    samples = calmest(samples, CALM)
    added = {name: differences(samples, name, BARE) for name in samples if name != BARE}
    ours = added.pop(OURS)
    return Row(
        what,
        ours=spread(ours, unit, 1),
        floor=f"{spread(samples[BARE], unit, 1)}",
        peers=", ".join(f"{name} {median(values) / unit:.1f}" for name, values in added.items()),
        budget=budget.text if budget else "",
        verdict=budget.verdict(ours) if budget else "",
    )


def _late_row() -> Row:
    """Say which modules came along that should come when first needed."""
    source = f"import engine_bridge, sys; print(*sys.modules.keys() & {set(LATE)!r})"
    early = output_of(source).split()
    return Row(
        f"of {', '.join(LATE)}",
        ours=", ".join(sorted(early)) or "none",
        budget="none",
        verdict="missed" if early else "met",
    )
