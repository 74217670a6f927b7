"""
Write `docs/servers/contract.json` and the page from what the whole suite has recorded.

    PYTHONPATH=tests python -m servers.contract.page build/contract
"""

import json
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers.contract import record
from servers.contract.cell import CHANNELS
from servers.contract.departures import DEPARTURES, departures
from servers.contract.events import AGAIN, EVENTS, HANGS, IGNORED, REFUSES, ROLLS, WAITS
from servers.contract.modes import MODES, Mode

Cell = dict[str, Any]

LIVES = {"ours": " ".join(CHANNELS), "alone": "start stop"}
AFTERWARDS = {ROLLS: "↻", AGAIN: "⟲", REFUSES: "refused", IGNORED: "=", WAITS: "…"}

TOP = Path(__file__).with_name("top.md").read_text()
MINUS = "\N{MINUS SIGN}"


def main(folder: Path) -> None:
    """Write both files."""
    facts = collect(folder)
    record.write(record.RECORD, facts, deep=4)
    record.PAGE.write_text("\n".join(page(facts["cells"], facts["versions"])) + "\n")
    print(f"{sum(map(len, facts['cells']['ours'].values()))} cells in {record.PAGE}")


def collect(folder: Path) -> dict[str, Any]:
    """Return all that was recorded; complain if a cell is missing that can be had here."""
    cells: dict[str, dict[str, dict[str, Cell]]] = {"ours": {}, "alone": {}}
    for path in sorted(folder.glob("*/*/*.json")):
        who, mode, event = path.parts[-3:]
        cell = json.loads(path.read_text())
        assert not cell.pop("wrong"), path
        cells[who].setdefault(mode, {})[event.removesuffix(".json")] = cell
    wanted = {(mode.id, event) for mode in MODES for event in mode.follows}
    there = {(mode, event) for mode in cells["ours"] for event in cells["ours"][mode]}
    if missing := sorted(wanted - there):
        sys.exit(f"nothing was recorded of {missing}")
    versions = {mode.family: mode.version() for mode in MODES}
    return {
        "adapters": record.fingerprint(),
        "cells": cells,
        "versions": versions | {"Python": platform.python_version()},
    }


# -- the page ------------------------------------------------------------------------------------


def page(cells: dict[str, dict[str, dict[str, Cell]]], versions: dict[str, str]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield TOP
    for family in dict.fromkeys(mode.family for mode in MODES):
        modes = [mode for mode in MODES if mode.family == family]
        yield f"## {family}\n"
        yield f"Version {versions[family]}.\n"
        events = [event for event in EVENTS if any(event in mode.follows for mode in modes)]
        yield _row("", *(EVENTS[event].title for event in events))
        yield "|---" * (len(events) + 1) + "|"
        for mode in modes:
            yield from _rows(mode, events, cells["ours"][mode.id], cells["alone"][mode.alone_id])
        yield ""
    yield from _reasons()


def _rows(
    mode: Mode, events: list[str], ours: dict[str, Cell], alone: dict[str, Cell]
) -> Iterator[str]:
    first, second = [f"**{mode.name or mode.family}**"], ["*alone*"]
    for event in events:
        shown = text(event, ours[event], "ours") if event in ours else ""
        other = text(event, alone[event], "alone") if event in ours and event in alone else ""
        first.append(f"{shown}{_letters(mode, event)}" if shown else "")
        second.append(f"*{other}*" if other not in {"", shown} else "")
    yield _row(*first)
    if any(second[1:]):
        yield _row(*second)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def text(event: str, cell: Cell, who: str) -> str:
    """Return a cell in a few characters."""
    if cell["follows"] == HANGS:
        return HANGS
    lives = 2 if cell["follows"] == AGAIN else 1
    words = []
    if event != "failing-start":  # of which nothing comes to life
        words.append(_life(cell["published"], " ".join([LIVES[who]] * lives)))
    if cell["status"] is not None:
        words.append(str(cell["status"]).replace("-", MINUS))
    words.append(AFTERWARDS.get(cell["follows"], ""))
    if cell["request"] != "answered":
        words.append(cell["request"])
    return " ".join(filter(None, words))


def _life(published: dict[str, list[str]], life: str) -> str:
    sequences = [each for role in published.values() for each in role]
    if any(each != life and _is_too_much(each, life) for each in sequences) or "main" in published:
        return "2"
    if any(each != life for each in sequences):
        return "∅"
    return "✓" if sequences else ""


def _is_too_much(sequence: str, life: str) -> bool:
    found, wanted = Counter(sequence.split()), Counter(life.split())
    return any(found[channel] > wanted[channel] for channel in found)


def _letters(mode: Mode, event: str) -> str:
    letters = "".join(chr(ord("a") + DEPARTURES.index(d)) for d in departures(mode, event))
    return f" ({letters})" if letters else ""


def _reasons() -> Iterator[str]:
    yield "## Why not\n"
    yield "| | kind | |"
    yield "|---|---|---|"
    for number, each in enumerate(DEPARTURES):
        yield _row(f"({chr(ord('a') + number)})", each.kind, each.reason)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
