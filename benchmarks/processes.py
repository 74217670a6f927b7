"""Measure whole processes: what they cost, and how long they take to leave."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import TextIO

# Installed packages are compiled, so ours must be able to be.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
IDLE_SECONDS, IDLE_TURNS = 8.0, 3
TO_THE_IDLING = 1.5  # seconds in which what has just started comes to rest
TO_THE_WAIT = 0.05  # seconds in which a script that is ready reaches the call that waits


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process cost from some moment until it was gone."""

    cpu: float  # seconds
    wall: float  # seconds
    memory: float = 0.0  # MiB, at the most


def cost_of(source: str) -> Cost:
    """Run `python -c` *source* to its end."""
    since = monotonic()
    with _python(f"{source}\nprint(open('/proc/self/status').read())") as (pid, output):
        # Not ru_maxrss: that counts the parent, whose image the child was until exec.
        peak = next(line for line in output if line.startswith("VmHWM"))
        output.read()
        _, status, usage = os.wait4(pid, 0)
        wall = monotonic() - since
    _check(status)
    return Cost(usage.ru_utime + usage.ru_stime, wall, memory=int(peak.split()[1]) / 1024)


def output_of(source: str) -> str:
    """Return what `python -c` *source* prints."""
    with _python(source) as (pid, output):
        text = output.read()
        os.waitpid(pid, 0)
    return text


def cost_of_leaving(source: str, delay: float) -> Cost:
    """
    Run *source*, which prints monotonic and CPU time as it begins to leave; measure from there.

    Args:
        source: Waits for `float(sys.argv[1])` seconds before it leaves.
        delay: Seconds to vary that by: those who poll must not always be met at the same moment.
    """
    with _python(source, f"{TO_THE_WAIT + delay}") as (pid, output):
        since, used = map(float, output.readline().split())
        _, status, usage = os.wait4(pid, 0)
        wall = monotonic() - since
    _check(status)
    return Cost(usage.ru_utime + usage.ru_stime - used, wall)


def seconds_after_sigterm(source: str, delay: float) -> float:
    """Run *source*, which prints a line when ready; return how long SIGTERM takes to end it."""
    with _python(source) as (pid, output):
        output.readline()
        sleep(TO_THE_WAIT + delay)
        since = monotonic()
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        wall = monotonic() - since
    _check(status)
    return wall


@dataclass(frozen=True, slots=True)
class Idle:
    """What a process that waits costs a second, as the kernel counts it for all its threads."""

    wakeups: float  # voluntary context switches: each ends with a wakeup
    cpu: float  # seconds
    threads: float
    says: str  # the line that it printed


def costs_of_idling(sources: Mapping[str, str]) -> dict[str, list[Idle]]:
    """
    Run all *sources* at once, each of which prints a line and waits; measure them in turns.

    At once, since they hardly disturb each other, and all meet the same weather.
    """
    found: dict[str, list[Idle]] = {name: [] for name in sources}
    with ExitStack() as stack:
        running = {name: stack.enter_context(_idling(source)) for name, source in sources.items()}
        sleep(TO_THE_IDLING)
        for _ in range(IDLE_TURNS):
            before = {name: _used(pid) for name, (pid, _) in running.items()}
            since = monotonic()
            sleep(IDLE_SECONDS)
            wall = monotonic() - since
            for name, (pid, says) in running.items():
                now, then = _used(pid), before[name]
                switches, cpu = (now[0] - then[0]) / wall, (now[1] - then[1]) / wall
                found[name].append(Idle(switches, cpu, now[2], says))
    return found


@contextmanager
def _idling(source: str) -> Iterator[tuple[int, str]]:
    """Yield the pid of `python -c` *source* and the line that it has printed; end it in time."""
    with _python(source) as (pid, output):
        try:
            yield pid, output.readline().strip()
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _used(pid: int) -> tuple[float, float, float]:
    """Return voluntary context switches, CPU seconds and the number of threads of *pid*."""
    switches = cpu = threads = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text().splitlines()
        line = next(line for line in status if line.startswith("voluntary_ctxt_switches"))
        switches += int(line.split()[1])
        cpu += int((task / "schedstat").read_text().split()[0]) * 1e-9
        threads += 1
    return switches, cpu, threads


@contextmanager
def _python(source: str, *arguments: str) -> Iterator[tuple[int, TextIO]]:
    """Yield the pid and the standard output of `python -c` *source*; the caller waits for it."""
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", source, *arguments],
        ENVIRONMENT,
        file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
    )
    os.close(writing)
    with os.fdopen(reading) as output:
        yield pid, output


def _check(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise RuntimeError(f"a script that is measured ended with {code}")
