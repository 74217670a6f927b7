"""
hypercorn: `--workers 0`, in one process; with workers, by multiprocessing; `--reload`.

Source:
    hypercorn 0.18, `run.py`: workers hear of the end by an event, not by a signal; see
    core/nets.py for what ASGI makes of that.
"""

from engine_bridge.core.host import Host, worker_of

from .base import Roll, ServerHost, Stack, by_sigterm, single


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if hypercorn runs in it."""
    call = stack.find("hypercorn.")
    if call is None:
        return None
    parent = worker_of()
    if parent is not None:
        is_wsgi = stack.find("hypercorn.app_wrappers", "run_app") is not None
        return ServerHost("hypercorn", Roll, main_pid=parent, drain="late" if is_wsgi else "early")
    run = stack.find("hypercorn.run", "run")
    if run is not None and run.f_locals["config"].workers:
        return ServerHost("hypercorn", Roll, "reloader")  # it loads the application, too
    return single("hypercorn", by_sigterm)
