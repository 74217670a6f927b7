"""What holds for every test."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import nothing_left_behind

ROOT = Path(__file__).resolve().parent.parent

# Whoever runs the tests may have been told to ignore signals, as by nohup or by `&` in a script;
# what the tests start would inherit that.
for _signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        is_int = _signum == signal.SIGINT
        signal.signal(_signum, signal.default_int_handler if is_int else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """
    Fail a test that leaves a process, thread, descriptor, signal handler or file behind.

    What fixtures of a wider scope hold is theirs, provided that a test asks for them by argument:
    with `getfixturevalue` they begin within the test.
    """
    with nothing_left_behind(ROOT):
        yield


@pytest.fixture
def anybodys() -> Iterator[Path]:
    """A directory that other users may enter; each session of pytest closes those of pytest."""
    with tempfile.TemporaryDirectory(prefix="engine-bridge-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
