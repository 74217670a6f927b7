"""An ASGI application whose workers all ask for a restart when a file appears."""

import threading
import time
from pathlib import Path

from journal import record
from released import PAUSE
from servers.apps.asgi import app

from engine_bridge import engine

__all__ = ["app"]

WORDS = [path for path in (Path("ask"), Path("ask again")) if not path.exists()]


@engine.subscribe("start")
def begin() -> None:
    """Wait for the next word, one that was not there yet."""
    if WORDS:
        threading.Thread(target=ask, args=(WORDS[0],), daemon=True).start()


def ask(word: Path) -> None:
    """Ask as soon as the word is there."""
    while not word.exists():
        time.sleep(PAUSE)
    record("asked")
    engine.restart()
