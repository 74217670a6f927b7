"""
When to look at what is watched: each second, or when the system tells that something happened.

All backends end in the same look and the same comparison (`watched.py`), so they find the same.
What the system tells is a hint and no more: an event without a change is no change, and which
event it was does not matter. Since a hint can get lost (a network file system has none, the queue
of inotify(7) is limited), everything is looked at now and then all the same.

Each directory has a watch of its own. Were whole trees watched, then all of `node_modules` would
count against the limit of inotify, and would have to be listened to.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic

from engine_bridge.core.flag import Flag

from .inotify import Inotify
from .watched import Hearing, Watched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

STEP = 10  # milliseconds between two glances of watchfiles at what the system told
BATCH = 100  # milliseconds for which it gathers, while more is told
DEEPEST = 50  # directories, one in the other, that may be made while we begin to listen
NET = 30.0  # seconds between two looks at everything without a hint
RARELY = 8  # times as long between two searches for modules, where a sleep costs nothing else
SHARE = 20  # polling takes one part in so many of a processor
SETTLED = 0.25  # seconds of quiet after which several files, or one in parts, are complete
PATIENCE = 5.0  # seconds to wait for quiet; what never rests must not hide the rest


class NoNotification(Exception):
    """The system does not tell what happens to files."""


class Watcher:
    """
    Look at what is watched, in the thread that calls `run`, until another calls `stop`.

    Args:
        watched: What to look at.
        changed: Called with the paths that have changed, once they have come to rest. Returns
            whether it wants to be called again after the next look, though nothing changed.
        tell: Called with a sentence for the log, and an exception or None.
        frequency: Returns the seconds between two looks when polling, and between two searches
            for new modules in any case.
        debounce: Seconds without a change after which one is taken for complete.
        backend: One of `BACKENDS`.
    """

    def __init__(
        self,
        watched: Watched,
        changed: Callable[[set[str]], bool],
        tell: Callable[[str, Exception | None], object],
        *,
        frequency: Callable[[], float] = lambda: 1.0,
        debounce: float = 0.02,
        backend: str = "auto",
    ) -> None:
        self.watched = watched
        self._changed = changed
        self._tell = tell
        self._frequency = frequency
        self._debounce = debounce
        self._wanted = backend
        self._stopped = Flag()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._apart = False
        self._warm = False  # the first look takes longer than those that follow

    # -- from other threads -------------------------------------------------------------------

    def start(self, before: Callable[[], object], name: str) -> None:
        """Call *before*, which may wait for others, then `run`, in a daemon thread."""

        def work() -> None:
            before()
            self.rejoin()
            self.run()

        self._apart = True
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """
        Stop, and wait for the thread, unless that itself asks or does what may wait for us.

        May be called twice, and by a thread that `changed` waits for.
        """
        with self._lock:
            self._stopped.set()
            thread = None if self._apart else self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def part(self) -> bool:
        """
        Have nobody wait for this thread any more, as it is about to wait for others.

        Returns:
            Whether nobody has asked to stop; else there is nothing left to do.
        """
        with self._lock:
            self._apart = not self._stopped.is_set()
            return self._apart

    def rejoin(self) -> None:
        """Undo `part`."""
        with self._lock:
            self._apart = False
        self._warm = False  # the first look takes longer than those that follow

    def rest(self, seconds: float) -> None:
        """Wait for *seconds*, or until stopped."""
        self._stopped.wait(seconds)

    # -- in the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Look, and tell what has changed, until stopped; whatever fails is told as well."""
        if self._stopped.is_set():
            return
        backend = self._open()
        insists = True  # to be called after the first look in any case
        try:
            while not self._stopped.is_set():
                try:
                    insists = self._look(backend, insists)
                    self._wait(backend, insists)
                except NoNotification as exc:
                    backend.close()
                    backend = self._fall_back(exc)
                except Exception as exc:
                    self._tell(f"the watch for changed files failed: {exc}", exc)
                    self._stopped.wait(1.0)
        finally:
            backend.close()

    def _look(self, backend: "Backend", insists: bool) -> bool:
        since = monotonic()
        changed = self.watched.compare()
        for _ in range(DEEPEST):
            if not backend.follow(self.watched):
                break
            changed |= self.watched.compare()  # what came before it listened, say a directory
        if self._warm:
            backend.effort = monotonic() - since
        self._warm = True
        if changed:
            changed |= self._settle(changed)
        else:
            self._stopped.wait(backend.effort)  # hints without end must not take a whole processor
        return self._changed(changed) if changed or insists else False

    def _settle(self, changed: set[str]) -> set[str]:
        """Return what else changes until there is quiet; longer, if this is more than one save."""
        until = monotonic() + PATIENCE
        found: set[str] = set()
        settled = max(self._debounce, SETTLED)
        pause = self._debounce - self.watched.age(changed)
        if len(changed) > 1 or self.watched.is_incomplete(changed):
            pause = settled
        while monotonic() < until and not self._stopped.wait(max(pause, 0)):
            more = self.watched.compare()
            if not more:
                break
            found |= more
            pause = settled
        return found

    def _wait(self, backend: "Backend", insists: bool) -> None:
        while not self._stopped.is_set():
            if backend.wait(self._frequency()) or insists or self.watched.has_grown():
                return

    def _open(self) -> "Backend":
        wanted = best() if self._wanted == "auto" else self._wanted
        try:
            return KINDS[wanted](self._stopped)
        except NoNotification as exc:
            return self._fall_back(exc)

    def _fall_back(self, exc: Exception) -> "Polling":
        self._tell(
            f"no notification of changed files: {exc}; looking at all of them "
            f"every {self._frequency():g} s in its place",
            None,
        )
        return Polling(self._stopped)


class Polling:
    """Look at everything again and again."""

    def __init__(self, stopped: Flag) -> None:
        self._stopped = stopped
        self.effort = 0.0  # seconds that the last look took

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds*, longer where a look takes long; say that a look is due."""
        self._stopped.wait(max(seconds, self.effort * SHARE))
        return True

    def follow(self, watched: Watched) -> bool:
        """Do nothing: polling sees each place anew."""
        return False

    def close(self) -> None:
        """Do nothing: nothing is open."""


class Told:
    """Look when the kernel tells that something happened where it matters; sleep until then."""

    def __init__(self, stopped: Flag) -> None:
        try:
            self._inotify = Inotify(stopped)
        except AttributeError as exc:
            raise NoNotification("this platform has no inotify(7)") from exc
        except ImportError as exc:  # rights may have been dropped since
            raise NoNotification(f"ctypes cannot be imported: {exc}") from exc
        except OSError as exc:
            raise NoNotification(_reason(exc)) from exc
        self._places: dict[str, Hearing] = {}
        self._identities: dict[str, tuple[int, int]] = {}  # of those that are watched
        self._watches: dict[str, int] = {}
        self._net = 0.0
        self.effort = 0.0

    def wait(self, seconds: float) -> bool:
        """Wait until something happens, some *seconds* at most; return whether a look is due."""
        is_due = monotonic() > self._net
        for event in self._inotify.wait(seconds * RARELY):
            paths = [path for path, watch in self._watches.items() if watch == event.watch]
            if event.is_end:
                for path in paths:
                    self._forget(path)
            is_due = is_due or event.is_loss or (event.is_end and bool(paths))
            is_due = is_due or any(self._places[path].minds(event.name) for path in paths)
        return is_due

    def follow(self, watched: Watched) -> bool:
        """
        Listen where there is something to hear now; return whether that has changed.

        Raises:
            NoNotification: The system does not allow for it.
        """
        self._net = monotonic() + NET
        self._places, identities = _readable(watched.places())
        for path in tuple(self._watches):
            if self._identities[path] != identities.get(path):
                self._forget(path)
        known = len(self._watches)
        for path in identities.keys() - self._watches.keys():
            try:
                self._watches[path] = self._inotify.add(path)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                    continue  # it has just gone, of which its parent tells
                raise NoNotification(_reason(exc)) from exc
            self._identities[path] = identities[path]
        return len(self._watches) > known

    def _forget(self, path: str) -> None:
        """Watch *path* no more, unless it is watched by another name as well."""
        del self._identities[path]
        watch = self._watches.pop(path)
        if watch not in self._watches.values():
            self._inotify.remove(watch)

    def close(self) -> None:
        """Give the descriptors back."""
        self._inotify.close()


class Notified:
    """
    Look when watchfiles tells that something happened where it matters.

    Source:
        https://watchfiles.helpmanual.io/api/rust_backend/. `watchfiles.watch` would need as many
        watches, but does not tell when they are in place, and changes until then would be lost.
    """

    def __init__(self, stopped: Flag) -> None:
        try:
            from watchfiles import _rust_notify
        except (ImportError, OSError) as exc:  # rights may have been dropped since
            raise NoNotification(f"watchfiles cannot be imported: {exc}") from exc
        self._make = _rust_notify.RustNotify
        self._stopped = stopped
        self._notify: RustNotify | None = None
        self._places: dict[str, Hearing] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._net = 0.0
        self.effort = 0.0

    def wait(self, seconds: float) -> bool:
        """Wait until something happens, *seconds* at most; return whether a look is due."""
        if self._notify is None:
            return True
        try:
            told = self._notify.watch(BATCH, STEP, max(int(seconds * 1000), STEP), self._stopped)
        except RuntimeError:
            self.close()  # of a name that is not UTF-8: it would raise that for ever
            return True
        if isinstance(told, str):
            return monotonic() > self._net
        paths = {path for _, path in told}
        if not paths.isdisjoint(self._places):
            self.close()  # a directory that went took its watch with it, whatever came since
            return True
        return any(map(self._matters, paths)) or monotonic() > self._net

    def _matters(self, path: str) -> bool:
        directory, name = os.path.split(path)
        place = self._places.get(directory)
        return place is not None and place.minds(name)

    def follow(self, watched: Watched) -> bool:
        """
        Listen where there is something to hear now; return whether that has changed.

        Raises:
            NoNotification: The system does not allow for it.
        """
        self._net = monotonic() + NET
        for _ in range(3):  # a directory may go just when it is to be listened to
            self._places, identities = _readable(watched.places())
            if self._notify is not None and identities == self._identities:
                return False
            self.close()
            try:
                self._notify = self._make([*self._places], False, False, 0, False, True)
            except FileNotFoundError:
                continue
            except (OSError, RuntimeError, ValueError) as exc:
                raise NoNotification(_reason(exc)) from exc
            self._identities = identities
            return True
        raise NoNotification("the watched directories come and go")

    def close(self) -> None:
        """Give the descriptors back."""
        notify, self._notify = self._notify, None
        if notify is not None:
            notify.close()


Backend = Polling | Notified | Told
KINDS: dict[str, Callable[[Flag], Backend]] = {
    "inotify": Told,
    "watchfiles": Notified,
    "polling": Polling,
}
BACKENDS = ("auto", *KINDS)


def best() -> str:
    """Return the backend that costs least here."""
    import _thread
    from importlib.util import find_spec
    from types import BuiltinFunctionType

    if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
        return "polling"  # gevent or eventlet has made threads greenlets: one's wait is all's
    if sys.platform.startswith("linux"):
        return "inotify"
    return "watchfiles" if find_spec("watchfiles") is not None else "polling"


def _readable(
    places: dict[str, Hearing],
) -> tuple[dict[str, Hearing], dict[str, tuple[int, int]]]:
    """Return those of *places* that may be listened to, and what tells each from a successor."""
    found, identities = {}, {}
    for place, hearing in places.items():
        try:
            there = os.stat(place)
        except OSError:
            continue
        if os.access(place, os.R_OK):
            found[place] = hearing
            identities[place] = (there.st_dev, there.st_ino)
    return found, identities


def _reason(exc: Exception) -> str:
    text = getattr(exc, "strerror", None) or str(exc)
    if "Too many open files" in text:
        return f"{text}; is fs.inotify.max_user_instances used up? `sysctl` raises it"
    if "limit" in text or "No space left" in text:
        return f"{text}; is fs.inotify.max_user_watches used up? `sysctl` raises it"
    return text
