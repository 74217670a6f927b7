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

from engine_bridge.core import nets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


RETRY = 1.0  # seconds


def run_and_wait(argv: list[str], **options: "Any") -> "subprocess.CompletedProcess[bytes]":
    """
    Do what `subprocess.run` does, but when the parent is told to go.

    Then it passes the word on until the child leaves; a second one kills.
    """
    with subprocess.Popen(argv, **options) as child:
        try:
            return subprocess.CompletedProcess(argv, child.wait())
        except BaseException:
            try:
                _end(child)
            except BaseException:
                child.kill()
                raise
            raise


def _end(child: "subprocess.Popen[bytes]") -> None:
    """
    Tell *child* to go until it has; one that is on its way out hears no more.

    Its handler raises SystemExit. Python drops that where it comes amid a destructor or a weak
    reference's callback, of which the reloader's loop has many.
    """
    while child.poll() is None:
        child.terminate()
        try:
            child.wait(RETRY)
        except subprocess.TimeoutExpired:
            pass


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
    if nets.does_something_last():
        return  # another program, which is to hear them, takes this one's place
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
