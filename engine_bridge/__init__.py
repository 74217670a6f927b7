"""One process lifecycle for every Python web application and every server that runs it."""

import sys

from .core import host
from .core.engine import Engine
from .core.errors import (
    ChannelFailures,
    EngineError,
    StartAborted,
    TransitionError,
    TransitionTimeout,
)
from .core.states import State

__all__ = [
    "ChannelFailures",
    "Engine",
    "EngineError",
    "StartAborted",
    "State",
    "TransitionError",
    "TransitionTimeout",
    "engine",
]

engine = Engine()


def _find_server() -> host.Host | None:
    """Ask the adapters, which the core does not know, when an engine starts."""
    from . import servers

    return servers.find_server()


host.find_server = _find_server

if "granian._signals" in sys.modules:  # it loads the application; when an engine starts is too late
    from .servers.granian import mend_signals

    mend_signals()
