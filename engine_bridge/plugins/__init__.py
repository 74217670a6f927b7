"""What an engine can do, one plugin a file."""

from .base import Plugin
from .daemonize import Daemonizer
from .log import Log
from .pidfile import PIDFile
from .privileges import DropPrivileges
from .signals import SignalHandler

__all__ = ["Daemonizer", "DropPrivileges", "Log", "PIDFile", "Plugin", "SignalHandler"]
