"""What holds for every test."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import nothing_left_behind

ROOT = Path(__file__).resolve().parent.parent


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
