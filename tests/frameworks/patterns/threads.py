"""What lasts, as one writes it for threads."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue

from frameworks.patterns.life import PATIENCE, TICK
from journal import record
from released import wait_released

from engine_bridge import engine

jobs: SimpleQueue[str | None] = SimpleQueue()


def events() -> Iterator[bytes]:
    """Yield an event, and end when the engine drains."""
    yield TICK
    engine.draining.wait()


def wait_for_news() -> bool:
    """Return whether there is news, which there never is; False when the engine drains."""
    record("polling")
    return not engine.draining.wait(PATIENCE)


def pieces() -> Iterator[bytes]:
    """Yield a download, whose end gives the worker something to do."""
    yield b"begun\n"
    wait_released()
    jobs.put("downloaded")
    yield b"ended\n"


@engine.resource
def worker() -> Iterator[None]:
    """Work in the background; on `stop` finish what is left."""

    def work() -> None:
        while (job := jobs.get()) is not None:
            record(job)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    yield
    jobs.put(None)
    thread.join()
    record("worked")
