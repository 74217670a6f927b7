"""
uvicorn: one process, `--workers`, `--reload`.

Source:
    uvicorn 0.54: `_subprocess.py`, `server.py`; `supervisors/multiprocess.py`, `handle_hup`:
    workers are replaced one by one. `supervisors/basereload.py`: SIGHUP kills that parent.
"""

from engine_bridge.core import signals
from engine_bridge.core.host import Host, worker_of

from .base import Refused, Restart, Roll, ServerHost, Stack, by_sigterm, single

EARLY = "early"  # its shutdown is wrapped where no handler of ours could be set, see core/nets.py
BY_FILE = Refused(
    "uvicorn --reload gives a new process when a file is saved, and has no other way; save one"
)


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if uvicorn runs in it."""
    if stack.find("uvicorn.") is None:
        return None
    parent = worker_of()
    if parent is None:
        return single("uvicorn", _leave, EARLY)
    return ServerHost("uvicorn", _restart_of_worker, main_pid=parent, drain=EARLY)


def _restart_of_worker() -> Restart:
    with Stack(with_main=True) as stack:
        started = stack.find("uvicorn._subprocess", "subprocess_started")
        if started is not None and started.f_locals["config"].should_reload:
            return BY_FILE
    return Roll()


def _leave() -> None:
    """Have the server go; a signal it would send again to itself when it has."""
    server = signals.uvicorn_server()
    if server is None:  # `serve` decides on signals
        by_sigterm()
    else:
        server.should_exit = True
