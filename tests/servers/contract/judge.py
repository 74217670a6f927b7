"""Whether what was found in a cell is what the contract says."""

import re
from collections.abc import Iterator
from dataclasses import replace

from servers.contract.cell import CHANNELS, Found
from servers.contract.departures import Departure, departures
from servers.contract.events import EXITS, HANGS, IGNORED
from servers.contract.modes import Mode

LIFE = " ".join(CHANNELS)
# `failed` is not there where another worker's failure ends the server meanwhile, `exit` only where
# the process leaves by itself.
ROLLED_BACK = re.compile("((failed )?stop ?)+(exit)?")
UNAVAILABLE = "503"


def judge(mode: Mode, event: str, found: Found, alone: Found | None) -> list[str]:
    """Return what is wrong with a cell; with the server *alone* also what got worse."""
    listed = departures(mode, event)
    if event == "failing-start":
        return [*found.wrong, *_failed(mode, found, alone, listed)]
    wrong = [*found.wrong, *_published(found, listed)]
    if alone is not None and alone.follows != HANGS:
        wrong += _against(alone, found, listed)
    return wrong


def _published(found: Found, listed: list[Departure]) -> Iterator[str]:
    for role, sequences in found.published.items():
        instead = [each for each in listed if role in each.published]
        allowed = {each.published[role] for each in instead} or {LIFE}
        for sequence in sequences:
            by_chance = any(not each.always for each in instead) and LIFE.startswith(sequence)
            if sequence not in allowed and not by_chance:
                yield f"{role}: published {sequence!r}, not {allowed}"


def _against(alone: Found, found: Found, listed: list[Departure]) -> Iterator[str]:
    yield from _status(alone, found, listed)
    if found.request not in {"answered", "", alone.request}:
        yield f"the request in flight is {found.request}, {alone.request} with the server alone"


def _status(alone: Found, found: Found, listed: list[Departure]) -> Iterator[str]:
    others = [each for each in listed if each.statuses]
    allowed: set[int | None] = {status for each in others for status in each.statuses}
    if found.status not in (allowed or {alone.status}):
        yield f"exit status {found.status}, {alone.status} with the server alone, listed {allowed}"
    if alone.status in allowed and all(each.always for each in others):
        yield f"the server alone has exit status {alone.status} as well: no departure"


def steady(found: Found, mode: Mode, event: str) -> Found:
    """Return *found* with that which is there by chance as the first that is listed."""
    published, status = dict(found.published), found.status
    for each in departures(mode, event):
        if each.always:
            continue
        if status in each.statuses:
            status = each.statuses[0]
        published |= {role: [text] for role, text in each.published.items() if role in published}
    return replace(found, status=status, published=published)


def _failed(
    mode: Mode, found: Found, alone: Found | None, listed: list[Departure]
) -> Iterator[str]:
    """Where the start is early its failure ends the server, or at least it does not serve."""
    if not mode.eager:
        if (found.follows, found.request) != (IGNORED, UNAVAILABLE):
            yield f"requests are not answered by 503: {found}"
    elif alone is not None:
        yield from _status(alone, found, listed)
    elif found.follows == EXITS and not found.status:
        yield "a failed start ends the server with status 0"
    for role, sequences in found.published.items():
        for sequence in sequences:
            if not ROLLED_BACK.fullmatch(sequence):
                yield f"{role}: published {sequence!r}"
