r"""
The engine: a process's lifecycle as a small state machine with channels.

                 O
                 |
                 v
    STOPPING -> STOPPED -> EXITING -> X
      ^   ^        |
      |    \       v
    STARTED <-- STARTING

This file is what users and adapters call; `lifecycle.py` has the transitions.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

from . import nets, signals
from .aio import whereabouts
from .door import Door
from .errors import ChannelFailures, EngineError
from .flag import call_soon, wait_for
from .host import current_host
from .lifecycle import Lifecycle, raise_shared
from .records import ERROR, Message
from .resources import START_PRIORITY, STOP_PRIORITY, make_resource
from .states import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Any, TypeVar

    from .transition import Progress

    T = TypeVar("T")
    Function = TypeVar("Function", bound=Callable[..., Any])


class Engine(Lifecycle):
    """
    A process's lifecycle: its state, its channels, and the transitions between states.

    Args:
        slow_after: Seconds after which a listener of a transition is named in the log.
        start_timeout: Seconds that all `start` listeners may take together.
        stop_timeout: Seconds that all `stop` and `exit` listeners may take together.
        drain_delay: Seconds to go on serving, unready, before requests are waited for.
        drain_timeout: Seconds to wait for requests in flight.
    """

    def __init__(
        self,
        *,
        slow_after: float = 5.0,
        start_timeout: float = 60.0,
        stop_timeout: float = 30.0,
        drain_delay: float = 0.0,
        drain_timeout: float = 30.0,
    ) -> None:
        super().__init__()
        _check_seconds(locals())
        self.slow_after = slow_after
        self.start_timeout = start_timeout
        self.stop_timeout = stop_timeout
        self.drain_delay = drain_delay
        self.drain_timeout = drain_timeout
        self._open_doors: list[tuple[object, Door]] = []
        nets.add(self)

    def after_fork(self) -> None:
        """Be a new process's engine; those who hold what was the parent's are told on `fork`."""
        self._reset()
        self.publish("fork")

    # -- what it is ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Where the engine stands."""
        return self._state

    @property
    def in_flight(self) -> int:
        """Number of requests whose answer is not complete."""
        return len(self.requests)

    @property
    def alive(self) -> bool:
        """False once the process had better be replaced: exited, or a listener never returned."""
        return self._state is not State.EXITING and not self._overran

    @property
    def ready(self) -> bool:
        """True while requests are welcome: STARTED, and not draining."""
        return self._state is State.STARTED and not self.draining.is_set()

    @property
    def in_transition(self) -> bool:
        """Whether a transition runs."""
        return self._transition is not None

    @property
    def transition_thread(self) -> int | None:
        """The thread that runs a transition."""
        transition = self._transition
        return transition.thread if transition is not None else None

    @property
    def progress(self) -> "Progress | None":
        """What the transition that runs is doing; None if none runs."""
        transition = self._transition
        if transition is None:
            return None
        return transition.progress(self.slow_after, self.drain_delay)

    @property
    def restarting(self) -> bool:
        """Whether a new process is to follow the exit that is under way, or has just ended."""
        return self._restart is not None and not self.notes.times_told

    @property
    def loop(self) -> "asyncio.AbstractEventLoop | None":
        """The event loop on which async listeners run; None while there is none that runs."""
        life = self._life
        return life.usable_loop() if life is not None else None

    def answers(self, limit: float) -> bool:
        """Return whether the engine's lock can be had within *limit* seconds: nobody sits on it."""
        changed = self._changed
        if not changed.acquire(timeout=limit):
            return False
        changed.release()
        return True

    @property
    def door(self) -> str:
        """What started the present life: `script`, `lifespan`, `wsgi`, `asgi`; else empty."""
        life = self._life
        return life.door if life is not None else ""

    @property
    def lifespan_state(self) -> "dict[str, Any]":
        """What the resources yielded; lifespan state under ASGI."""
        return dict(self._life.state) if self._life is not None else {}

    def __repr__(self) -> str:
        draining = " draining" if self._state is State.STARTED and self.draining.is_set() else ""
        return f"<Engine {self._state}{draining}, pid {self.pid}>"

    # -- transitions --------------------------------------------------------------------------

    def start(self) -> None:
        """
        Publish `start` and become STARTED; return at once if it is.

        Raises:
            ChannelFailures: A listener failed; those that had started have been stopped.
            StartAborted: An exit was asked for meanwhile.
            TransitionError: An exit is under way, or a listener of a transition asks.
        """
        self._in_thread("start")

    def stop(self) -> None:
        """
        Drain, publish `stop` and become STOPPED; return at once if it is.

        Raises:
            ChannelFailures: Listeners failed; all have run, and the engine is STOPPED.
            WouldDeadlock: This is the application's event loop; await `stop_async()`.
        """
        self._in_thread("stop")

    def exit(self) -> None:
        """
        Stop, publish `exit` and become EXITING.

        In a process that a server owns this ends the engine, not the process.

        Raises:
            ChannelFailures: Listeners of `stop` or `exit` failed; all have run.
            WouldDeadlock: This is the application's event loop; await `exit_async()`.
        """
        self._in_thread("exit")

    async def start_async(self) -> None:
        """Do what `start` does; async listeners run on this loop from now to the stop."""
        await self._in_task("start")

    async def stop_async(self) -> None:
        """Do what `stop` does without blocking the loop."""
        await self._in_task("stop")

    async def exit_async(self) -> None:
        """Do what `exit` does without blocking the loop."""
        await self._in_task("exit")

    def restart(self) -> None:
        """
        Exit, and have the host give a new process.

        Raises:
            RestartRefused: The host cannot give one; nothing has been stopped.
        """
        door = self._life.door if self._life is not None else "script"
        host = self.host or current_host(door)
        give = host.prepare_restart()
        if not host.owns_process:
            give()
            return
        self._restart = give
        self._in_thread("exit")
        self._finish_restart()

    def graceful(self) -> None:
        """Publish `graceful`: reopen logs, read configuration again. The state stays."""
        self.publish("graceful")

    # -- drain --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Publish `drain` now, ahead of the stop: the server was told to go and still serves."""
        self._in_thread("drain")

    async def drain_async(self) -> None:
        """Do what `drain` does without blocking the loop."""
        await self._in_task("drain")

    def pause_for_drain_delay(self) -> None:
        """Let `drain_delay` pass, or as much of it as the drain lasts."""
        life = self._life
        if life is not None and self.drain_delay:
            life.settled.wait(self.drain_delay)

    def hurry(self) -> None:
        """End the drain now."""
        life = self._life
        if life is not None:
            life.settled.set()

    async def until_drain(self, iterator: "AsyncIterator[T]") -> "AsyncGenerator[T, None]":
        """
        Yield what *iterator* yields until the engine drains.

        For responses that would never end: `async for event in engine.until_drain(events()): …`.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        draining = self.draining
        patience: asyncio.Timeout | None = None

        def give_up() -> None:
            if patience is not None:
                patience.reschedule(loop.time())

        told = draining.tell(lambda: call_soon(loop, give_up))
        try:
            while not draining.is_set():
                try:
                    async with asyncio.timeout(None) as patience:
                        item = await anext(iterator)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    if patience is not None and patience.expired():
                        return
                    raise
                finally:
                    patience = None
                yield item
        finally:
            draining.forget(told)
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    # -- waiting ------------------------------------------------------------------------------

    def block(self, interval: float = 0.1) -> None:
        """
        Wait until the engine has exited; carry out what signals ask for meanwhile.

        Publishes `main` every *interval* seconds while somebody listens to it; costs no wakeup
        otherwise. KeyboardInterrupt means exit.

        Raises:
            SystemExit: A listener of the exit raised it.
            ChannelFailures: Listeners of the exit failed.
        """
        try:
            with self.notes.reading():
                while not self._has_exited():
                    self._read_note(interval)
        finally:
            self._finish_restart()
        raise_shared(self._exit_error)

    def _read_note(self, interval: float) -> None:
        """Wait for a note and do what it says; publish `main` if none came in time."""
        try:
            note = self.notes.get(interval if self._listeners.get("main") else None)
            if note is not None:
                note()
            elif not self._has_exited():  # woken for that
                self._tick()
        except EngineError as exc:
            self.tell(Message(text=str(exc), level=ERROR, error=exc))
        except KeyboardInterrupt:
            self._exit_on_interrupt()
        except SystemExit:
            self._exit_on_interrupt()
            raise

    def _tick(self) -> None:
        try:
            self.publish("main")
        except ChannelFailures as exc:
            self.tell(Message(text=str(exc), level=ERROR, error=exc))

    def _exit_on_interrupt(self) -> None:
        try:
            self.exit()
        except ChannelFailures:
            pass  # `block` raises the outcome when it returns

    @signals.shielded
    def wait(self, states: "State | Iterable[State]", timeout: float | None = None) -> bool:
        """
        Wait until the engine is in one of *states*, or has passed through one meanwhile.

        Args:
            states: One state, or several.
            timeout: Seconds to wait at most; None waits without a limit.

        Returns:
            Whether it is or was; False when the time was up.
        """
        wanted = {states} if isinstance(states, State) else set(states)
        if not all(isinstance(state, State) for state in wanted):
            raise EngineError(f"wait(…) wants a State or several, got {states!r}")
        with self._changed:
            before = self._entered.copy()

            def has_come() -> bool:
                return self._state in wanted or any(
                    self._entered[state] != before[state] for state in wanted
                )

            wait_for(self._changed, lambda: has_come() or signals.is_unwinding(), timeout)
            found = has_come()
        signals.unwind()
        return found

    # -- doors --------------------------------------------------------------------------------

    def __enter__(self) -> "Engine":
        door = Door(self, "script")
        door.open()
        self._open_doors.append((whereabouts(), door))
        return self

    def __exit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        traceback: "TracebackType | None",
    ) -> None:
        self._innermost_door().close()

    async def __aenter__(self) -> "Engine":
        door = Door(self, "script")
        await door.open_async()
        self._open_doors.append((whereabouts(), door))
        return self

    async def __aexit__(
        self,
        kind: "type[BaseException] | None",
        error: "BaseException | None",
        traceback: "TracebackType | None",
    ) -> None:
        await self._innermost_door().close_async()

    def _innermost_door(self) -> Door:
        """Return the door that this thread or task opened last; it is open no more."""
        here, doors = whereabouts(), self._open_doors
        own = [entry for entry in tuple(doors) if entry[0] == here]
        entry = own[-1] if own else doors[-1]  # a fixture may leave in another task
        doors.remove(entry)
        return entry[1]

    def open_thread_door(self, kind: str) -> bool:
        """Start for a door of *kind* in this thread; return whether that was what started it."""
        return self._in_thread("start", kind)

    async def open_task_door(self, kind: str) -> bool:
        """Start for a door of *kind* on this loop; return whether that was what started it."""
        return await self._in_task("start", kind)

    def lifespan(self, app: "Any" = None) -> "AbstractAsyncContextManager[Any]":
        """Be the lifespan of an application: `Starlette(lifespan=engine.lifespan)`."""
        return Door(self, "lifespan", app)

    def resource(self, function: "Function") -> "Function":
        """
        Have what precedes `yield` in *function* run on `start`, the rest on `stop`.

        Resources start at priority 40, in the order of their definition, and are left in reverse
        at stop priority 90, after all ordinary listeners. A mapping that is yielded becomes
        lifespan state under ASGI.

        Raises:
            ListenerError: *function* is neither a generator nor an async generator function.
        """
        resource = make_resource(function, self._the_life)
        sequence = next(self._sequence)
        self._subscribe("start", resource.start, START_PRIORITY, sequence)
        self._subscribe("stop", resource.stop, STOP_PRIORITY, -sequence)
        return function


def _check_seconds(values: "dict[str, Any]") -> None:
    """Refuse parameters of `Engine` that are not a duration."""
    for name in ("slow_after", "start_timeout", "stop_timeout", "drain_delay", "drain_timeout"):
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise EngineError(f"Engine({name}=…) wants seconds, 0 or more; got {value!r}")
