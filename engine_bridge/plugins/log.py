"""
Log: what the engine tells of itself, and what others say on the `log` channel, to `logging`.

Every engine hands warnings and errors to `logging` without a plugin; this one hands over the rest
too, in that reader's place. It observes, and so has each record as it is. The engine also says a
record's text on the `log` channel, as a `RecordText`: by that the two are told apart, and what
CherryPy's plugins publish there by themselves arrives as well, nothing of it twice.

A log must never be what breaks the thing it tells about. Whatever goes wrong here (a handler that
raises, a full disk, a standard error that is closed) is printed once, not for each line.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import IO

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.records import INFO, Message, Record, RecordText, last_resort, to_logging
from engine_bridge.plugins.base import Plugin, absolute, hand_over

PLAIN = "%(asctime)s %(process)d %(levelname)s %(message)s"
JSON = "%(message)s"  # the message is the whole object


class Log(Plugin):
    """
    Hand the engine's records to `logging`, as lines for people or as JSON.

    With *file*, or where `logging` has no handler for *logger*, Log writes by a handler of its own,
    to that file or to standard error. Handlers that *logger* reaches get everything too, and decide
    with its level what they show; with *json* their message is the object.

    On `graceful`, files that have been renamed are opened anew: its own, and those of all
    `logging.FileHandler`s that *logger* reaches.

    Args:
        engine: The engine to observe.
        logger: A logger or its name.
        json: Whether to write one JSON object a line: `time`, `level`, `event` (what happened, the
            name of the record's class), `message`, `fields`, `pid`.
        file: A file to append to; a relative path is meant from the present directory.
        level: The lowest level to tell, as in `logging`: a number or a name. DEBUG tells of each
            listener of the lifecycle.

    Raises:
        EngineError: An argument is not what it should be.
    """

    channels = ("log", "graceful", "hand_over")

    def __init__(
        self,
        engine: Engine,
        logger: logging.Logger | str | None = None,
        *,
        json: bool = False,
        file: "str | os.PathLike[str] | None" = None,
        level: int | str = INFO,
    ) -> None:
        super().__init__(engine)
        self._logger = _logger(logger)
        self._json = json
        self._path = (
            None if file is None else absolute(file, "Log(engine, file='/var/log/app.log')")
        )
        self._level = _level(level)
        self._own: logging.Handler | None = None
        self._replaces_default = False
        self._failing = False
        self._thread = threading.local()

    def subscribe(self) -> None:
        """
        Open the file, and read in the place of the engine's default reader.

        Raises:
            EngineError: The file cannot be opened.
        """
        if self._read in self.engine.observers:
            return
        self._own = self._open()
        super().subscribe()
        self.engine.observe(self._read, everything=False)  # a request must not pay for the log
        self._replaces_default = to_logging in self.engine.observers
        self.engine.unobserve(to_logging)

    def unsubscribe(self) -> None:
        """Close the file, and put the default reader back unless another Log is on."""
        super().unsubscribe()
        self.engine.unobserve(self._read)
        if self._replaces_default:
            self._replaces_default = False
            self._put_default_back()
        own, self._own = self._own, None
        if own is not None:
            _close(own)

    def log(self, msg: object = "", level: object = INFO, *args: object, **kwargs: object) -> None:
        """Hand on what somebody has published by himself, with whatever arguments."""
        if not isinstance(msg, RecordText):
            number = level if isinstance(level, int) else INFO
            self._read(Message(text=str(msg), level=number, error=None))

    def graceful(self) -> None:
        """Open those files anew that have been renamed or removed."""
        for handler in self._files():
            try:
                reopen(handler)
            except OSError as exc:
                self.engine.log(
                    f"cannot open the log file {handler.baseFilename} anew: {exc.strerror}; "
                    "lines still go to the one that is open",
                    logging.ERROR,
                )

    def hand_over(self, uid: int, gid: int) -> None:
        """Give its own file to the user that this process becomes; `logging`'s it does not own."""
        own = self._own
        if isinstance(own, LogFile) and own.stream is not None:
            hand_over(self.engine, own.stream.fileno(), own.baseFilename, uid, gid)

    def _read(self, record: Record) -> None:
        """Hand *record* on; what is said meanwhile in this thread was said by a handler."""
        if record.level < self._level or getattr(self._thread, "busy", False):
            return
        self._thread.busy = True
        try:
            self._hand_on(record)
        finally:
            self._thread.busy = False

    def _entry(self, record: Record) -> logging.LogRecord:
        error = getattr(record, "error", None)
        exc_info = (type(error), error, error.__traceback__) if error is not None else None
        text = record.message()
        if self._json:
            text, exc_info = to_json(record), None
        return self._logger.makeRecord(
            self._logger.name, record.level, "engine_bridge", 0, text, (), exc_info
        )

    def _hand_on(self, record: Record) -> None:
        failed = False
        entry: logging.LogRecord | None = None
        for handle in self._targets(record.level):
            try:
                entry = entry or self._entry(record)
                handle(entry)
            except Exception:
                if not self._failing:
                    last_resort(f"the log {self._path or self._logger.name!r}")
                failed = True
        self._failing = failed

    def _targets(self, level: int) -> "Iterator[Callable[[logging.LogRecord], object]]":
        reached = self._logger.hasHandlers()  # each time: logging may be configured later
        if self._own is not None and (self._path is not None or not reached):
            yield self._own.handle
        if reached and self._logger.isEnabledFor(level):
            yield self._logger.handle

    def _open(self) -> logging.Handler:
        """Return a handler of our own."""
        if self._path is None:
            handler: logging.Handler = Screen()
        else:
            try:
                handler = LogFile(self._path, encoding="utf-8", errors="backslashreplace")
            except OSError as exc:
                raise EngineError(
                    f"cannot open the log file {self._path}: {exc.strerror}; "
                    "create its directory and let this user write there, or name another one"
                ) from exc
        handler.setFormatter(logging.Formatter(JSON if self._json else PLAIN))
        return handler

    def _files(self) -> list[logging.FileHandler]:
        """Return the handlers that write to files and that our records reach."""
        handlers = [] if self._own is None else [self._own]
        logger: logging.Logger | None = self._logger
        while logger is not None:
            handlers += logger.handlers
            logger = logger.parent if logger.propagate else None
        return [handler for handler in handlers if isinstance(handler, logging.FileHandler)]

    def _put_default_back(self) -> None:
        for observer in self.engine.observers:
            other = getattr(observer, "__self__", None)
            if isinstance(other, Log):
                other._replaces_default = True
                return
        self.engine.observe(to_logging, everything=False)


class Screen(logging.Handler):
    """Standard error, whatever that is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*; a process may have no standard error."""
        if sys.stderr is not None:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


class LogFile(logging.FileHandler):
    """
    A file that may be renamed at any moment: each line goes to the one that has the name then.

    Like `logging.handlers.WatchedFileHandler`, without its import (15 modules), and with a new file
    opened before the old one is closed.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*."""
        try:
            reopen(self)
        except OSError:
            pass  # better the old file than none; on `graceful` it is told
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Leave the fault to Log, which tells of it once."""
        error = sys.exception()
        assert error is not None  # it is called where one is handled
        raise error


def reopen(handler: logging.FileHandler) -> None:
    """
    Open the file of *handler* anew, if the one that it has open has lost its name.

    Raises:
        OSError: It cannot be opened; the handler goes on with the old one.
    """
    handler.acquire()
    try:
        old = handler.stream
        if old is None or _has_name(old, handler.baseFilename):  # None: it opens at its first line
            return
        # Never by the handler's mode: "w" would empty what other processes have begun.
        handler.stream = open(  # noqa: SIM115  # the handler closes it
            handler.baseFilename, "a", encoding=handler.encoding, errors=handler.errors
        )
        try:
            old.close()
        except OSError:
            pass  # its disk is full; that was told when the line was written
    finally:
        handler.release()


def to_json(record: Record) -> str:
    """Return *record* as a JSON object in one line."""
    fields = {name: getattr(record, name) for name in record.__slots__}
    if isinstance(record, Message):
        del fields["text"], fields["level"]  # they stand beside the fields
    error = fields.pop("error", None)
    if error is not None:
        import traceback

        fields["error"] = "".join(traceback.format_exception_only(error)).strip()
        fields["traceback"] = "".join(traceback.format_exception(error))
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(record.level),
        "event": type(record).__name__,
        "message": record.message(),
        "fields": fields,
        "pid": os.getpid(),
    }
    return json.dumps(line, default=repr)


def _has_name(file: IO[str], path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file.fileno()), there)


def _close(handler: logging.Handler) -> None:
    try:
        handler.close()
    except OSError:
        pass  # a full disk; that was told when the line was written


# -- arguments -----------------------------------------------------------------------------------


def _logger(logger: logging.Logger | str | None) -> logging.Logger:
    if logger is None or (isinstance(logger, str) and logger):
        return logging.getLogger(logger or "engine_bridge")
    if not isinstance(logger, logging.Logger):
        raise EngineError(f"Log(logger=…) wants a logger or its name, got {logger!r}")
    return logger


def _level(level: int | str) -> int:
    known = logging.getLevelNamesMapping()
    number = level if isinstance(level, int) else known.get(str(level))
    if number is None:
        raise EngineError(f"no log level {level!r}; known: {', '.join(known)}")
    return number
