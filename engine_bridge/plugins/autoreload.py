"""
Autoreloader: a new process when a file has changed.

`watched.py` knows what has changed, `watcher.py` when to look; here is what follows from it.

Before anything is stopped, Python files that changed are compiled: with one that does not, the
running code goes on until the next save. What changes while the new process starts is not lost. The
old one notes in the environment when it left, and the first look of the new one takes for changed
what did so later. A process that nobody handed over to takes the moment when it began.

Weighed and left: to hand over what all files looked like. A file that only the new code imports
would not be among them.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError, RestartRefused
from engine_bridge.core.host import STARTUP_CWD
from engine_bridge.core.records import ERROR, INFO, WARNING
from engine_bridge.core.states import State
from engine_bridge.plugins.base import Plugin, absolute

from .watched import WILD, ModuleFiles, Tree, Watched, patterns, read, tree_of
from .watcher import BACKENDS, Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | os.PathLike[str]

HANDOVER = "ENGINE_BRIDGE_AUTORELOAD"  # pid, nanoseconds when it left, restarts at the start so far
IMPORTED = time.time_ns()
LONGEST_IMPORT = 30.0  # seconds; a process that began longer ago was a shell before
HEAD_START = 0.2  # seconds; what the watch imports takes a tenth of one
MAX_IN_A_ROW = 3
NAMED = 3


class Autoreloader(Plugin):
    """
    Restart the process when a file has changed that it was made of.

    Watched are the modules that it has imported, and what the arguments add to them. The engine
    restarts the host's way: a script runs its command line anew. Where the host refuses, that is
    logged and the watch goes on.

    Args:
        engine: The engine to restart.
        frequency: Seconds between two looks when polling, and between two searches for modules
            that were imported since.
        match: Regular expression that the names of modules must match at their beginning.
        files: More files, by path or by glob.
        directories: Directories in which every file counts that the patterns leave.
        include: Patterns as in .gitignore: which files in *directories* count; none means all.
        exclude: Patterns of what does not count, of modules as well.
        dependencies: Whether the standard library and installed packages are watched, too.
        debounce: Seconds without a change after which one is taken for complete.
        backend: `inotify`, `watchfiles`, `polling`, or `auto`: the first on Linux, elsewhere
            watchfiles where that is installed, else polling.

    Raises:
        EngineError: An argument is not what it should be, or needs what is not installed.

    Attributes:
        files: The set of more files; paths may be added at any time.
    """

    channels = ("start", "stop", "exit", "fork")

    def __init__(
        self,
        engine: Engine,
        frequency: float = 1,
        match: str = ".*",
        *,
        files: "Iterable[Path]" = (),
        directories: "Iterable[Path]" = (),
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        dependencies: bool = False,
        debounce: float = 0.02,
        backend: str = "auto",
    ) -> None:
        super().__init__(engine)
        self.frequency = _seconds("frequency", frequency)
        self.match = _expression(match)
        self._debounce = _seconds("debounce", debounce)
        self._backend = _known_backend(backend)
        include, exclude = _lines("include", include), _lines("exclude", exclude)
        named = {absolute(path, USAGE) for path in _several("files", files)}
        globs = {path for path in named if WILD.search(path) and not os.path.exists(path)}
        self.files = set(map(_no_directory, named - globs))
        self._trees = [tree_of(path, exclude) for path in sorted(globs)]
        for path in _several("directories", directories):
            self._trees.append(Tree(_no_file(absolute(path, USAGE)), include, exclude))
        self._exclude = patterns(exclude, "exclude") if exclude else None
        self._modules = ModuleFiles(lambda: self.match, dependencies=dependencies)
        since, self._in_a_row = _beginning()
        self._watched = Watched(self.module_files, self._trees, self._modules.directories, since)
        self._made_in = os.getpid()
        self._watcher: Watcher | None = None
        self._pending: set[str] = set()  # changed, and not yet in force
        self._faults: dict[str, Fault] = {}  # of those in _pending that cannot be
        self._has_looked = False

    def unsubscribe(self) -> None:
        """Turn the plugin off; nothing is watched any more."""
        super().unsubscribe()
        self.stop()

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        os.environ.pop(HANDOVER, None)  # of an earlier life
        if self._watcher is not None:
            return
        self._choose_baseline()
        for tree in self._trees:
            if not os.path.isdir(tree.root):
                self._tell(f"the directory {shown(tree.root)} is not there; waiting for it", None)
        watcher = Watcher(
            self._watched,
            lambda changed: self._act(watcher, changed),
            self._tell,
            frequency=lambda: self.frequency,
            debounce=self._debounce,
            backend=self._backend,
        )
        watcher.start(lambda: self._wait_for_start(watcher), name="Autoreloader")
        self._watcher = watcher

    start.priority = 70  # type: ignore[attr-defined]  # as CherryPy's; daemons have forked by now

    def stop(self) -> None:
        """Watch no more; what changes meanwhile is found by the next start."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.stop()

    def exit(self) -> None:
        """Leave word for the process that may follow, whoever has asked for it."""
        os.environ[HANDOVER] = f"{os.getpid()} {time.time_ns()} {self._in_a_row}"

    exit.priority = 100  # type: ignore[attr-defined]  # what changed before is what it will load

    def fork(self) -> None:
        """In a forked child: the thread is the parent's, and so is the restart."""
        self._watcher = None
        self._pending = set()

    def module_files(self) -> set[str]:
        """Return the files that are watched by name: those of modules, and `files`."""
        found = self._modules()
        if self._exclude is not None:
            matches = self._exclude.match_file
            found = {path for path in found if not matches(relative(path))}
        return found | {os.path.join(STARTUP_CWD, path) for path in tuple(self.files)}

    def _choose_baseline(self) -> None:
        """
        Count from now in a process that a server forked when it had loaded us.

        A new one would be a fork of the same, with the same changes not in force, and so for ever.
        """
        if self._made_in != os.getpid() and not self.engine.owns_process:
            self._watched.begin_now()

    def _tell(self, text: str, exc: Exception | None) -> None:
        self.engine.log(text, ERROR if exc else WARNING, traceback=exc is not None)

    # -- in the thread ------------------------------------------------------------------------

    def _wait_for_start(self, watcher: Watcher) -> None:
        """Let the start and the first answers come first: they have a use for the processor."""
        self.engine.wait([state for state in State if state is not State.STARTING])
        watcher.rest(HEAD_START)

    def _act(self, watcher: Watcher, changed: set[str]) -> bool:
        """Act on what has *changed*; return whether to be asked again although nothing has."""
        starting, self._has_looked = not self._has_looked, True
        self._pending |= changed
        if self._find_faults(changed):
            return True
        pending, self._pending = self._pending, set()
        if not pending:
            return False
        when = " while this process started" if starting else ""
        self._in_a_row = self._in_a_row + 1 if starting else 0
        if self._in_a_row > MAX_IN_A_ROW:
            self._in_a_row = 0
            self.engine.log(
                f"{name_some(pending)} changed{when}, for the {MAX_IN_A_ROW + 1}th time in a row; "
                "not restarting: if the application writes that itself, exclude it",
                WARNING,
            )
        else:
            self._restart(watcher, pending, f"{name_some(pending)} changed{when}")
        return False

    def _find_faults(self, changed: set[str]) -> bool:
        """Tell, once for each version, which pending files cannot be loaded; say if there are."""
        faults: dict[str, Fault] = {}
        named, importing = self._modules() | self.files, self._modules.directories()
        for path in self._pending:
            known = self._faults.get(path)
            if known is not None and path not in changed and not known.may_pass:
                faults[path] = known
            elif is_code(path, named, importing) and (fault := find_fault(path)) is not None:
                faults[path] = fault
        told = False
        for path, fault in sorted(faults.items()):
            if path in changed or path not in self._faults:
                told = True
                self.engine.log(
                    f"{shown(path)} {fault.text}; not restarting, the running code goes on", ERROR
                )
        self._faults = faults
        if changed and faults and not told:
            self.engine.log(
                f"{name_some(changed)} changed; not restarting before {name_some(faults)} is right",
                WARNING,
            )
        return bool(faults)

    def _restart(self, watcher: Watcher, paths: set[str], what: str) -> None:
        if not watcher.part():
            self._pending |= paths  # for the next start
            return
        try:
            if self.engine.host is not None:
                self.engine.host.prepare_restart()  # so that a refusal is one line in the log
            self.engine.log(f"{what}; restarting", INFO)
            forget_bytecode(paths)
            self.engine.restart()
        except RestartRefused as exc:
            self.engine.log(f"{what}; no restart: {exc}", WARNING)
        except ChannelFailures:
            pass  # each is in the log; the new process comes all the same
        except Exception as exc:
            self._tell(f"{what}; the restart failed: {exc}", exc)
        finally:
            watcher.rejoin()


# -- code ----------------------------------------------------------------------------------------


class Fault:
    """Why a file cannot be loaded."""

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        self.text = text
        self.may_pass = may_pass  # without a change of the file


def is_code(path: str, named: set[str], importing: set[str]) -> bool:
    """Whether *path* is Python that a new process may run, rather than a template of some."""
    directory, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    if suffix != ".py" or not stem.isidentifier():
        return suffix == ".py" and path in named
    return path in named or directory in importing or os.path.dirname(directory) in importing


def find_fault(path: str) -> Fault | None:
    """Return why *path* cannot be loaded; None if it can, or is gone."""
    try:
        source = read(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        return Fault(f"cannot be read: {exc.strerror}", may_pass=True)
    try:
        compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as exc:
        return Fault(f"does not compile, line {exc.lineno or 1}: {exc.msg}")
    except (ValueError, OverflowError, RecursionError, MemoryError) as exc:
        return Fault(f"does not compile: {str(exc) or type(exc).__name__}")
    return None


def forget_bytecode(paths: Iterable[str]) -> None:
    """
    Remove the bytecode of *paths*.

    Python takes it for current when the source has the same size and was saved in the same second;
    a new process would run the old code.

    Source:
        PEP 552: a pyc file names its source's mtime in seconds, and its size.
    """
    from importlib.util import cache_from_source

    for path in paths:
        if path.endswith(".py"):
            try:
                os.unlink(cache_from_source(path))
            except (OSError, NotImplementedError):
                pass  # there is none


# -- names ---------------------------------------------------------------------------------------


def name_some(paths: Iterable[str]) -> str:
    """Name *paths*, the first of them if there are many."""
    names = sorted(map(shown, paths))
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def shown(path: str) -> str:
    """Return *path* for people, in one line whatever is in it."""
    text = relative(path)
    return text if text.isprintable() else ascii(text)


def relative(path: str) -> str:
    """Return *path* from the directory in which the process began, if it is below that."""
    start = STARTUP_CWD.rstrip(os.sep) + os.sep
    return path[len(start) :] if path.startswith(start) else path


# -- when this process began ---------------------------------------------------------------------

_beginnings: dict[int, tuple[int, int]] = {}


def _beginning() -> tuple[int, int]:
    """Return since when a change may not be in force, and the restarts at the start so far."""
    pid = os.getpid()
    if pid not in _beginnings:
        _beginnings[pid] = _handed_over(pid) or (_process_start(), 0)
    return _beginnings[pid]


def _handed_over(pid: int) -> tuple[int, int] | None:
    """Return what this process left word of before it began anew; None if that was another."""
    words = os.environ.pop(HANDOVER, "").split()
    if len(words) != 3 or not all(word.isdecimal() for word in words) or int(words[0]) != pid:
        return None
    return int(words[1]), int(words[2])


def _process_start() -> int:
    """
    Return when the process began, in nanoseconds of wall clock; our import where that is unknown.

    Source:
        proc(5), `/proc/pid/stat`: the time in clock ticks after boot. It is that of the fork: who
        is run by a shell's `exec` is as old as the shell.
    """
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b") ")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - (ticks + 1) / os.sysconf("SC_CLK_TCK")
    except (AttributeError, IndexError, OSError, ValueError):
        return IMPORTED
    began = time.time_ns() - int(age * 1e9)
    return began if 0 <= IMPORTED - began <= LONGEST_IMPORT * 1e9 else IMPORTED


# -- arguments -----------------------------------------------------------------------------------

USAGE = "Autoreloader(engine, files=['settings.yaml'], directories=['templates'])"


def _seconds(name: str, value: float) -> float:
    import threading

    number = value if type(value) in (int, float) else 0
    if not 0 < number <= threading.TIMEOUT_MAX:
        raise EngineError(f"Autoreloader({name}=…) wants seconds, more than 0; got {value!r}")
    return value


def _expression(match: str) -> str:
    try:
        re.compile(match)
    except (TypeError, re.error) as exc:
        raise EngineError(
            f"Autoreloader(match=…) wants a regular expression for names of modules, "
            f"e.g. 'myapp'; got {match!r}: {exc}"
        ) from exc
    return match


def _known_backend(backend: str) -> str:
    from importlib.util import find_spec

    if backend not in BACKENDS:
        raise EngineError(f"no backend {backend!r} to watch files; known: {', '.join(BACKENDS)}")
    if backend == "watchfiles" and find_spec("watchfiles") is None:
        raise EngineError("watchfiles is not installed: pip install 'engine-bridge[reload]'")
    return backend


def _several(name: str, values: "Iterable[Path]") -> "list[Path]":
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise EngineError(f"Autoreloader({name}=…) wants a list of paths; got {values!r}")
    return list(values)


def _no_directory(path: str) -> str:
    if os.path.isdir(path):
        raise EngineError(f"{path} is a directory; name it in directories=[…], or a file in files")
    return path


def _no_file(path: str) -> str:
    if os.path.isfile(path):
        raise EngineError(f"{path} is no directory; name it in files=[…]")
    return path


def _lines(name: str, lines: Sequence[str]) -> list[str]:
    if isinstance(lines, str | bytes) or not isinstance(lines, Iterable):
        raise EngineError(f"Autoreloader({name}=…) wants a list of patterns; got {lines!r}")
    lines = list(lines)
    for line in lines:
        if not isinstance(line, str):
            raise EngineError(f"Autoreloader({name}=…) wants patterns as text; got {line!r}")
    return lines
