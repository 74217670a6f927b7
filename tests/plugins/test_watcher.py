"""What is watched, and when it has changed: real files, and real notifications of the kernel."""

import errno
import importlib.util
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from processes import run_script, wait_until

from engine_bridge.core.flag import Flag
from engine_bridge.plugins import watched as watched_module
from engine_bridge.plugins import watcher
from engine_bridge.plugins.inotify import Inotify
from engine_bridge.plugins.watched import ModuleFiles, Tree, Watched, tree_of
from engine_bridge.plugins.watcher import Watcher

ROOT = os.geteuid() == 0
LIMIT = 10.0
NEVER = 2**63  # nanoseconds


NOTIFYING = pytest.mark.parametrize("backend", ["inotify", "watchfiles"])


@pytest.fixture(params=["inotify", "watchfiles", "polling"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each of the backends: they are to find the same."""
    return str(request.param)


class Watching:
    """
    A watcher at work in a thread of its own.

    Args:
        backend: Which.
        files: What is watched by name.
        trees: Directories.
        importing: Directories in which imports look.
        debounce: As in `Watcher`.
        frequency: As in `Watcher`.
        since: As in `Watched`; by default, nothing has changed that is there.
    """

    def __init__(
        self,
        backend: str,
        *,
        files: Iterable[Path] = (),
        trees: Sequence[Tree] = (),
        importing: Iterable[Path] = (),
        debounce: float = 0.02,
        frequency: float = 0.05,
        since: int = NEVER,
    ) -> None:
        self.files = {str(path) for path in files}
        self.looked = threading.Event()
        self.told: list[str] = []
        self.errors: list[Exception] = []
        self._calls: queue.SimpleQueue[set[str]] = queue.SimpleQueue()
        directories = [str(path) for path in importing]
        self.watched = Watched(lambda: set(self.files), trees, lambda: directories, since)
        self.watcher = Watcher(
            self.watched,
            self._changed,
            self._tell,
            frequency=lambda: frequency,
            debounce=debounce,
            backend=backend,
        )

    def __enter__(self) -> Self:
        self.watcher.start(lambda: None, "watching")
        assert self.looked.wait(LIMIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.watcher.stop()
        if exc is None:
            assert self.errors == []

    def _changed(self, changed: set[str]) -> bool:
        self.looked.set()
        if changed:
            self._calls.put(changed)
        return False

    def _tell(self, text: str, exc: Exception | None) -> None:
        self.told.append(text)
        if exc is not None:
            self.errors.append(exc)

    def next(self) -> set[Path]:
        """Return what has changed, of the next call."""
        return {Path(path) for path in self._calls.get(timeout=LIMIT)}

    def until(self, path: Path) -> set[Path]:
        """Return what has changed up to *path*."""
        found = self.next()
        while path not in found:
            found |= self.next()
        return found


def later(path: Path, text: str = "later\n") -> None:
    """Save *path* in place."""
    path.write_text(text)


def earlier(path: Path) -> None:
    """Have *path* look old."""
    os.utime(path, (1, 1))


def replace(path: Path) -> None:
    """Save *path* as editors do; size and mtime stay."""
    before = path.stat()
    new = path.with_name("new~")
    new.write_bytes(path.read_bytes())
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


def grow(path: Path) -> None:
    """Change the content of *path*, not its time."""
    before = path.stat()
    with path.open("a") as file:
        file.write("more\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touched(path: Path) -> int:
    """Touch *path*; return when the kernel says that this was."""
    path.touch()
    return path.stat().st_ctime_ns


def make_fifo(path: Path) -> None:
    """Put something that never ends in the place of *path*."""
    path.unlink()
    os.mkfifo(path)


CHANGES = [later, earlier, replace, grow, Path.unlink, make_fifo]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_of_a_file_is_seen(
    backend: str, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Newer, older, replaced, another size, gone, and no file any more."""
    path = tmp_path / "a.py"
    path.write_text("first\n")
    with Watching(backend, files=[path]) as watching:
        change(path)
        assert watching.next() == {path}


def test_what_does_not_change_a_file_is_not_seen(backend: str, tmp_path: Path) -> None:
    """Reading, its mode, its owner, a neighbour: no change, as the next real one tells."""
    path, other = tmp_path / "a.py", tmp_path / "b.py"
    path.write_text("first\n")
    with Watching(backend, files=[path]) as watching:
        path.read_text()
        path.chmod(0o600)
        os.link(path, tmp_path / "link")
        other.write_text("x")
        watching.files.add(str(other))
        wait_until(lambda: len(watching.watched) == 2)  # it was new, though not changed since
        later(other)
        found = watching.until(other)
    assert path not in found


def test_a_file_that_was_not_there_is_seen_when_it_comes_and_when_it_goes(
    backend: str, tmp_path: Path
) -> None:
    """A path that was named counts whether there is a file or not, and so does its directory."""
    path = tmp_path / "conf" / "later" / "local.yaml"
    with Watching(backend, files=[path]) as watching:
        path.parent.mkdir(parents=True)
        path.write_text("x")
        assert watching.next() == {path}
        shutil.rmtree(tmp_path / "conf")
        assert watching.next() == {path}
        path.parent.mkdir(parents=True)
        path.write_text("y")
        assert watching.next() == {path}
        path.write_text("zz")
        assert watching.next() == {path}


def test_a_directory_that_is_removed_and_made_again_is_watched_again(
    backend: str, tmp_path: Path
) -> None:
    """The watch neither dies of it nor goes blind, also if the directory was watched itself."""
    folder = tmp_path / "templates"
    path = folder / "deep" / "index.html"
    path.parent.mkdir(parents=True)
    path.write_text("1")
    with Watching(backend, trees=[Tree(str(folder))]) as watching:
        for text in ("22", "333", "4444"):
            shutil.rmtree(folder)
            assert watching.next() == {path}
            path.parent.mkdir(parents=True)
            path.write_text(text)
            assert watching.next() == {path}
            path.write_text(text + "x")
            assert watching.next() == {path}


def test_a_directory_that_is_removed_and_made_again_at_once_is_watched_again(
    backend: str, tmp_path: Path
) -> None:
    """Even where the new one got the number of the old one, so that they look the same."""
    folder = tmp_path / "templates"
    path = folder / "index.html"
    folder.mkdir()
    with Watching(backend, trees=[Tree(str(folder))]) as watching:
        for number in range(5):
            shutil.rmtree(folder)
            folder.mkdir()
            path.write_text("x" * number)
            assert watching.next() == {path}
            path.write_text("x" * 10 * (number + 1))
            assert watching.next() == {path}


def test_a_directory_that_takes_the_place_of_another_is_seen(backend: str, tmp_path: Path) -> None:
    """A rename far above a file is a change of it, and the watch goes with the name."""
    old, new = tmp_path / "srv" / "app", tmp_path / "srv" / "new"
    path = old / "package" / "a.py"
    for folder, text in ((old, "old"), (new, "newer")):
        (folder / "package").mkdir(parents=True)
        (folder / "package" / "a.py").write_text(text)
    with Watching(backend, files=[path]) as watching:
        old.rename(tmp_path / "srv" / "away")
        new.rename(old)
        assert watching.until(path) == {path}
        later(path, "latest")
        assert watching.until(path) == {path}


@pytest.mark.parametrize("link", ["file", "directory"])
def test_a_link_that_leads_elsewhere_is_a_change(backend: str, tmp_path: Path, link: str) -> None:
    """A retargeted link is seen, the old target is of no interest, the new one is."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("the same\n")
    current = tmp_path / "current"
    if link == "file":
        path, targets = current / "a.py", [f"../{name}/a.py" for name in ("one", "two")]
        current.mkdir()
        pointer = path
    else:
        path, targets, pointer = current / "a.py", ["one", str(tmp_path / "two")], current
    pointer.symlink_to(targets[0])
    with Watching(backend, files=[path]) as watching:
        later(tmp_path / "one" / "a.py", "changed where it leads")
        assert watching.next() == {path}
        (tmp_path / "next").symlink_to(
            targets[1] if link == "directory" else str(tmp_path / "two/a.py")
        )
        (tmp_path / "next").rename(pointer)
        assert watching.next() == {path}
        later(tmp_path / "two" / "a.py", "changed where it leads now")
        assert watching.next() == {path}


def test_a_broken_link_is_no_file_until_it_is_repaired(backend: str, tmp_path: Path) -> None:
    """Nor does one that leads to itself break the watch."""
    folder = tmp_path / "templates"
    folder.mkdir()
    path = folder / "index.html"
    path.symlink_to(tmp_path / "target")
    (folder / "self").symlink_to("self")
    with Watching(backend, files=[folder / "self"], trees=[Tree(str(folder))]) as watching:
        (tmp_path / "target").write_text("x")
        assert watching.next() == {path}
        (tmp_path / "target").unlink()
        assert watching.next() == {path}


# -- trees -----------------------------------------------------------------------------------------


def test_new_files_in_a_tree_are_seen(backend: str, tmp_path: Path) -> None:
    """In the directory, in a new one below it, and in one that was moved there as a whole."""
    folder, elsewhere = tmp_path / "templates", tmp_path / "elsewhere"
    folder.mkdir()
    (elsewhere / "x").mkdir(parents=True)
    (elsewhere / "x" / "moved.html").write_text("x")
    with Watching(backend, trees=[Tree(str(folder))]) as watching:
        later(folder / "a.html")
        assert watching.next() == {folder / "a.html"}
        (folder / "new" / "deep").mkdir(parents=True)
        later(folder / "new" / "deep" / "b.html")
        assert watching.next() == {folder / "new" / "deep" / "b.html"}
        later(folder / "new" / "deep" / "b.html", "again")
        assert watching.next() == {folder / "new" / "deep" / "b.html"}
        elsewhere.rename(folder / "moved")
        assert watching.next() == {folder / "moved" / "x" / "moved.html"}
        shutil.rmtree(folder / "moved")
        assert watching.next() == {folder / "moved" / "x" / "moved.html"}


def test_patterns_choose_what_counts(backend: str, tmp_path: Path) -> None:
    """What `include` does not name, and what `exclude` does, is as if it were not there."""
    tree = Tree(
        str(tmp_path),
        include=["*.html", "/conf/*.yaml", "app.db"],
        exclude=["draft*", "!draft-2.html", "/private/", "!*.db"],
    )
    counts = ["a.html", "deep/b.html", "conf/c.yaml", "draft-2.html", "app.db"]
    others = [
        "a.txt",
        "deep/conf/c.yaml",
        "draft.html",
        "private/a.html",
        "node_modules/x/a.html",
        ".git/a.html",
        ".venv/a.html",
        "a.html~",
        ".#a.html",
    ]
    for name in (*counts, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    with Watching(backend, trees=[tree], debounce=0.3) as watching:
        for name in (*others, *counts):
            later(tmp_path / name)
        assert watching.next() == {tmp_path / name for name in counts}


@pytest.mark.parametrize(
    ("pattern", "counts"),
    [
        ("*.css", {"a.css"}),
        ("static/*", {"static/b.css"}),
        ("static/**", {"static/b.css", "static/deep/c.css", "static/deep/d.js"}),
        ("**/*.css", {"a.css", "static/b.css", "static/deep/c.css"}),
        ("stat?c/[bx].css", {"static/b.css"}),
        ("nowhere/*", set[str]()),
    ],
)
def test_a_glob_is_a_tree(tmp_path: Path, pattern: str, counts: set[str]) -> None:
    """A glob chooses what a shell would."""
    for name in ("a.css", "static/b.css", "static/deep/c.css", "static/deep/d.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = tree_of(str(tmp_path / pattern)).walk()
    assert {str(Path(path).relative_to(tmp_path)) for path in found} == counts


def test_links_to_directories_are_followed_once(backend: str, tmp_path: Path) -> None:
    """What lies behind a link counts; a link that leads back up ends nowhere."""
    folder, shared = tmp_path / "templates", tmp_path / "shared"
    folder.mkdir()
    shared.mkdir()
    (folder / "up").symlink_to("..")
    (folder / "here").symlink_to(".")
    (folder / "shared").symlink_to(shared)
    (folder / "again").symlink_to("shared")
    (shared / "back").symlink_to(folder)
    with Watching(backend, trees=[Tree(str(folder))]) as watching:
        later(shared / "a.html")
        [path] = watching.next()
        assert path.resolve() == shared / "a.html"
        later(shared / "a.html", "again")
        assert watching.next() == {path}


def test_what_is_no_file_does_not_count(backend: str, tmp_path: Path) -> None:
    """A socket and a fifo in a directory are not looked into."""
    with Watching(backend, trees=[Tree(str(tmp_path))]) as watching:
        os.mkfifo(tmp_path / "fifo.py")
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(tmp_path / "socket.py"))
        later(tmp_path / "a.py")
        assert watching.next() == {tmp_path / "a.py"}


def test_names_that_are_not_utf8_are_no_end_of_the_watch(backend: str, tmp_path: Path) -> None:
    """Watchfiles gives up for good on such a name; the watch goes on."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.html"))
    with Watching(backend, trees=[Tree(str(tmp_path))]) as watching:
        for text in ("1", "22"):
            later(path, text)
            assert watching.next() == {path}
        later(tmp_path / "a.html")
        assert watching.next() == {tmp_path / "a.html"}
    assert watching.told == []


@pytest.fixture(scope="module")
def many() -> Iterator[Path]:
    """Ten thousand files in a hundred directories; in memory, for a disk may take its time."""
    memory = "/dev/shm"
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="engine-bridge-") as root:
        for number in range(100):
            folder = Path(root, f"package{number}")
            folder.mkdir()
            for each in range(100):
                os.close(os.open(folder / f"module{each}.py", os.O_CREAT | os.O_WRONLY))
        yield Path(root)


def test_ten_thousand_files_are_no_trouble(backend: str, many: Path) -> None:
    """One change among ten thousand is found."""
    path = many / "package42" / "module17.py"
    with Watching(backend, trees=[Tree(str(many))]) as watching:
        assert len(watching.watched) == 10_000
        later(path, os.urandom(4).hex())
        assert watching.next() == {path}


# -- imports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["local_settings.py", "local_settings/__init__.py"])
def test_a_module_whose_import_failed_is_seen_when_it_comes(
    backend: str, tmp_path: Path, name: str
) -> None:
    """It is mentioned by a module that is watched; what nobody mentions is of no interest."""
    app = tmp_path / "app.py"
    app.write_text("try:\n    import local_settings\nexcept ImportError:\n    pass\n")
    path = tmp_path / name
    with Watching(backend, files=[app], importing=[tmp_path]) as watching:
        later(tmp_path / "unrelated.py")
        (tmp_path / "notes.txt").write_text("x")
        path.parent.mkdir(exist_ok=True)
        later(path, "x = (")
        assert watching.next() == {path}
        later(path, "x = 1")  # it is watched from now on
        assert watching.next() == {path}


@contextmanager
def imported(folder: Path, *names: str) -> Iterator[None]:
    """Import *names* from *folder* for the time being."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        for name in names:
            __import__(name)
        yield
    finally:
        sys.path.remove(str(folder))
        sys.path_importer_cache.pop(str(folder), None)
        for name in set(sys.modules) - before:
            del sys.modules[name]


def test_modules_are_watched_by_their_files(tmp_path: Path) -> None:
    """Plain ones, of a namespace package, of an archive, compiled; not the installed ones."""
    import zipfile

    (tmp_path / "space" / "inner").mkdir(parents=True)
    (tmp_path / "plain.py").touch()
    (tmp_path / "space" / "part.py").touch()
    (tmp_path / "broken.py").write_text("raise RuntimeError")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "")
    sys.path.insert(1, str(tmp_path / "archive.zip"))
    files = ModuleFiles(lambda: ".*")
    try:
        with imported(tmp_path, "plain", "space.part", "zipped"):
            found = files()
            assert str(tmp_path / "space") in files.directories()
        names = {"plain.py", "space/part.py", "archive.zip"}
        assert {str(tmp_path / name) for name in names} <= found
        assert not any("site-packages" in path or "asyncio" in path for path in found)
        assert str(tmp_path / "plain.py") in files()  # it stays when the module is gone
        everything = ModuleFiles(lambda: "json|pytest", dependencies=True)()
        assert any(path.endswith("json/__init__.py") for path in everything)
        assert any("site-packages" in path for path in everything)
    finally:
        sys.path.remove(str(tmp_path / "archive.zip"))


def test_the_match_is_by_the_names_of_modules(tmp_path: Path) -> None:
    """As in CherryPy, at their beginning."""
    for name in ("mine_a.py", "mine_b.py", "yours.py"):
        (tmp_path / name).touch()
    with imported(tmp_path, "mine_a", "mine_b", "yours"):
        found = ModuleFiles(lambda: "mine_")()
    assert found == {str(tmp_path / "mine_a.py"), str(tmp_path / "mine_b.py")}


class Odd:
    """Something in `sys.modules` that is no module, or has the oddest attributes."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(f"{name} must not be asked for: that may import something")


ODD = [
    Odd(),
    Odd(__file__=None),
    Odd(__file__=7),
    Odd(__file__="<string>"),
    Odd(__file__="a\0b"),
    Odd(__file__=""),
    Odd(__path__=7),
    Odd(__path__=[None]),
    Odd(__loader__=Odd(archive=7)),
    None,
    7,
]


def test_lazy_modules_stay_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are watched without being loaded."""
    path = tmp_path / "lazy.py"
    path.write_text("raise RuntimeError('loaded')")
    spec = importlib.util.spec_from_file_location("lazy", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "lazy", module)
    assert ModuleFiles(lambda: "lazy$")() == {str(path)}


def test_odd_modules_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no module does no harm."""
    for number, odd in enumerate(ODD):
        monkeypatch.setitem(sys.modules, f"odd_{number}", odd)
    files = ModuleFiles(lambda: "odd_")
    assert files() == set()
    assert files.directories()


# -- what is not told, or comes at a bad time ------------------------------------------------------


def test_a_burst_is_one_change(backend: str, tmp_path: Path) -> None:
    """Saved a hundred times in a second, and others with it: told once, at its end."""
    paths = [tmp_path / f"{number}.py" for number in range(5)]
    for path in paths:
        path.touch()
    with Watching(backend, files=paths, debounce=0.3) as watching:
        for number in range(100):
            later(paths[number % 5], "x" * number)
            threading.Event().wait(0.005)
        assert watching.next() == set(paths)
        later(paths[0], "the end")
        assert watching.next() == {paths[0]}


@NOTIFYING
def test_a_file_that_is_empty_or_gone_for_the_moment_is_waited_for(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some programs empty a file first, or remove it, and write it a moment later."""
    monkeypatch.setattr(watcher, "SETTLED", 1.0)
    path, other = tmp_path / "a.py", tmp_path / "b.py"
    path.write_text("x")
    other.write_text("x")
    with Watching(backend, files=[path, other]) as watching:
        for begin in (lambda: path.write_text(""), path.unlink):
            begin()
            threading.Event().wait(0.1)  # as slow as they are
            path.write_text("later")
            assert watching.next() == {path}
            later(other, os.urandom(4).hex())
            assert watching.next() == {other}


def test_what_never_rests_hides_nothing(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is written all the time is told after a while, and others with it."""
    monkeypatch.setattr(watcher, "PATIENCE", 0.4)
    restless, path = tmp_path / "restless.py", tmp_path / "a.py"
    restless.touch()
    path.touch()
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.wait(0.01):
            number += 1
            later(restless, "x" * (number % 1000))

    writer = threading.Thread(target=write)
    with Watching(backend, files=[restless, path], debounce=0.1) as watching:
        writer.start()
        try:
            later(path)
            assert watching.until(path) <= {restless, path}
        finally:
            done.set()
            writer.join()


def test_what_changed_before_the_first_look_is_told(backend: str, tmp_path: Path) -> None:
    """A file that changed after the given moment has changed; an older one has not."""
    old, new, removed = (tmp_path / name for name in ("old.py", "new.py", "removed.py"))
    old.touch()
    since = old.stat().st_ctime_ns
    wait_until(lambda: touched(new) > since)
    with Watching(backend, files=[old, new, removed], since=since) as watching:
        assert watching.next() == {new}


def test_a_file_that_joins_later_may_have_changed_since_the_last_look(tmp_path: Path) -> None:
    """A module that was imported, and then saved, before anybody looked at it."""
    files = {str(tmp_path / "first.py")}
    watched = Watched(lambda: files, since=NEVER)
    assert watched.compare() == set()
    old = tmp_path / "old.py"
    since = touched(old)
    wait_until(lambda: touched(tmp_path / "clock") > since + 2 * watched_module.TICK)
    assert watched.compare() == set()
    files |= {str(old), str(tmp_path / "new.py")}
    (tmp_path / "new.py").touch()
    assert watched.has_grown()
    assert watched.compare() == {str(tmp_path / "new.py")}
    assert not watched.has_grown()


def test_a_failure_of_the_look_is_told_and_the_watch_goes_on(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong, the thread stays."""
    path = tmp_path / "a.py"
    path.touch()
    watching = Watching(backend, files=[path])
    with watching:
        look, failing = watching.watched.compare, [RuntimeError("no more memory")]
        monkeypatch.setattr(
            watching.watched, "compare", lambda: _raise(failing.pop()) if failing else look()
        )
        later(path)
        assert watching.next() == {path}
        assert [str(error) for error in watching.errors] == ["no more memory"]
        watching.errors.clear()
    assert watching.told == ["the watch for changed files failed: no more memory"]


def _raise(error: Exception) -> set[str]:
    raise error


@NOTIFYING
def test_a_hint_that_got_lost_does_not_matter_for_long(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system tells nothing, as on a network file system, all is looked at in the end."""
    monkeypatch.setattr(watcher, "NET", 0.1)
    path = tmp_path / "a.py"
    path.touch()
    watching = Watching(backend, files=[path])
    monkeypatch.setattr(watching.watched, "places", dict)
    with watching:
        later(path)
        assert watching.next() == {path}


@NOTIFYING
def test_what_changes_before_the_system_is_asked_to_tell_is_seen(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the moment from which it tells, nothing gets lost."""
    path = tmp_path / "a.py"
    path.touch()
    kind: Any = watcher.KINDS[backend]
    follow = kind.follow

    def late(self: Any, watched: Watched) -> bool:
        if not path.stat().st_size:
            later(path)
        return bool(follow(self, watched))

    monkeypatch.setattr(kind, "follow", late)
    with Watching(backend, files=[path]) as watching:
        assert watching.next() == {path}


def test_the_thread_that_tells_may_stop_the_watch(backend: str, tmp_path: Path) -> None:
    """Nobody waits for himself, nor for who waits for him; then nobody is told any more."""
    path = tmp_path / "a.py"
    path.touch()
    parted: list[bool] = []
    ended = threading.Event()

    def changed(paths: set[str]) -> bool:
        if paths:
            parted.append(subject.part())
            stopper = threading.Thread(target=subject.stop)
            stopper.start()
            stopper.join()  # as a restart does, which waits for all `stop` listeners
            subject.rejoin()
            subject.stop()
            parted.append(subject.part())
            ended.set()
        else:
            looked.set()
        return False

    looked = threading.Event()
    watched = Watched(lambda: [str(path)], since=NEVER)
    subject = Watcher(watched, changed, print, backend=backend)
    subject.start(lambda: None, "watching")
    assert looked.wait(LIMIT)
    later(path)
    assert ended.wait(LIMIT)
    subject.stop()
    assert parted == [True, False]


EXHAUSTED = """
import ctypes, os, sys, threading
from pathlib import Path
from engine_bridge.plugins.watched import Watched
from engine_bridge.plugins.watcher import Watcher
import importlib.util, watchfiles  # this user may not be able to read them

os.setgid(54321)
os.setuid(54321)  # the limits are per user
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0:
    pass
path = Path(sys.argv[1])
looked, seen = threading.Event(), threading.Event()
watcher = Watcher(
    Watched(lambda: [str(path)], since=2**63),
    lambda changed: (seen if changed else looked).set(),
    lambda text, exc: print(text, flush=True),
    frequency=lambda: 0.05,
    backend=sys.argv[2],
)
watcher.start(lambda: None, "watching")
assert looked.wait(10)
path.write_text("later")
assert seen.wait(10)
watcher.stop()
"""


@pytest.mark.skipif(not ROOT, reason="needs root, to be a user whose limits are nobody else's")
@NOTIFYING
def test_without_notifications_it_polls(backend: str, anybodys: Path) -> None:
    """When the limits of inotify are used up, one sentence says so and polling goes on."""
    path = anybodys / "a.py"
    path.touch()
    os.chown(path, 54321, 54321)
    done = run_script(EXHAUSTED, path, backend)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert "Too many open files" in line
    assert "fs.inotify.max_user_instances" in line
    assert "looking at all of them every 0.05 s" in line


# -- inotify --------------------------------------------------------------------------------------


def test_more_than_the_kernel_can_tell_is_told_as_a_loss(tmp_path: Path) -> None:
    """Its queue is limited; that it was full is one more event, upon which all is looked at."""
    inotify = Inotify(Flag())
    try:
        inotify.add(str(tmp_path))
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit // 2):
            (tmp_path / f"{number % 2}").touch()
            (tmp_path / f"{number % 2}").unlink()
        assert inotify.wait(0)[-1].is_loss
    finally:
        inotify.close()


def test_a_wait_ends_when_the_watch_is_stopped() -> None:
    """At once, though nothing happens; and there is no more waiting after that."""
    stopped = Flag()
    inotify = Inotify(stopped)
    waiting = threading.Thread(target=inotify.wait, args=[3600])
    waiting.start()
    stopped.set()
    waiting.join(LIMIT)
    assert not waiting.is_alive()
    assert inotify.wait(3600) == []
    inotify.close()


def test_a_directory_with_two_names_is_watched_by_both(tmp_path: Path) -> None:
    """The kernel gives both the same watch; it stays for one when the other is given up."""
    inotify = Inotify(Flag())
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")
    watch = inotify.add(str(tmp_path / "here"))
    assert inotify.add(str(tmp_path / "there")) == watch
    inotify.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        inotify.add(str(tmp_path))
