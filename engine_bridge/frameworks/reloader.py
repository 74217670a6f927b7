"""
What development servers with a reloader have in common: a parent that waits, a child that serves.

The parents kill their child when they are told to go themselves: on SIGTERM at once, on Ctrl-C
after 0.25 s. That would cut off the drain and the stop.

Source:
    werkzeug 3.1, `_reloader.py`; Django 5.2, `utils/autoreload.py`; subprocess.py, `run`.
"""

import signal
import subprocess
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_and_wait(argv: list[str], **options: "Any") -> "subprocess.CompletedProcess[bytes]":
    """
    Do what `subprocess.run` does, but when the parent is told to go.

    Then it passes the word on and waits; a second one kills.
    """
    with subprocess.Popen(argv, **options) as child:
        try:
            return subprocess.CompletedProcess(argv, child.wait())
        except BaseException:
            try:
                child.terminate()  # one that Ctrl-C has reached as well hears this no more
                child.wait()
            except BaseException:
                child.kill()
                raise
            raise


def ignore_signals_while_leaving() -> None:
    """
    Have this child ignore SIGTERM and SIGINT once it is on its way out.

    On Ctrl-C the terminal tells it to go, and so does its parent, which cannot know that. Twice
    would cut off a listener of the stop. To be called after the start: what registers last runs
    first, and the engines end in the same place, see core/nets.py.
    """
    register = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(_ignore_signals)


def _ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
