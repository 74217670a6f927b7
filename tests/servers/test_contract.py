"""
One contract for all servers: `start`, `drain` and `stop` once in each worker, whatever happens.

`make test` runs the cells that cost little; `make contract` runs all of them, each beside the
server alone, and writes the table of `docs/servers/contract.md`.
"""

from dataclasses import asdict
from pathlib import Path

import pytest
from servers.contract import record
from servers.contract.cell import Found, run_cell
from servers.contract.departures import alone_hangs
from servers.contract.events import EVENTS, HANGS
from servers.contract.judge import judge, steady
from servers.contract.modes import BY_ID, MODES, Mode

WHOLE = record.folder()
CELLS = [
    (mode.id, event)
    for mode in MODES
    for event in EVENTS
    if event in mode.follows and (WHOLE or event in mode.quick)
]


@pytest.mark.timeout(60 if WHOLE else 20)  # two servers, one after the other
@pytest.mark.parametrize(("name", "event"), CELLS, ids=[" ".join(cell) for cell in CELLS])
def test_contract_holds(name: str, event: str, tmp_path: Path) -> None:
    """Each worker starts, drains and stops once; nothing is worse than with the server alone."""
    mode = BY_ID[name]
    if need := mode.missing():
        pytest.skip(f"needs {need}")
    found = run_cell(mode, event, subfolder(tmp_path, "ours"))
    wrong = judge(mode, event, found, run_alone(mode, event, tmp_path))
    if WHOLE:
        record.write(WHOLE / "ours" / mode.id / f"{event}.json", asdict(steady(found, mode, event)))
    assert not wrong, "\n".join([*wrong, repr(found)])


def run_alone(mode: Mode, event: str, tmp_path: Path) -> Found | None:
    """Return the cell of the server alone, which modes that differ in ours only share."""
    if WHOLE is None or not compares(mode, event):
        return None
    path = WHOLE / "alone" / mode.alone_id / f"{event}.json"
    place = subfolder(tmp_path, "alone")
    return Found(**record.once(path, lambda: asdict(measure_alone(mode, event, place))))


def measure_alone(mode: Mode, event: str, folder: Path) -> Found:
    """Run the cell of the server alone; one that never leaves is no fault of ours."""
    if alone_hangs(mode, event):
        return Found(HANGS)
    try:
        return steady(run_cell(mode, event, folder, alone=True), mode, event)
    except AssertionError as exc:
        if "still runs" not in str(exc):
            raise
        return Found(HANGS)


def compares(mode: Mode, event: str) -> bool:
    """Whether the server alone can do the same; a start on import cannot fail like ours."""
    return event != "restart" and (event != "failing-start" or mode.starts == "lifespan")


def subfolder(folder: Path, name: str) -> Path:
    """Make a folder."""
    path = folder / name
    path.mkdir()
    return path
