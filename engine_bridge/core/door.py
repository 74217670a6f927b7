"""Doors: whatever starts an engine, and ends it again if it was the one who did."""

import threading
import weakref
from contextvars import ContextVar
from time import monotonic

from . import nets, signals
from .errors import ChannelFailures, EngineError, StartAborted, plain_text
from .records import WARNING
from .states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType
    from typing import Any, TypeVar

    from .engine import Engine

    T = TypeVar("T")

FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds between two tries of a failed lazy start
CLOSED_RETRY_AFTER = 5.0  # seconds; a stopped engine says nothing of when it may start again

# The engine whose start, or a listener of it, has begun the server that runs the present code.
served_by: "ContextVar[Engine | None]" = ContextVar("served_by", default=None)

# By application, the engine that its latest lifespan has opened.
_engines_of: "weakref.WeakKeyDictionary[object, weakref.ref[Engine]]" = weakref.WeakKeyDictionary()


def engine_of(app: object) -> "Engine | None":
    """Return the engine whose `lifespan` the application *app* runs, or has run last."""
    try:
        found = _engines_of.get(app)
    except TypeError:  # it has no hash, or cannot be referred to weakly
        return None
    return found() if found is not None else None


def applications() -> list[object]:
    """Return the applications that run, or have run, the `lifespan` of an engine."""
    return list(_engines_of)


class Door:
    """
    Starts an engine and ends it; one that finds it STARTED neither starts nor ends it.

    As an async context manager it is a lifespan, and yields the state of the resources.
    """

    def __init__(self, engine: "Engine", kind: str, app: object = None) -> None:
        self.engine = engine
        self.kind = kind
        self._app = app
        self._started_it = False
        self._pid = 0

    @property
    def started_it(self) -> bool:
        """Whether it is this door's to end the engine."""
        return self._started_it and self._pid == self.engine.pid  # not in a fork

    @property
    def is_open(self) -> bool:
        """Whether who comes by it may begin: STARTED, or in a start that waits for them."""
        state = self.engine.state
        return state is State.STARTED or (
            self.kind == "lifespan" and state is State.STARTING and served_by.get() is self.engine
        )

    def open(self) -> None:
        """Start the engine, unless it is STARTED."""
        self._started_it = self.engine.open_thread_door(self.kind)
        self._pid = self.engine.pid
        self._check()

    def close(self) -> None:
        """End the engine, if this door started it."""
        if self.started_it:
            self._started_it = False
            self.engine.exit()

    async def open_async(self) -> None:
        """Start the engine on this loop, unless it is STARTED."""
        if self.kind != "script":
            signals.chain(self.engine)
        if self.is_open and self.engine.state is State.STARTING:
            return  # who waits for the server to be ready would wait for us
        try:
            self._started_it = await self._in_task(self.engine.open_task_door(self.kind))
            self._pid = self.engine.pid
            self._check()
        except StartAborted:
            if self.kind != "lifespan" or not self.engine.notes.times_told:
                raise
            # The server was told to go, and does so after the startup. If that failed, the main
            # processes of uvicorn and gunicorn would end as well: exit status 3 means a bad deploy.

    async def drain_async(self) -> None:
        """Have the engine drain ahead of `close_async`, if this door started it."""
        if self.started_it:
            await self._in_task(self.engine.drain_async())

    async def close_async(self) -> None:
        """End the engine, if this door started it."""
        if self.started_it:
            self._started_it = False
            await self._in_task(self.engine.exit_async())

    async def _in_task(self, transition: "Coroutine[Any, Any, T]") -> "T":
        try:
            return await transition
        except SystemExit as exc:
            if self.kind == "script":
                raise
            # Let loose in a task it would end the loop, and with it the server.
            raise EngineError(f"a listener asked to exit with {exc.code!r}") from exc

    def _check(self) -> None:
        if not self.is_open:
            raise StartAborted

    async def __aenter__(self) -> "dict[str, Any] | None":
        self._note_application()
        try:
            await self.open_async()
        except ChannelFailures as exc:
            text = plain_text(exc)
            if not text:
                raise
            raise EngineError(text) from None  # frameworks print the trace of what is raised
        return self.engine.lifespan_state or None

    async def __aexit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        traceback: "TracebackType | None",
    ) -> None:
        await self.close_async()

    def _note_application(self) -> None:
        if self._app is None:
            return
        try:
            _engines_of[self._app] = weakref.ref(self.engine)
        except TypeError:
            pass  # as in `engine_of`


class Gate:
    """
    The door of a request: starts the engine lazily, and says who must come back later.

    Constructing one registers it with the process, for hooks of servers that start eagerly.
    """

    def __init__(self, engine: "Engine", kind: str) -> None:
        self.engine = engine
        self.kind = kind
        self._lock = threading.Lock()
        self._tries = 0
        self._retry_at = 0.0
        signals.chain(engine)
        nets.add_gate(self)

    def admit(self) -> float | None:
        """Return None if the engine is, or now got, STARTED; else seconds to come back in."""
        tries = self._tries
        wait = self._wait()
        if wait is not None:
            return wait or None
        nets.notice_fork()
        signals.chain(self.engine)
        try:
            self.engine.open_thread_door(self.kind)
        except (EngineError, SystemExit) as exc:
            return self._failed(tries, exc)
        return self._passed()

    async def admit_async(self) -> float | None:
        """Do what `admit` does, on a loop."""
        tries = self._tries
        wait = self._wait()
        if wait is not None:
            return wait or None
        nets.notice_fork()
        signals.chain(self.engine)
        try:
            await self.engine.open_task_door(self.kind)
        except (EngineError, SystemExit) as exc:
            return self._failed(tries, exc)
        return self._passed()

    def _wait(self) -> float | None:
        """Return 0.0 when it is open, seconds when it is closed, None when a start is due."""
        if self.engine.state is State.STARTED:
            return 0.0
        if self.engine.stays_stopped:
            return CLOSED_RETRY_AFTER
        rest = self._retry_at - monotonic()
        return rest if rest > 0 else None

    def _passed(self) -> float | None:
        if self.engine.state is not State.STARTED:
            return CLOSED_RETRY_AFTER
        self._tries, self._retry_at = 0, 0.0
        return None

    def _failed(self, tries: int, error: BaseException) -> float:
        """Put off the next try; of many that failed together only one does so."""
        delay = min(FIRST_DELAY * 2.0 ** min(tries, 10), LONGEST_DELAY)
        with self._lock:
            is_first_to_say = tries == self._tries == 0
            if tries == self._tries:
                self._tries += 1
                self._retry_at = monotonic() + delay
        if is_first_to_say:
            self._say(error, delay)
        return max(self._retry_at - monotonic(), FIRST_DELAY)

    def _say(self, error: BaseException, delay: float) -> None:
        text = f"requests get 503 until a start succeeds; next try in {delay:.0f} s: {error}"
        self.engine.log(text, WARNING)
