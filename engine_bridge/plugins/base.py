"""What plugins share: `Plugin`, paths, the process that some of them change, files given away."""

import os
import stat
import sys

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import current_host
from engine_bridge.core.plugin import Plugin
from engine_bridge.core.records import WARNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Plugin",
    "absolute",
    "check_owns_process",
    "check_umask",
    "hand_over",
    "logging_handlers",
]


def absolute(path: "str | os.PathLike[str]", usage: str) -> str:
    """
    Return *path* as it is meant from the present directory, which a daemon leaves.

    Args:
        path: What a plugin was given.
        usage: An example of the right call, for the message.

    Raises:
        EngineError: *path* is no path.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        text = ""
    if not text or "\0" in text:
        raise EngineError(f"not the path of a file: {path!r}; example: {usage}")
    return os.path.abspath(text)


def check_umask(umask: int, usage: str) -> int:
    """
    Return *umask*.

    Args:
        umask: What a plugin was given.
        usage: An example of the right call, for the message.

    Raises:
        EngineError: It is none.
    """
    given: object = umask
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= 0o777:
        raise EngineError(f"not a umask, 0 to 0o777: {umask!r}; example: {usage}")
    return umask


def check_owns_process(plugin: Plugin, instead: str) -> None:
    """
    See that the process is the engine's own, for a plugin that changes the process as a whole.

    Args:
        plugin: The plugin.
        instead: What to run where a server owns the process.

    Raises:
        EngineError: A server owns it.
    """
    host = plugin.engine.host or current_host()
    if host.owns_process:
        return
    of = f" of process {host.main_pid}" if host.main_pid != os.getpid() else ""
    owner = f"is a {host.role}{of}"
    if host.server:
        owner += f", run by {host.server}"
    raise EngineError(
        f"{type(plugin).__name__} is for a process of its own, but this one {owner}: "
        f"leave it out here and run {instead} instead"
    )


def hand_over(engine: Engine, descriptor: int, path: str, uid: int, gid: int) -> None:
    """
    Give the open file at *path* to another user; say so in the log where that must not be.

    Only what this user made, under this one name, is given away. Who may write in the directory
    could have had us open quite another file, by a link, and would now own that.

    Args:
        engine: Whose log it is.
        descriptor: The open file.
        path: Its name.
        uid: The user who gets it.
        gid: The group that gets it.
    """
    try:
        reason = _why_not(descriptor, path, uid)
        if reason is None:
            os.fchown(descriptor, uid, gid)
    except OSError as exc:
        reason = str(exc.strerror)
    if reason:
        engine.log(f"{path} is not handed over to user {uid}: {reason}", WARNING)


def _why_not(descriptor: int, path: str, uid: int) -> str | None:
    """Return why the file must not be given away; empty if it need not, None if it may."""
    file = os.fstat(descriptor)
    if not stat.S_ISREG(file.st_mode) or file.st_uid == uid:
        return ""  # a device is nobody's
    if file.st_uid != os.geteuid():
        return f"it belongs to user {file.st_uid}"
    if file.st_nlink != 1:
        return f"it has {file.st_nlink} names"
    if not os.path.samestat(os.stat(path), file):
        return "another file has its name by now"
    if link := _foreign_link(path):
        return f"{link} is a link that somebody else has made"
    return None


def _foreign_link(path: str) -> str:
    """Return a link on the way to *path* that this user has not made."""
    while path != os.path.dirname(path):
        there = os.lstat(path)
        if stat.S_ISLNK(there.st_mode) and there.st_uid != os.geteuid():
            return path
        path = os.path.dirname(path)
    return ""


def logging_handlers() -> "list[Any]":
    """Return the handlers of all loggers; does not import logging where nobody has."""
    logging = sys.modules.get("logging")
    if logging is None:
        return []
    loggers = [logging.root, *tuple(logging.root.manager.loggerDict.values())]
    handlers = (handler for logger in loggers for handler in getattr(logger, "handlers", ()))
    return list(dict.fromkeys(handlers))
