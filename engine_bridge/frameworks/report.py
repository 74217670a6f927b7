"""What the commands of frameworks have to say of an engine, whoever prints it."""

import os
from collections.abc import Iterable, Iterator
from inspect import signature

from engine_bridge.core.engine import Engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Source: Linux Standard Base, "Init Script Actions", on the action `status`.
NOT_RUNNING, UNKNOWN = 3, 4
WITHOUT_ARGUMENTS = ("start", "drain", "stop", "exit", "graceful", "main", "fork")
PARAMETERS = ("slow_after", "start_timeout", "stop_timeout", "drain_delay", "drain_timeout")


def parameters(engine: Engine) -> dict[str, str]:
    """Return the parameters of *engine* for people."""
    return {name: f"{getattr(engine, name):g} s" for name in PARAMETERS}


def pidfile(engine: Engine, plugins: "Iterable[Any]" = ()) -> str | None:
    """Return the path of the PID file, if one of *plugins*, or one that listens, keeps it."""
    owners = [listener.owner for listener in engine.listeners.get("start", ())]
    for each in [*plugins, *owners]:
        path = getattr(each, "pidfile", None)
        if isinstance(path, str):
            return path
    return None


def process(path: str | None, pid: int, unknown: str) -> dict[str, str]:
    """
    Return the state of the process that serves.

    Args:
        path: That of its PID file; None if that is not known.
        pid: The process; 0 if it does not run.
        unknown: What to say where the path is not known.
    """
    if path is None:
        return {"state": f"unknown: {unknown}"}
    if pid:
        return {"state": "running", "main process": str(pid), "PID file": path}
    return {"state": "not running", "PID file": path}


def complaints(engine: Engine, path: str | None) -> Iterator[str]:
    """Say which listeners cannot be called as they will be, and why no PID file can be made."""
    for channel in WITHOUT_ARGUMENTS:
        for listener in engine.listeners.get(channel, ()):
            try:
                signature(listener.call).bind()
            except TypeError as exc:
                yield (
                    f"{listener.name} cannot be called on {channel!r}, "
                    f"where listeners get no arguments: {exc}"
                )
            except ValueError:
                pass  # made in C: it does not say what it takes
    folder = os.path.dirname(path) if path is not None else None
    if folder is not None and not os.access(folder, os.W_OK | os.X_OK):
        fault = "may not be written to" if os.path.isdir(folder) else "is no directory"
        yield f"no PID file can be made: {folder} {fault}"


def table(values: dict[str, str]) -> str:
    """Return *values* as lines of a table."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())


def listeners(engine: Engine) -> list[str]:
    """Return lines that name who listens to which channel; none if nobody does."""
    order = {channel: place for place, channel in enumerate(WITHOUT_ARGUMENTS)}
    channels = sorted(engine.listeners.items(), key=lambda item: order.get(item[0], len(order)))
    if not channels:
        return []
    lines = ["\nlisteners, in order, with their priorities"]
    width = max(len(channel) for channel, _ in channels)
    for channel, found in channels:
        name = channel
        for listener in found:
            lines.append(f"  {name:<{width}}  {listener.order[0]:>3g}  {listener.name}")
            name = ""
    return lines
