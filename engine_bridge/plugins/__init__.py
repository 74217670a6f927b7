"""What an engine can do, one plugin a file."""

from .base import Plugin
from .log import Log
from .pidfile import PIDFile
from .signals import SignalHandler

__all__ = ["Log", "PIDFile", "Plugin", "SignalHandler"]
