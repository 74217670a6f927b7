"""One start, drain, stop or exit on its way, and the watch that keeps it within its limits."""

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from time import monotonic

from .bus import Listener
from .errors import ChannelFailures
from .flag import Flag
from .records import ListenerSlow, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .aio import Caller
    from .life import Life

    Step = Callable[[Caller], Awaitable[None]]

# The transitions that the code which runs now belongs to: those of its own engine, and of engines
# whose listeners called that one.
inside: ContextVar[tuple["Transition", ...]] = ContextVar("inside", default=())


def _let_it_wait(engine: object) -> None:
    """Nobody waits for the code that runs now."""


# What to call, with the engine, before the code that runs now waits for a transition of somebody
# else: that one may be waiting for this code, as a stop does for a periodic task.
before_waiting: "ContextVar[Callable[[Any], object]]" = ContextVar(
    "before_waiting", default=_let_it_wait
)


class Abandoned(Exception):
    """The watch has handed the transition to another thread; who raises this is too late."""


class Transition:
    """
    What is left to do, who does it, and how it ended.

    `steps` holds what is left; the runner takes them one by one. So when a listener never returns,
    another thread can go on with the rest.
    """

    def __init__(self, kind: str, condition: threading.Condition) -> None:
        self.kind = kind
        self.steps: deque[Step] = deque()
        self.failures: list[Exception] = []
        self.interrupt: BaseException | None = None  # SystemExit, KeyboardInterrupt, cancellation
        self.pending = ""  # what listeners asked for meanwhile: carried out afterwards
        self.aborted = False
        self.done = Flag(condition)
        self.error: BaseException | None = None
        self.runner: Caller | None = None
        self.thread = 0
        self.watch: Watch
        self.deadline = float("inf")
        self.budget = float("inf")
        self.setting = ""  # the parameter of Engine that set the budget
        self.channel = ""
        self.listener: Listener | None = None  # the one that runs now
        self.since = 0.0
        self.reported = False

    def limit(self, seconds: float, setting: str) -> None:
        """Give what follows a budget of *seconds*, which *setting* has set."""
        self.budget, self.setting = seconds, setting
        self.deadline = monotonic() + seconds

    def begin(self, channel: str, listener: Listener) -> None:
        """Note that *listener* runs from now on."""
        self.channel, self.listener, self.since = channel, listener, monotonic()
        self.reported = False

    def last_moment(self, slow_after: float) -> float:
        """Return when the present listener must have returned; a late one has *slow_after*."""
        return max(self.deadline, self.since + min(slow_after, self.budget or slow_after))

    def progress(self, slow_after: float, drain_delay: float) -> "Progress":
        """Return what is done at this moment, and until when it may take."""
        now, listener = monotonic(), self.listener
        if listener is not None:
            seconds, ends = now - self.since, self.last_moment(slow_after)
        else:  # a drain may wait for the delay as well
            seconds, ends = 0.0, self.deadline + drain_delay * (self.setting == "drain_timeout")
        return Progress(self.kind, listener.name if listener else "", seconds, ends - now)

    def outcome(self) -> BaseException | None:
        """Return what whoever asked for this transition gets to see, if anything failed."""
        if self.interrupt is not None:
            return self.interrupt
        if not self.failures:
            return None
        first = self.failures[0]
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        return ChannelFailures(
            f"{self.kind} failed: {type(first).__name__}: {first}{more}", self.failures
        )


class Progress:
    """
    What a transition does at this moment.

    Attributes:
        kind: `start`, `drain`, `stop` or `exit`.
        listener: The listener that runs; empty if none does.
        seconds: For how long it has been running.
        left: Seconds until its limit, or that of a drain; less than 0 past it.
    """

    __slots__ = ("kind", "left", "listener", "seconds")

    def __init__(self, kind: str, listener: str, seconds: float, left: float) -> None:
        self.kind = kind
        self.listener = listener
        self.seconds = seconds
        self.left = left


class Watch:
    """A daemon thread that watches one transition: names slow listeners, ends overlong ones."""

    def __init__(
        self,
        transition: Transition,
        life: "Callable[[], Life]",
        slow_after: float,
        pause: float,
        *,
        tell: Callable[[Record], None],
        take_over: Callable[[Transition], None],
    ) -> None:
        self._transition = transition
        self._life = life
        self._slow_after = slow_after
        self._pause = pause  # no longer than the shortest limit: which one holds may change
        self._inside = inside.get()
        self.took_over = False
        self._tell = tell
        self._take_over = take_over
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="engine watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; at interpreter exit there may be no thread to do it, and so no watch."""
        try:
            self._thread.start()
        except RuntimeError:
            self._ended.set()

    def stop(self) -> None:
        """Watch no more."""
        self._ended.set()
        if self.took_over:
            return  # it may be stuck by now, as we were
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        inside.set(self._inside)  # observers that we tell must not wait for the transition
        while not self._ended.wait(self._until_next_check()):
            transition = self._transition
            listener, now = transition.listener, monotonic()
            if listener is None:
                continue
            if now - transition.since >= self._slow_after and not transition.reported:
                transition.reported = True
                self._report(listener, left_behind=False)
            if self._life().running is None and now >= self._patience_ends():
                self._report(listener, left_behind=True)
                self.took_over = True
                self._take_over(transition)
                return

    def _until_next_check(self) -> float:
        """Return the seconds until something could be due."""
        transition, now = self._transition, monotonic()
        if transition.listener is None:
            return self._pause
        due = self._patience_ends()
        if not transition.reported:
            due = min(due, transition.since + self._slow_after)
        elif self._life().running is not None:
            due = max(due, now + self._slow_after)  # an async listener is ended by its own limit
        return min(max(due - now, 0.001), self._pause)

    def _patience_ends(self) -> float:
        """Return when the present listener is left behind: one on a busy loop has longer."""
        return self._transition.last_moment(self._slow_after) + self._life().grace

    def _report(self, listener: Listener, *, left_behind: bool) -> None:
        transition = self._transition
        self._tell(
            ListenerSlow(
                channel=transition.channel,
                listener=listener.name,
                seconds=monotonic() - transition.since,
                stack=self._stack(),
                left_behind=left_behind,
            )
        )

    def _stack(self) -> str:
        """Return where the present listener stands."""
        from .stacks import coroutine_stack, thread_stack  # with traceback, which few ever need

        running = self._life().running
        if running is not None:
            return "".join(coroutine_stack(running))
        return thread_stack(self._transition.thread)
