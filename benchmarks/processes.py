"""Measure whole processes: what they cost, and how long they take to leave."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TextIO

# Installed packages are compiled, so ours must be able to be.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
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
