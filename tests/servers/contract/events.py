"""
What happens to a server in a cell of the contract, and the words for what follows.

A request is in flight whenever a signal is sent, and it takes a moment longer than an idle worker
needs to leave. An event that the main process outlives is followed by another request and by the
server's ordinary end, which judges the workers that came meanwhile.
"""

import signal
from typing import NamedTuple


class Event(NamedTuple):
    """
    One column of the table.

    Attributes:
        title: Its heading.
        signum: What is sent, if anything is.
        to: Who gets it: `main`, `group`, or `worker`, the one with the request. `asked` stands for
            another request, which asks for it.
    """

    title: str
    signum: int = 0
    to: str = ""


EVENTS = {
    "start": Event("start"),
    "term": Event("SIGTERM", signal.SIGTERM, "main"),
    "int": Event("Ctrl-C", signal.SIGINT, "group"),
    "hup": Event("SIGHUP", signal.SIGHUP, "main"),
    "quit": Event("SIGQUIT", signal.SIGQUIT, "main"),
    "worker-term": Event("worker: SIGTERM", signal.SIGTERM, "worker"),
    "worker-kill": Event("worker: SIGKILL", signal.SIGKILL, "worker"),
    "main-kill": Event("main: SIGKILL", signal.SIGKILL, "main"),
    "max-requests": Event("max requests"),
    "failing-start": Event("failing start"),
    "restart": Event("restart()", to="asked"),
}

# What follows.
EXITS = "exits"  # the main process leaves, and its workers with it
ROLLS = "rolls"  # it stays, and has new workers in the place of those that were told to go
AGAIN = "again"  # who serves runs its command line anew, as the same process
REFUSES = "refuses"  # nothing happens, and who asked is told why
IGNORED = "ignored"  # nothing happens
WAITS = "waits"  # it stays without a worker
ORPHANS = "orphans"  # it leaves, but its workers do not know it; whoever is left gets a SIGTERM
NOTICED = "noticed"  # it is killed; its workers notice it and leave
HANGS = "hangs"  # the server alone did not leave at all
