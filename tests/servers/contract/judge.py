"""Whether what was found in a cell is what the contract says."""

import re
from collections.abc import Iterator
from dataclasses import replace

from servers.contract.cell import CHANNELS, Found
from servers.contract.departures import CHOICE, Departure, departures
from servers.contract.events import AGAIN, EXITS, HANGS, IGNORED
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
    wrong = [*found.wrong, *_published(found, listed), *_request(found, listed)]
    if alone is not None and alone.follows != HANGS:
        wrong += _against(alone, found, listed)
    return wrong


def _published(found: Found, listed: list[Departure]) -> Iterator[str]:
    life = f"{LIFE} {LIFE}" if found.follows == AGAIN else LIFE
    for role, sequences in found.published.items():
        instead = [each for each in listed if role in each.published]
        allowed = {each.published[role] for each in instead} or {life}
        for sequence in sequences:
            by_chance = any(not each.always for each in instead) and life.startswith(sequence)
            if sequence not in allowed and not by_chance:
                yield f"{role}: published {sequence!r}, not {allowed}"


def _request(found: Found, listed: list[Departure]) -> Iterator[str]:
    """Have a reason for each request that is not answered."""
    others = [each for each in listed if each.requests]
    allowed = {fate for each in others for fate in each.requests}
    if any(each.always for each in others):
        if found.request not in {"", *allowed}:
            yield f"the request in flight is {found.request}, listed {allowed}"
    elif found.request not in {"answered", "", *allowed}:
        yield f"the request in flight is {found.request}, and no reason is listed"


def _against(alone: Found, found: Found, listed: list[Departure]) -> Iterator[str]:
    yield from _status(alone, found, listed)
    listed_fates = {fate for each in listed for fate in each.requests}
    if found.request not in {"answered", "", alone.request, *listed_fates}:
        yield f"the request in flight is {found.request}, {alone.request} with the server alone"


def _status(alone: Found, found: Found, listed: list[Departure]) -> Iterator[str]:
    others = [each for each in listed if each.statuses]
    allowed: set[int | None] = {status for each in others for status in each.statuses}
    if found.status not in (allowed or {alone.status}):
        yield f"exit status {found.status}, {alone.status} with the server alone, listed {allowed}"
    if alone.status in allowed and any(each.kind == CHOICE for each in others):
        yield f"the server alone has exit status {alone.status} as well: no departure"


def steady(found: Found, mode: Mode, event: str) -> Found:
    """Return *found* with that which is there by chance as the first that is listed."""
    published, status, request = dict(found.published), found.status, found.request
    for each in departures(mode, event):
        if request in each.requests:
            request = each.requests[0]
        if each.always:
            continue
        if status in each.statuses:
            status = each.statuses[0]
        published |= {role: [text] for role, text in each.published.items() if role in published}
    return replace(found, status=status, request=request, published=published)


def _failed(
    mode: Mode, found: Found, alone: Found | None, listed: list[Departure]
) -> Iterator[str]:
    """Where the start is early its failure ends the server, or at least it does not serve."""
    if not mode.eager:
        if (found.follows, found.request) != (IGNORED, UNAVAILABLE):
            yield f"requests are not answered by 503: {found}"
    elif found.follows == EXITS and not found.status and not any(e.statuses for e in listed):
        yield "a failed start ends the server with status 0"
    elif alone is not None:
        yield from _status(alone, found, listed)
    for role, sequences in found.published.items():
        for sequence in sequences:
            if not ROLLED_BACK.fullmatch(sequence):
                yield f"{role}: published {sequence!r}"
