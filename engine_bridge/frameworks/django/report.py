"""What the commands have to say of the project's engine."""

import os
from collections.abc import Iterator
from inspect import signature

from engine_bridge.core.engine import Engine
from engine_bridge.frameworks.django import conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Source: Linux Standard Base, "Init Script Actions", on the action `status`.
NOT_RUNNING, UNKNOWN = 3, 4
PIDFILE_HELP = "the PID file, by default that of the plugin PIDFile"
UNKNOWN_PIDFILE = "no PID file is known: give --pidfile, or the plugin PIDFile in ENGINE_BRIDGE"
WITHOUT_ARGUMENTS = ("start", "drain", "stop", "exit", "graceful", "main", "fork")


def describe() -> "tuple[Engine, list[Any]]":
    """
    Return the project's engine and its plugins; none is turned on.

    Raises:
        SettingError: `ENGINE_BRIDGE` is not what it should be.
    """
    settings = conf.read()
    for problem in conf.find_problems(settings):
        raise problem
    engine = conf.find_instance(settings)
    conf.set_parameters(engine, settings)
    return engine, list(conf.build_plugins(engine, settings))


def pidfile(engine: Engine, plugins: "list[Any]") -> str | None:
    """Return the path of the PID file, if a plugin keeps one."""
    owners = [listener.owner for listener in engine.listeners.get("start", ())]
    for each in [*plugins, *owners]:
        path = getattr(each, "pidfile", None)
        if isinstance(path, str):
            return path
    return None


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
    folder = os.path.dirname(path or "/")
    if not os.access(folder, os.W_OK | os.X_OK):
        fault = "may not be written to" if os.path.isdir(folder) else "is no directory"
        yield f"no PID file can be made: {folder} {fault}"


def facts(values: dict[str, str]) -> str:
    """Return *values* as lines of a table."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())


def plugins_and_listeners(engine: Engine, plugins: "list[Any]") -> str:
    """Return lines that name the plugins of the settings, and the listeners of `engine` modules."""
    lines = []
    if plugins:
        lines += ["\nplugins", *(f"  {type(plugin).__name__}" for plugin in plugins)]
    order = {channel: place for place, channel in enumerate(WITHOUT_ARGUMENTS)}
    channels = sorted(engine.listeners.items(), key=lambda item: order.get(item[0], len(order)))
    if channels:
        lines.append("\nlisteners, in order, with their priorities")
    width = max((len(channel) for channel, _ in channels), default=0)
    for channel, listeners in channels:
        name = channel
        for listener in listeners:
            lines.append(f"  {name:<{width}}  {listener.order[0]:>3g}  {listener.name}")
            name = ""
    return "\n".join(lines)
