"""What the commands have to say of the project's engine."""

from engine_bridge.core.engine import Engine
from engine_bridge.frameworks import report
from engine_bridge.frameworks.django import conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PIDFILE_HELP = "the PID file, by default that of the plugin PIDFile"
UNKNOWN_PIDFILE = "no PID file is known: give --pidfile, or the plugin PIDFile in ENGINE_BRIDGE"


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


def plugins_and_listeners(engine: Engine, plugins: "list[Any]") -> str:
    """Return lines that name the plugins of the settings, and the listeners of `engine` modules."""
    lines = report.listeners(engine)
    if plugins:
        lines = ["\nplugins", *(f"  {type(plugin).__name__}" for plugin in plugins), *lines]
    return "\n".join(lines)
