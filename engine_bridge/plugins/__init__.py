"""What an engine can do, one plugin a file."""

from .autoreload import Autoreloader
from .background import BackgroundTask
from .base import Plugin
from .daemonize import Daemonizer
from .followmain import FollowMain
from .health import Health
from .log import Log
from .monitor import Monitor
from .pidfile import PIDFile
from .privileges import DropPrivileges
from .signals import SignalHandler
from .systemd import Systemd
from .threads import ThreadManager

__all__ = [
    "Autoreloader",
    "BackgroundTask",
    "Daemonizer",
    "DropPrivileges",
    "FollowMain",
    "Health",
    "Log",
    "Monitor",
    "PIDFile",
    "Plugin",
    "SignalHandler",
    "Systemd",
    "ThreadManager",
]
