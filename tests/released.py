"""
Wait, within an application under test, until the test lets a held request go on.

Like `journal.py` it imports next to nothing, the engine neither.
"""

import time
from pathlib import Path

RELEASE = Path("release")  # in the working directory; the test makes it
PAUSE = 0.01  # seconds between two looks at it


def wait_released() -> None:
    """Return when the test says so."""
    while not RELEASE.exists():
        time.sleep(PAUSE)


async def wait_released_async() -> None:
    """Do the same on a loop."""
    import asyncio

    while not RELEASE.exists():  # noqa: ASYNC110  # a test in another process
        await asyncio.sleep(PAUSE)
