"""What the scripts under test begin with: an engine that records its channels, and signals."""

import textwrap

CHANNELS = ("start", "drain", "stop", "exit", "graceful")

WHEN = """
import threading, time

def when(fact, call):
    "Call *call* in a thread as soon as *fact* holds."
    def wait():
        while not fact():
            time.sleep(0.001)
        call()
    threading.Thread(target=wait, daemon=True).start()
"""

BEGIN = f"""
import os, signal, sys, threading, time
from functools import partial
from journal import record
from engine_bridge import Engine, State, engine
from engine_bridge.plugins import SignalHandler

for channel in {CHANNELS!r}:
    engine.subscribe(channel, partial(record, channel))
{WHEN}
def block():
    "Block, and record as soon as signals find the main thread there."
    when(lambda: engine.notes._waiting, partial(record, "blocking"))
    engine.block()

"""


def script(*parts: str, handler: bool = True) -> str:
    """Return the source of a script: what all begin with, a `SignalHandler` if asked, *parts*."""
    handled = "handler = SignalHandler(engine)\nhandler.subscribe()\n" if handler else ""
    return BEGIN + handled + "\n".join(map(textwrap.dedent, parts))
