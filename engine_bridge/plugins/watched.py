"""
What is watched, and what of it has changed: files by name, directories by pattern, code by import.

A file has changed when its (mtime, size, inode) is another than it was: newer, older, replaced and
retargeted are all the same. Nothing here waits; `watcher.py` says when to look.

Three things are looked at:

- Files that are known by name: imported modules, and what else was named. They count as gone, and
  as come, whenever they go and come.
- Trees: directories in which patterns choose. What appears there has changed.
- Import directories, where a Python file may appear whose import has failed before. It counts if
  the source of a watched module mentions its name; else it would be as if it were not there.

Some of it may have changed before the first look, when this process had already loaded it. So a
file at which nobody has looked yet has changed if its ctime says that it did since a given moment:
the kernel sets that one, whatever mtime an editor, rsync or tar wants.
"""

import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import STARTUP_CWD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pathspec import GitIgnoreSpec

Signature = tuple[int, int, int]
Look = dict[str, Signature | None]

# In directories only. Behind the caches and copies of tools: what an application writes for itself,
# which would have it restart for ever.
DEFAULT_EXCLUDE = (
    *(".git/", ".hg/", ".svn/", ".tox/", ".nox/", ".venv/", "venv/", "node_modules/"),
    *("__pycache__/", ".*_cache/", "*.py[co]", "*~", ".#*", "\\#*#", ".*.sw?", "4913", "*.tmp"),
    *("*.log", "*.pid", "*.sock", "*.db", "*.sqlite", "*.sqlite3", "*-journal", "*-wal", "*-shm"),
)
MAX_LINKS = 40  # path_resolution(7)
MAX_DECIDED = 200_000
TICK = 10_000_000  # nanoseconds, where the kernel counts slowest
SUFFIXES = (".py", ".so", ".pyd")  # of what can be imported
WILD = re.compile(r"[*?\[]")


class Watched:
    """
    Everything that is watched, as it was at the last look.

    Args:
        files: Returns the absolute paths that are known by name at this moment.
        trees: The directories in which patterns choose.
        importing: Returns the directories in which imports look.
        since: Nanoseconds of wall clock; what changed later has changed although nobody has seen
            it before.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[str]],
        trees: "Sequence[Tree]" = (),
        importing: Callable[[], Iterable[str]] = tuple,
        since: int | None = None,
    ) -> None:
        self._files = files
        self._trees = trees
        self._importing = importing
        self._since = moment() if since is None else since
        self._seen: Look = {}
        self._known: set[str] = set()
        self._importable: dict[str, set[str]] = {}
        self._appeared: set[str] = set()  # in import directories, at some time
        self._looked = False

    def __len__(self) -> int:
        """Return the number of files at the last look."""
        return len(self._seen)

    def begin_now(self) -> None:
        """Take what nobody has looked at yet for unchanged."""
        self._since = max(self._since, time.time_ns())

    def compare(self) -> set[str]:
        """Look at everything; return what has changed since the last look."""
        began = moment()
        self._known = set(self._files()) | self._appeared
        now: Look = {path: self._sign(path) for path in self._known}
        for path in self._in_trees():
            signature = self._sign(path)
            if signature is not None:
                now.setdefault(path, signature)
        changed = {path for path in now if self._has_changed(path, now[path])}
        changed |= {path for path in self._seen.keys() - now.keys() if self._is_gone(path)}
        appeared = self._find_importable()
        self._appeared |= appeared
        now |= {path: self._sign(path) for path in appeared}
        self._seen, self._since, self._looked = now, began, True
        return changed | appeared

    def age(self, changed: Iterable[str]) -> float:
        """Return the seconds since the last change of the *changed*; 0 where that is unknown."""
        ages = [time.time_ns() - ctime for path in changed if (ctime := _ctime(path)) is not None]
        return max(min(ages, default=0) / 1e9, 0.0)

    def is_incomplete(self, changed: Iterable[str]) -> bool:
        """Whether some of the *changed* may just be on its way: a file that is gone, or empty."""
        return any(not (self._seen.get(path) or (0, 0))[1] for path in changed)

    def has_grown(self) -> bool:
        """Whether there are files, known by name, at which nobody has looked; looks at none."""
        return not self._known.issuperset(self._files())

    def _in_trees(self) -> Iterator[str]:
        for tree in self._trees:
            yield from tree.walk()

    def _sign(self, path: str) -> Signature | None:
        """Return the signature of *path*; the last one while the system does not tell."""
        try:
            return sign(path)
        except OSError:
            return self._seen.get(path)

    def _has_changed(self, path: str, signature: Signature | None) -> bool:
        if path in self._seen:
            return self._seen[path] != signature
        if self._looked and path not in self._known:
            return True  # it is new in a tree
        return changed_within(path, self._since)

    def _is_gone(self, path: str) -> bool:
        """Whether *path* has left the disk, rather than those who are interested in it."""
        return self._seen[path] != self._sign(path)

    def _find_importable(self) -> set[str]:
        """Return the importable files that are new, and that a watched module mentions."""
        new: set[str] = set()
        for directory in set(self._importing()):
            found = importable(directory)
            before = self._importable.get(directory)
            self._importable[directory] = found
            if before is None:
                new |= {path for path in found if changed_within(path, self._since)}
            else:
                new |= found - before
        return mentioned(new - self._known, self._known)

    # -- where a notification may come from ---------------------------------------------------

    def places(self) -> "dict[str, Hearing]":
        """Return each directory where something may happen that matters, and what matters there."""
        places: dict[str, Hearing] = {}

        def on_the_way(path: str) -> None:
            """Hear of each step to *path*."""
            for here, name in way(path):
                places.setdefault(here, Hearing()).names.add(name)

        real = {}
        for directory in {os.path.dirname(path) for path in self._known}:
            on_the_way(directory)
            real[directory] = os.path.realpath(directory)
        for path in self._known:
            directory, name = os.path.split(path)
            places.setdefault(real[directory], Hearing()).names.add(name)
            if os.path.islink(path):
                on_the_way(path)
        for directory in self._importable:
            on_the_way(directory)
            for inside in (directory, *packages(directory)):
                places.setdefault(os.path.realpath(inside), Hearing()).imports = True
        for tree in self._trees:
            on_the_way(tree.root)
            for link in tree.links:
                on_the_way(link)
            for directory, place in tree.directories.items():
                places.setdefault(place, Hearing()).trees.append((tree, directory))
        return places


class Hearing:
    """What matters in one directory."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.imports = False
        self.trees: list[tuple[Tree, str]] = []

    def minds(self, name: str) -> bool:
        """Whether what happens to the entry *name* matters."""
        if name in self.names:
            return True
        if self.imports and (name.endswith(SUFFIXES) or name.isidentifier()):
            return True
        return any(tree.minds(os.path.join(directory, name)) for tree, directory in self.trees)


class Tree:
    """
    A directory, and which files below it are watched.

    Args:
        root: Its absolute path; it need not be there.
        include: Patterns as in gitignore(5), of what is watched; none means everything.
        exclude: Patterns of what is not, after those of `DEFAULT_EXCLUDE`: `!` takes one back.
        depth: How many levels of directories to go down; None means all.
    """

    def __init__(
        self,
        root: str,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        depth: int | None = None,
    ) -> None:
        self.root = root
        self._include = patterns(include, "include") if include else None
        self._exclude = patterns((*DEFAULT_EXCLUDE, *exclude), "exclude")
        self._depth = depth
        self._decided: dict[str, bool] = {}
        self._start = len(root.rstrip(os.sep)) + 1
        self.directories: dict[str, str] = {}
        self.links: list[str] = []

    def walk(self) -> list[str]:
        """
        Return the files; note in `directories` where they may be, and in `links` what leads away.

        Links to directories are followed, but not those that lead to where the walk comes anyway.
        """
        files: list[str] = []
        home = os.path.realpath(self.root)
        followed = [home]
        self.directories = {}
        self.links = []
        todo = [(self.root, home, 0)]
        while todo:
            directory, place, depth = todo.pop()
            try:
                entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            except OSError:
                continue
            self.directories[directory] = place
            for entry in entries:
                is_directory = _is_directory(entry)
                if not self._wants(entry.path, is_directory=is_directory):
                    continue
                if entry.is_symlink():
                    self.links.append(entry.path)
                if not is_directory:
                    files.append(entry.path)
                elif self._depth is None or depth < self._depth:
                    there = os.path.join(place, entry.name)
                    if entry.is_symlink():
                        there = os.path.realpath(there)
                        if any(_overlap(there, each) for each in followed):
                            continue
                        followed.append(there)
                    todo.append((entry.path, there, depth + 1))
        return files

    def minds(self, path: str) -> bool:
        """Whether *path*, right below a directory of this tree, is a file or directory of it."""
        return self._wants(path, is_directory=False) or self._wants(path, is_directory=True)

    def _wants(self, path: str, *, is_directory: bool) -> bool:
        """Ask the patterns, once for each path: that takes longer than to look at the file."""
        relative = path[self._start :].replace(os.sep, "/") + ("/" if is_directory else "")
        decision = self._decided.get(relative)
        if decision is None:
            if len(self._decided) > MAX_DECIDED:
                self._decided.clear()  # of names that are never used again
            decision = not self._exclude.match_file(relative)
            if decision and not is_directory and self._include is not None:
                decision = self._include.match_file(relative)
            self._decided[relative] = decision
        return decision


def tree_of(pattern: str, exclude: Sequence[str] = ()) -> Tree:
    """Return the tree in which the absolute glob *pattern* chooses."""
    parts = pattern.split(os.sep)
    plain = next(index for index, part in enumerate(parts) if WILD.search(part))
    wild = parts[plain:]
    root = os.sep.join(parts[:plain]) or os.sep
    return Tree(root, ["/" + "/".join(wild)], exclude, None if "**" in wild else len(wild) - 1)


def patterns(lines: Sequence[str], what: str) -> "GitIgnoreSpec":
    """
    Return the gitignore *lines*, ready to match.

    Raises:
        EngineError: One of them is not such a pattern, or pathspec is not installed.
    """
    try:
        from pathspec import GitIgnoreSpec
    except ModuleNotFoundError as exc:
        if exc.name != "pathspec":
            raise
        raise EngineError(
            "Autoreloader needs pathspec for directories and patterns: "
            "pip install 'engine-bridge[reload]'"
        ) from exc
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as exc:
        raise EngineError(
            f"Autoreloader({what}=…) wants patterns as in .gitignore, "
            f"e.g. ['*.html', '!draft.html']: {exc}"
        ) from exc


# -- files ---------------------------------------------------------------------------------------


def sign(path: str) -> Signature | None:
    """
    Return what tells the content of *path* from what was there before; None if no file is there.

    Raises:
        OSError: The system does not tell: no permission, a network that does not answer.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        if os.path.islink(path):
            return None  # it leads to itself
        raise
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def moment() -> int:
    """
    Return the present, as later changes must compare with it: a little earlier than it is.

    Source:
        The kernel's `current_time`: a file's times are those of the last tick of its clock.
    """
    return time.time_ns() - TICK


def changed_within(path: str, since: int) -> bool:
    """
    Whether *path* has changed after *since*, in nanoseconds of wall clock.

    A change that seems to come yet was made before the clock was set back.
    """
    ctime = _ctime(path)
    return ctime is not None and since < ctime <= time.time_ns()


def _ctime(path: str) -> int | None:
    try:
        return os.stat(path).st_ctime_ns
    except (OSError, ValueError):
        return None


def way(path: str) -> Iterator[tuple[str, str]]:
    """
    Yield each directory that is looked into to find *path*, with the name that is looked for.

    What is renamed, retargeted, removed or made anew on the way is so at one of these places. The
    last one is where the path ends, or cannot be followed any more.
    """
    drive, rest = os.path.splitdrive(path)
    here, links = drive + os.sep, 0
    todo = rest.split(os.sep)[::-1]
    while todo:
        name = todo.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        if name in ("", "."):
            continue
        yield here, name
        step = os.path.join(here, name)
        try:
            target = os.readlink(step)
        except OSError:
            if not os.path.isdir(step):
                return
            here = step
            continue
        links += 1
        if links > MAX_LINKS:
            return
        if os.path.isabs(target):
            drive, target = os.path.splitdrive(target)
            here = drive + os.sep
        todo.extend(target.split(os.sep)[::-1])


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads to itself


def _overlap(one: str, other: str) -> bool:
    return _is_within(one, other) or _is_within(other, one)


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


# -- imports -------------------------------------------------------------------------------------


class ModuleFiles:
    """
    The files that modules were imported from, as they come; those that left stay watched.

    Args:
        match: Returns the regular expression that names of modules must match at their beginning.
        dependencies: Whether the standard library and installed packages count, which are told by
            where they lie: they are many, and change with an installation.
    """

    def __init__(self, match: Callable[[], str], *, dependencies: bool = False) -> None:
        self._match = match
        self._dependencies = dependencies
        self._met: dict[str, int] = {}
        self._files: set[str] = set()

    def __call__(self) -> set[str]:
        """Return the files; cheap when nothing has been imported since."""
        match = self._match()
        for name, module in sys.modules.copy().items():
            if self._met.get(name) == id(module):
                continue
            self._met[name] = id(module)
            path = file_of(module)
            if path and re.match(match, name) and self._counts(path):
                self._files.add(path)
        return self._files

    def directories(self) -> set[str]:
        """Return where imports look: `sys.path`, and the packages that were imported."""
        found = set(map(_absolute, sys.path.copy()))
        for module in sys.modules.copy().values():
            try:
                found.update(map(_absolute, _names_of(module).get("__path__", ())))
            except (TypeError, ValueError):
                pass  # a module that is something else
        return {path for path in found if not is_dependency(path) and os.path.isdir(path)}

    def _counts(self, path: str) -> bool:
        return self._dependencies or not is_dependency(path)


STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__))
ZIPPED_LIBRARY = STANDARD_LIBRARY.replace("python3.", "python3") + ".zip"


def is_dependency(path: str) -> bool:
    """Whether *path* belongs to the standard library or to an installed package."""
    parts = path.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return True
    return _is_within(path, STANDARD_LIBRARY) or path == ZIPPED_LIBRARY


def file_of(module: object) -> str | None:
    """Return the absolute path of the file that holds *module*; nothing of it is imported."""
    names = _names_of(module)
    archive = _names_of(names.get("__loader__")).get("archive")
    path = archive or names.get("__file__")
    if not isinstance(path, str) or not path or path.startswith("<") or "\0" in path:
        return None
    return _absolute(path)


def _names_of(thing: object) -> "dict[str, Any]":
    """Return the attributes of *thing* itself, without `__getattr__`: lazy modules stay lazy."""
    try:
        names = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return {}
    return names if isinstance(names, dict) else {}


def _absolute(path: str) -> str:
    return os.path.normpath(os.path.join(STARTUP_CWD, path))


def importable(directory: str) -> set[str]:
    """Return the files that an import could find right in *directory*."""
    found = set()
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIXES):
                    found.add(entry.path)
                elif entry.name.isidentifier():
                    inside = os.path.join(entry.path, "__init__.py")
                    if os.path.exists(inside):
                        found.add(inside)
    except OSError:
        pass
    return found


def packages(directory: str) -> list[str]:
    """Return the directories that are packages, or could become some, right in *directory*."""
    try:
        with os.scandir(directory) as entries:
            return [e.path for e in entries if e.name.isidentifier() and _is_directory(e)]
    except OSError:
        return []


def mentioned(new: Iterable[str], sources: Iterable[str]) -> set[str]:
    """Return those of *new* whose module some Python file in *sources* mentions by name."""
    by_name: dict[bytes, set[str]] = {}
    for path in new:
        directory, name = os.path.split(path)
        stem = os.path.basename(directory) if name == "__init__.py" else name.partition(".")[0]
        by_name.setdefault(os.fsencode(stem), set()).add(path)
    if not by_name:
        return set()
    words = re.compile(rb"\b(?:%b)\b" % b"|".join(map(re.escape, by_name)))
    found: set[str] = set()
    for source in sources:
        if source.endswith(".py"):
            for name in words.findall(_content(source)):
                found |= by_name[name]
    return found


def _content(path: str) -> bytes:
    try:
        return read(path)
    except OSError:
        return b""


def read(path: str) -> bytes:
    """
    Return what is in the file *path*; never wait for it, whatever was put in its place.

    Raises:
        OSError: It cannot be read, or is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "that is no file", path)
        return file.read()
