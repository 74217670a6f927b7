"""
Tell which channels were published in which process.

Applications under test import this file alone, so it imports next to nothing: a server must not
find modules loaded that only the tests need.
"""

import json
import os
import time

VARIABLE = "ENGINE_BRIDGE_TEST_JOURNAL"


def record(channel: str, **facts: object) -> None:
    """
    Append one line to the journal that the test reads.

    One `write` on a descriptor opened O_APPEND: lines of several processes and threads never mix.
    Nothing stays open, so that neither a fork nor an exec nor a daemon that closes everything
    matters.
    """
    entry = {"pid": os.getpid(), "channel": channel, "time": time.time(), "facts": facts}
    line = json.dumps(entry, default=repr) + "\n"
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
