"""One process lifecycle for every Python web application and every server that runs it."""

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
