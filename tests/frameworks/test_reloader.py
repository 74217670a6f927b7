"""What development servers with a reloader share."""

import signal

from processes import start_script

PARENT = """
import signal, sys
from engine_bridge.frameworks.reloader import run_and_wait

CHILD = '''
import signal, sys
from journal import record

told = []

def hear(signum, frame):
    told.append(signum)
    if len(told) > 1:
        record("left")
        sys.exit(0)

signal.signal(signal.SIGTERM, hear)
record("ready")
while True:
    signal.pause()
'''
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
run_and_wait([sys.executable, "-c", CHILD])
"""


def test_child_that_loses_a_signal_is_told_again() -> None:
    """Python drops a SystemExit that a handler raises amid a destructor: the child runs on."""
    with start_script(PARENT) as process:
        process.wait_published("ready")
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        assert [entry.channel for entry in process.journal()] == ["ready", "left"]
