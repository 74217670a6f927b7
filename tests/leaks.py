"""
See what a test leaves behind: processes, threads, descriptors, signal handlers, files.

Everything is compared with what was there before the test, so what pytest, xdist, a timeout plugin
or a fixture of a wider scope hold does not matter. What is just ending gets a moment to end.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from processes import (
    ProcessInfo,
    adopt_orphans,
    descendants,
    kill_all,
    process_table,
    reap,
)

from engine_bridge.testing.leaks import MOMENT, Found, Look, descriptors, left, threads

FOLDERS = ("tests", "examples")
SOURCES = {".py", ".md"}


def _table() -> dict[int, ProcessInfo]:
    """
    Return the process table; nothing, and at once, if we have no child.

    Then we have no descendant either, for orphans are adopted.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    return process_table()


def _processes() -> Found:
    table = _table()
    found = descendants([os.getpid()], table)
    return {(pid, table[pid].started): f"process {table[pid]}" for pid in found if table[pid].alive}


def _files(root: Path) -> Found:
    """
    Return the files in *root* itself, and those below the folders in which programs run.

    Sources below these are left out: somebody may write them while the tests run.
    """
    found = [path for path in _entries(root) if not path.is_dir()]
    for folder in FOLDERS:
        found += [path for path in _below(root / folder) if path.suffix not in SOURCES]
    return {(0, path): f"file {path}" for path in found if not path.name.startswith(".coverage")}


def _entries(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _below(folder: Path) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_symlink() or not path.is_dir():
            yield path
        elif not path.name.startswith(".") and path.name != "__pycache__":
            yield from _below(path)


@contextmanager
def _same_signals(complaints: list[str]) -> Iterator[None]:
    """Add to *complaints* which signal handlers have changed, and the mask, and put them back."""
    handlers = {sig: signal.getsignal(sig) for sig in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    for sig, handler in handlers.items():
        if getattr(handler, "__module__", "") == "pytest_timeout":
            continue  # it gives up its SIGALRM when a test has failed
        if (now := signal.getsignal(sig)) != handler:
            complaints.append(f"handler of {signal.Signals(sig).name}: {now}")
            signal.signal(sig, handler)
    if (blocked := signal.pthread_sigmask(signal.SIG_SETMASK, mask)) != mask:
        complaints.append(f"signal mask: {blocked}")


@contextmanager
def nothing_left_behind(root: Path, moment: float = MOMENT) -> Iterator[None]:
    """
    Fail when what runs inside leaves something behind.

    Args:
        root: The checkout in which no file may appear.
        moment: Seconds to go, for what is just ending.

    Raises:
        AssertionError: It names each process, thread, descriptor, signal handler and file.
            Processes have been killed and handlers put back, for the sake of the next test; files
            are left, they might be anybody's.
    """
    adopt_orphans()
    looks: list[Look] = [_processes, threads, descriptors, lambda: _files(root)]
    before = [look() for look in looks]
    known = set(_table())
    complaints: list[str] = []
    with _same_signals(complaints):
        yield
    processes, *others = [
        left(look, seen, moment) for look, seen in zip(looks, before, strict=True)
    ]
    for found in (processes, *others):
        complaints += found.values()
    kill_all([pid for pid, _ in processes])
    _reap_orphans(known)
    if complaints:
        raise AssertionError("\n  ".join(["the test left behind", *complaints, *_hint(complaints)]))


def _reap_orphans(known: set[int]) -> None:
    """Reap what came since *known*, was adopted and has ended."""
    for info in _table().values():
        if info.ppid == os.getpid() and not info.alive and info.pid not in known:
            reap(info.pid)


def _hint(complaints: list[str]) -> list[str]:
    if any(line.startswith("file ") for line in complaints):
        return ["(or somebody else did: a test in another worker, or who works in this folder)"]
    return []
