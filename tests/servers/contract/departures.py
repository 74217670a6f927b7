"""
The cells in which the contract does not hold, each with its reason.

Every one is checked: a departure that is no longer true fails its cell.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatch

from servers.contract.modes import Mode

IMPOSSIBLE = "impossible"  # nothing that runs in the worker could do it
SERVER = "the server's fault"
REPAIRED = "repaired"  # and nothing is otherwise with an engine
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
        requests: What becomes of the request in flight instead of an answer.
        statuses: Exit statuses that are not that of the server alone; the first one is recorded.
        always: Whether it is there each time, rather than by chance.
        alone_hangs: Whether the server alone may never leave, so that its cell is not run.
    """

    modes: tuple[str, ...]
    events: tuple[str, ...]
    kind: str
    reason: str
    published: dict[str, str] = field(default_factory=dict)
    requests: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    always: bool = True
    alone_hangs: bool = False


SINGLE = "single"
KILLED = {"busy": "start"}

DEPARTURES = [
    Departure(
        ("*",),
        ("worker-kill",),
        IMPOSSIBLE,
        "SIGKILL ends a process before it can do anything.",
        KILLED,
        requests=("lost",),
    ),
    Departure(
        ("mod_wsgi-daemon*",),
        ("worker-kill",),
        IMPOSSIBLE,
        "Likewise; Apache, which stands in front, answers in its place.",
        requests=("500",),
    ),
    Departure(
        (SINGLE,),
        ("main-kill",),
        IMPOSSIBLE,
        "SIGKILL ends a process before it can do anything; here it is the one that serves.",
        KILLED,
        requests=("lost",),
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
        ("gunicorn-sync*",),
        ("int", "quit"),
        SERVER,
        "SIGINT and SIGQUIT have gunicorn leave at once: a sync worker raises SystemExit amid the "
        "request, and again if it hears of both. SIGTERM waits for it.",
        requests=("500", "lost"),
    ),
    Departure(
        ("gunicorn-asgi*",),
        ("int", "quit"),
        SERVER,
        "Likewise; an asgi worker cancels the request.",
        requests=("lost",),
    ),
    Departure(
        ("uvicorn-workers-2", "hypercorn-asgi*w-1", "hypercorn-asgi*w-2"),
        ("failing-start",),
        SERVER,
        "The main process leaves with 0 though its workers have failed to start.",
        statuses=(0,),
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
        requests=("lost",),
    ),
    Departure(
        ("werkzeug-run_simple-reloader",),
        ("int",),
        IMPOSSIBLE,
        "The same, 0.25 s after Ctrl-C: the engine stops if it is quick.",
        KILLED,
        requests=("lost",),
        always=False,
    ),
    Departure(
        ("werkzeug-run_simple-reloader",),
        ("restart",),
        IMPOSSIBLE,
        "The same, by the SIGTERM that ends the cell.",
        {"busy": "start drain stop exit start"},
    ),
    Departure(
        ("granian-*",),
        ("int",),
        REPAIRED,
        "granian alone may never leave, in 9 of 40 trials with WSGI and in 1 with ASGI: of SIGINT "
        "from the terminal and SIGTERM from the main process both may go to a thread that does not "
        "wake the main one, and a second word to a worker that has begun to leave may block it.",
        alone_hangs=True,
    ),
    Departure(
        ("wsgiref",),
        ("int",),
        SERVER,
        "wsgiref takes the KeyboardInterrupt for a fault of the application, and serves on.",
        requests=("500",),
    ),
    Departure(
        ("uwsgi-without-master",),
        ("term", "int"),
        IMPOSSIBLE,
        "uWSGI ends a busy process in C, without `uwsgi.atexit`; an idle one stops.",
        KILLED,
        requests=("lost",),
    ),
    Departure(
        ("uwsgi-master", "uwsgi-master-lazy-apps"),
        ("term", "quit", "worker-term"),
        IMPOSSIBLE,
        "uWSGI ends a busy worker in C, without `uwsgi.atexit`; idle ones stop. With "
        "`--hook-master-start 'unix_signal:15 gracefully_kill_them_all'` in the place of "
        "`--die-on-term` SIGTERM waits for it.",
        KILLED,
        requests=("lost",),
    ),
    Departure(
        ("uwsgi-master-gracefully",),
        ("quit", "worker-term"),
        IMPOSSIBLE,
        "uWSGI ends a busy worker in C, without `uwsgi.atexit`.",
        KILLED,
        requests=("lost",),
    ),
    Departure(
        ("uwsgi-master*",),
        ("int",),
        IMPOSSIBLE,
        "Likewise; and an idle worker that has the signal from the terminal may be cut off in its "
        "stop when the main process sends it once more.",
        {"busy": "start", "idle": "start"},
        requests=("lost",),
        always=False,
    ),
    Departure(
        ("mod_wsgi-*",),
        ("term", "int", "hup"),
        SERVER,
        "Apache closes its connections at once; on SIGWINCH, which `apachectl graceful-stop` "
        "sends, it waits for them.",
        requests=("lost",),
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


def alone_hangs(mode: Mode, event: str) -> bool:
    """Whether the server alone may never leave."""
    return any(each.alone_hangs for each in departures(mode, event))
