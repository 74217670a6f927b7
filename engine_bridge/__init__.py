"""One process lifecycle for every Python web application and every server that runs it."""

import sys

from . import servers
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

host.find_server = servers.find_server  # now: a start may come when rights to read are dropped

if "granian._signals" in sys.modules:  # it loads the application; when an engine starts is too late
    from .servers.granian import mend_signals

    mend_signals()
