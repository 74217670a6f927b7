"""
The cells in which the contract does not hold, each with its reason.

Every one is checked: a departure that is no longer true fails its cell.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatch

from servers.contract.modes import Mode

IMPOSSIBLE = "impossible"  # nothing that runs in the worker could do it
SERVER = "the server's fault"
CHOICE = "on purpose"  # not as the server alone, but better


@dataclass(frozen=True)
class Departure:
    """
    What is otherwise than the contract has it.

    Attributes:
        modes: Patterns of `Mode.id`; `single` stands for all in which one process does everything.
        events: Of these.
        kind: One of the above.
        reason: A sentence for the page.
        published: By role, what is published instead.
        statuses: Exit statuses that are not that of the server alone; the first one is recorded.
        always: Whether it is there each time, rather than by chance.
        hangs: Whether the server may never leave, so that the cell cannot be run at all.
    """

    modes: tuple[str, ...]
    events: tuple[str, ...]
    kind: str
    reason: str
    published: dict[str, str] = field(default_factory=dict)
    statuses: tuple[int, ...] = ()
    always: bool = True
    hangs: bool = False


SINGLE = "single"
KILLED = {"busy": "start"}

DEPARTURES = [
    Departure(
        ("*",),
        ("worker-kill",),
        IMPOSSIBLE,
        "SIGKILL ends a process before it can do anything.",
        KILLED,
    ),
    Departure(
        (SINGLE,),
        ("main-kill",),
        IMPOSSIBLE,
        "SIGKILL ends a process before it can do anything; here it is the one that serves.",
        KILLED,
    ),
    Departure(
        ("waitress",),
        ("start", "term"),
        CHOICE,
        "SIGTERM kills the server alone. We have its main loop end in good order instead, so that "
        "the request in flight is answered.",
        statuses=(0,),
    ),
    Departure(
        ("cheroot",),
        ("start", "term"),
        CHOICE,
        "Likewise; cheroot passes on the SystemExit by which we do it.",
        statuses=(143,),
    ),
    Departure(
        ("hypercorn-*-w-1", "hypercorn-*-w-2"),
        ("worker-term", "worker-kill"),
        SERVER,
        "hypercorn tells its other workers to go when one has gone so, and leaves with 0, or with "
        "the status of one of them, by chance.",
        statuses=(0, 241, 247),
        always=False,
    ),
    Departure(
        ("gunicorn-asgi", "gunicorn-asgi-preload", "gunicorn-uvicorn-worker*"),
        ("failing-start",),
        SERVER,
        "When a second worker fails to boot while gunicorn leaves because of the first, it leaves "
        "with 1 instead of 3, by chance. With `config` it is always 3.",
        statuses=(3, 1),
        always=False,
    ),
    Departure(
        ("werkzeug-run_simple-reloader",),
        ("start", "term"),
        IMPOSSIBLE,
        "The reloader's parent kills its child with SIGKILL when it is told to go. "
        "The adapters of Flask and Django have it wait instead.",
        {"busy": "start", "idle": "start"},
    ),
    Departure(
        ("werkzeug-run_simple-reloader",),
        ("int",),
        IMPOSSIBLE,
        "The same, 0.25 s after Ctrl-C: the engine stops if it is quick.",
        KILLED,
        always=False,
    ),
    Departure(
        ("granian-wsgi-*",),
        ("int",),
        SERVER,
        "granian often never leaves, with and without an engine: its workers get SIGINT from the "
        "terminal and SIGTERM from the main process, and their handler takes a lock twice.",
        hangs=True,
    ),
    Departure(
        ("uwsgi-without-master",),
        ("term", "int"),
        IMPOSSIBLE,
        "uWSGI ends a busy process in C, without `uwsgi.atexit`; an idle one stops.",
        KILLED,
    ),
    Departure(
        ("uwsgi-master", "uwsgi-master-lazy-apps"),
        ("term", "quit", "worker-term"),
        IMPOSSIBLE,
        "uWSGI ends a busy worker in C, without `uwsgi.atexit`; idle ones stop. With "
        "`--hook-master-start 'unix_signal:15 gracefully_kill_them_all'` in the place of "
        "`--die-on-term` SIGTERM waits for it.",
        KILLED,
    ),
    Departure(
        ("uwsgi-master-gracefully",),
        ("quit", "worker-term"),
        IMPOSSIBLE,
        "uWSGI ends a busy worker in C, without `uwsgi.atexit`.",
        KILLED,
    ),
    Departure(
        ("uwsgi-master*",),
        ("int",),
        IMPOSSIBLE,
        "Likewise; and an idle worker that has the signal from the terminal may be cut off in its "
        "stop when the main process sends it once more.",
        {"busy": "start", "idle": "start"},
        always=False,
    ),
    Departure(
        ("mod_wsgi-embedded",),
        ("main-kill",),
        SERVER,
        "Apache's children ignore SIGTERM once their main process is gone, and serve for ever.",
        KILLED,
    ),
]


def departures(mode: Mode, event: str) -> list[Departure]:
    """Return those that hold for a cell."""
    names = [mode.id] if mode.workers else [mode.id, SINGLE]
    return [
        each
        for each in DEPARTURES
        if event in each.events
        and any(fnmatch(name, pattern) for name in names for pattern in each.modes)
    ]


def hangs(mode: Mode, event: str) -> bool:
    """Whether the server may never leave."""
    return any(each.hangs for each in departures(mode, event))
