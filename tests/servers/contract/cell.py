"""One cell of the contract: run a server, have the event happen, tell what came of it."""

import os
import signal
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import (
    InFlight,
    Process,
    Server,
    accepts,
    all_asleep,
    attempt,
    exists,
    kill_all,
    run_server,
    start_request,
    wait_gone,
    wait_until,
)
from servers.contract.events import (
    AGAIN,
    EVENTS,
    EXITS,
    IGNORED,
    NOTICED,
    ORPHANS,
    REFUSES,
    ROLLS,
    WAITS,
)
from servers.contract.modes import Mode
from servers.launch import hold_request, release, who_published

CHANNELS = ("start", "drain", "stop", "exit")
PATIENCE = 1.5  # seconds in which a server that does not wait for a request shows it
LIMIT = 12.0
FIRST = 8  # requests at once, of which each may be the first


@dataclass
class Found:
    """
    What came of one cell.

    Attributes:
        follows: What the main process did, see `events.py`.
        status: Its exit status; None if it stayed.
        request: What became of the request in flight: `answered`, `500`, `lost`, or nothing if
            there was none.
        published: By role, the channels that each of its processes published, each sequence once.
            The roles: `busy` with the request in flight, `idle` beside it, `new` after the event,
            `main`.
        wrong: What holds for no server: it did not answer, or a request came before the start.
    """

    follows: str
    status: int | None = None
    request: str = ""
    published: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def run_cell(mode: Mode, event: str, folder: Path, *, alone: bool = False) -> Found:
    """Run the cell of *mode* and *event*, without the engine if *alone*."""
    if mode.prepare is not None:
        mode.prepare(folder, mode.app(alone))
    run = _fail if event == "failing-start" else _live
    return run(mode, event, folder, alone)


# -- a failing start -----------------------------------------------------------------------------


def _fail(mode: Mode, event: str, folder: Path, alone: bool) -> Found:
    """Run a server whose application cannot start; it leaves, or goes on and says so."""
    with _server(mode, event, folder, alone, ready=lambda server: True) as server:
        if not mode.eager:
            _wait_ready(mode, server)
        found: Found = server.wait(lambda: _failure(mode, server), LIMIT, "the start has failed")
        if found.follows != EXITS:
            server.signal(mode.ends_by)
            server.wait_exit(LIMIT)
    if not alone:
        found.published = _by_role(server, lambda pid: "new", ("failed", *CHANNELS))
    return found


def _failure(mode: Mode, server: Server) -> Found | None:
    status = server.process.poll()
    if status is not None:
        return Found(EXITS, status)
    if mode.reports_failure:
        return Found(WAITS) if mode.reports_failure in server.output() else None
    answer = attempt(server.port, timeout=0.5)
    return Found(IGNORED, request=str(answer.status)) if answer.status else None


# -- a life --------------------------------------------------------------------------------------


def _live(mode: Mode, event: str, folder: Path, alone: bool) -> Found:
    """Run a server whose application starts; see who was there before the event and after it."""
    follows = mode.follows[event]
    found = Found(follows)
    held: InFlight | None = None
    with _server(mode, event, folder, alone, ready=accepts) as server:
        _wait_ready(mode, server)
        if not alone:
            found.wrong += _when_it_starts(mode, server)
        old = _warm_up(mode, server, at_once=event == "start")
        if EVENTS[event].to:
            held = hold_request(server)
            assert not mode.hands_on or attempt(server.port).ok
        _settle(mode, server)
        asked = start_request(server.port, "/restart") if event == "restart" else None
        told = _tell(event, server, old)
        if held is not None:
            with suppress(AssertionError):
                wait_until(lambda: held.done, PATIENCE)
            release(folder)
            found.request = _fate(held)
        if asked is not None:
            found.wrong += _answer_to(asked, follows)
            told = set(who_published(server, "asked")) if mode.replaces_one else old
        AFTERWARDS[follows](mode, server, old, told)
        if follows in {EXITS, ORPHANS, NOTICED}:
            found.status = server.process.returncode
        else:
            _settle(mode, server)
            server.signal(mode.ends_by)
            server.wait_exit(LIMIT)
    busy = who_published(server, "held")
    found.wrong += _served_unstarted(server) if not alone else []

    def role(pid: int) -> str:
        if pid in busy:
            return "busy"
        if pid in old:
            return "idle"
        return "main" if pid == server.pid and mode.workers else "new"

    channels = ("start", "stop") if alone else CHANNELS
    found.published = _by_role(server, role, channels)
    return found


def _server(
    mode: Mode, event: str, folder: Path, alone: bool, ready: Callable[[Server], object]
) -> Any:
    return run_server(
        mode.argv(event, alone),
        cwd=folder,
        env=mode.environment(event, alone),
        ready=ready,
        limit=LIMIT,
    )


def _wait_ready(mode: Mode, server: Server) -> None:
    if mode.ready:
        server.wait_line(mode.ready, mode.workers, LIMIT)


def _when_it_starts(mode: Mode, server: Server) -> list[str]:
    """Say whether it starts otherwise than the table has it."""
    if mode.eager:
        server.wait_published("started", max(mode.workers, 1), LIMIT)
    elif who_published(server, "start"):
        return ["it started before the first request"]
    return []


def _warm_up(mode: Mode, server: Server, at_once: bool) -> set[int]:
    """Ask until each worker has answered; return them."""
    if at_once:
        requests = [start_request(server.port) for _ in range(FIRST)]
        assert all(request.result(LIMIT).ok for request in requests), server.report()
    return _wait_served(server, max(mode.workers, 1))


def _settle(mode: Mode, server: Server) -> None:
    """Wait until all threads of all its processes sleep, if that makes a difference."""
    if mode.settles:
        server.wait(
            lambda: all_asleep([info.pid for info in server.family()]), LIMIT, "all of it sleeps"
        )


def _wait_served(server: Server, count: int) -> set[int]:
    """Ask until *count* processes have answered; return all that did."""

    def served() -> set[int]:
        pids = set(who_published(server, "request"))
        if len(pids) < count:
            attempt(server.port)
        return pids if len(pids) >= count else set()

    return server.wait(served, LIMIT, f"{count} processes have answered")


def _tell(event: str, server: Server, old: set[int]) -> set[int]:
    """Have the event happen; return the processes that are to leave by it."""
    signum, to = EVENTS[event].signum, EVENTS[event].to
    if to == "group":
        server.signal_group(signum)
    elif to == "worker":
        busy = set(who_published(server, "held"))
        for pid in busy:
            os.kill(pid, signum)
        return busy
    elif to == "main":
        server.signal(signum)
    elif event == "max-requests":
        _wear_out(server, old)
    elif to != "asked":
        server.signal(signal.SIGTERM)
    return old


def _wear_out(server: Server, old: set[int]) -> None:
    """Ask until all workers have had enough."""

    def gone() -> bool:
        attempt(server.port, timeout=2)
        return not any(map(exists, old))

    server.wait(gone, LIMIT, "the workers have had enough")


def _fate(held: InFlight) -> str:
    answer = held.result(LIMIT)
    if answer.ok:
        return "answered"
    return str(answer.status) if answer.status and answer.outcome != "partial" else "lost"


def _answer_to(asked: InFlight, follows: str) -> list[str]:
    """Say what is wrong with the answer to who has asked for a restart."""
    answer = asked.result(LIMIT)
    is_right = answer.ok != (follows == REFUSES)
    return [] if is_right else [f"who asked for a restart got {answer.status}"]


# -- what follows --------------------------------------------------------------------------------


def _exits(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    server.wait_exit(LIMIT)


def _rolls(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    for pid in told:
        wait_gone(pid, LIMIT)
    _wait_served(server, len(old | told) + len(told))


def _again(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    def serve_again() -> bool:
        starts = who_published(server, "started")
        return attempt(server.port).ok and all(starts.count(pid) == 2 for pid in old)

    server.wait(serve_again, LIMIT, "it serves again")


def _ignored(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    assert all(exists(pid) for pid in old), server.report("a worker has left")
    assert attempt(server.port).ok, server.report("it does not answer")


def _waits(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    for pid in told:
        wait_gone(pid, LIMIT)


def _orphans(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    server.wait_exit(LIMIT)
    for pid in old:
        assert exists(pid), server.report("a worker has left by itself")
        os.kill(pid, signal.SIGTERM)
    if mode.deaf:
        with suppress(AssertionError):
            wait_until(lambda: not any(map(exists, old)), PATIENCE)
        kill_all([info.pid for info in server.family()])
    for pid in old:
        wait_gone(pid, LIMIT)


def _noticed(mode: Mode, server: Server, old: set[int], told: set[int]) -> None:
    server.wait_exit(LIMIT)
    for pid in old:
        wait_gone(pid, LIMIT)


AFTERWARDS = {
    EXITS: _exits,
    ROLLS: _rolls,
    AGAIN: _again,
    REFUSES: _ignored,
    IGNORED: _ignored,
    WAITS: _waits,
    ORPHANS: _orphans,
    NOTICED: _noticed,
}


# -- what was published --------------------------------------------------------------------------


def _by_role(
    process: Process, role: Callable[[int], str], channels: tuple[str, ...]
) -> dict[str, list[str]]:
    found = defaultdict(set)
    for pid, published in process.published().items():
        sequence = " ".join(channel for channel in published if channel in channels)
        if sequence or role(pid) in {"busy", "idle"}:
            found[role(pid)].add(sequence)
    return {name: sorted(sequences) for name, sequences in sorted(found.items())}


def _served_unstarted(server: Server) -> list[str]:
    """Name the processes that answered a request before they had started."""
    return [
        f"process {pid} worked on a request before its start"
        for pid, published in server.published().items()
        if {"request", "held"} & set(published[: _index(published, "start")])
    ]


def _index(published: list[str], channel: str) -> int:
    return published.index(channel) if channel in published else len(published)
