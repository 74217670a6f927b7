"""
The lifecycle of an engine: which transition runs, in which steps, and who takes them.

One transition runs at a time. It is a list of steps, taken by one runner: the thread or task that
asked for it. Whoever asks for another meanwhile waits, shares the outcome, or leaves a note that
the runner carries out; `_decide` is the whole of that. `docs/concurrency.md` tells why it holds.
"""

import os
import threading
from collections.abc import Callable, Container
from functools import partial
from time import monotonic

from . import nets, signals
from .aio import Aborted, Caller, Overrun, TaskCaller, ThreadCaller, drive, running_loop
from .bus import Listener
from .errors import (
    ChannelFailures,
    EngineError,
    StartAborted,
    TransitionError,
    TransitionTimeout,
    WouldDeadlock,
)
from .flag import Flag
from .host import Host, current_host
from .life import Life
from .notes import Notes
from .observed import ObservedBus
from .records import DrainExpired, Draining, ListenerFinished, ListenerSlow, StateChanged
from .requests import Requests
from .states import TRANSITIONS, State
from .transition import Abandoned, Transition, Watch, before_waiting, inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUEST_CHANNELS = ("acquire_thread", "before_request", "after_request")


class Lifecycle(ObservedBus):
    """State, transitions, drain; `Engine` says what its parameters mean."""

    slow_after: float
    start_timeout: float
    stop_timeout: float
    drain_delay: float
    drain_timeout: float

    def __init__(self) -> None:
        super().__init__()
        self.host: Host | None = None
        self._detected_host: Host | None = None
        self.hears_requests = False  # somebody listens to a request channel
        self._reset()

    def _reset(self) -> None:
        """Begin as a process begins: with listeners, and nothing that belongs to another."""
        self._changed = threading.Condition()
        self._subscribing = threading.RLock()
        self._state = State.STOPPED
        self._entered = dict.fromkeys(State, 0)  # how often; so `wait` misses none that passes
        self._transition: Transition | None = None
        self._life: Life | None = None
        self._restart: Callable[[], object] | None = None
        self._giving_way = threading.RLock()  # held until the old process is replaced
        self._exit_error: BaseException | None = None
        self._overran = False
        self._let_go: dict[int, object] = {}  # by id: who got `exit` of the last roll-back
        self.requests = Requests()
        self.draining = Flag(self._changed)
        self.aborting = Flag(self._changed)
        self.notes = Notes(self)
        self.serves = False  # STARTED; for adapters, to whom a property is too dear
        self.drains = False
        self.only_serves = False  # nothing is to be done for a request but to count it
        self.deliberate = False  # stopped by somebody's word
        self._ended_with: Any = None  # the loop whose life's task had the engine stopped
        self.owes_exit = False  # it has started in this process, and not exited since
        self.pid = os.getpid()

    @signals.shielded
    def _in_thread(self, kind: str, door: str = "script") -> bool:
        if self._would_block_own_loop(kind):
            raise WouldDeadlock(f"engine.{kind}()", f"engine.{kind}_async()")
        try:
            return drive(self._ask(kind, ThreadCaller(), door))
        finally:
            signals.unwind()

    @signals.shielded
    async def _in_task(self, kind: str, door: str = "script") -> bool:
        import asyncio

        try:
            return await self._ask(kind, TaskCaller(asyncio.get_running_loop()), door)
        finally:
            signals.unwind()

    def _would_block_own_loop(self, kind: str) -> bool:
        """Whether *kind*, asked for by this thread, would wait for the loop that runs in it."""
        loop = self._life.usable_loop() if self._life is not None else None
        if loop is None or loop is not running_loop() or self._is_inside():
            return False
        return self._transition is not None or self.drains or not self._nothing_to_do(kind)

    @property
    def owns_process(self) -> bool:
        """Whether the process is the engine's to end: no server decides over it."""
        return self.host is None or self.host.owns_process

    def _is_inside(self) -> bool:
        return self._transition in inside.get()

    async def _ask(self, kind: str, caller: Caller, door: str = "script") -> bool:
        """
        Have a transition of *kind*: run it, wait for another, or share one that runs.

        Returns:
            Whether it was run here.
        """
        waited: Transition | None = None
        while True:
            if kind == "start":
                await self._await_announced_stop(caller)
            with self._changed:
                transition, mine = self._decide(kind, waited, caller, door)
                aborting = self.aborting
            if transition is None:
                return False
            if transition.aborted:
                aborting.set()  # without the lock, for it calls those who asked to be told
            if mine:
                await self._run(transition, caller)
                return True
            self.requests.excuse_current()
            before_waiting.get()(self)
            await caller.wait(transition.done)
            if transition.kind == kind or (kind, transition.kind) == ("stop", "exit"):
                raise_shared(transition.error)
                return False
            waited = transition

    async def _await_announced_stop(self, caller: Caller) -> None:
        """Before a start: where a drain has been announced, wait for the stop that must follow."""
        life = self._life
        if life is None or not life.announced or self._transition is not None:
            return
        limit = self.drain_delay + self.drain_timeout + self.stop_timeout
        before_waiting.get()(self)
        if not await caller.wait(life.over, limit):
            raise TransitionError(
                f"{self._state} (draining)",
                str(State.STARTING),
                f"the server was told to go, but within {limit:g} s no stop followed",
            )

    def _decide(
        self, kind: str, waited: Transition | None, caller: Caller, door: str
    ) -> tuple[Transition | None, bool]:
        """
        Say what *kind* means now; called under the lock.

        Returns:
            (None, …) nothing is left to do, (its own, True) run it, (another, False) wait for that.
        """
        now = self._transition
        if now is None:
            if self._nothing_to_do(kind):
                if waited is not None and kind == "exit":
                    raise_shared(self._exit_error)
                return None, False
            now = self._transition = self._plan(kind, caller, door)
            return now, True
        if self._is_inside():
            if kind == "start":
                raise TransitionError(str(self._state), str(State.STARTING), _FROM_A_LISTENER)
            now.pending = max(now.pending, kind, key=_PENDING.index)
            return None, False
        if kind == "start" and now.kind == "exit":
            raise TransitionError(str(self._state), str(State.STARTING), "an exit is under way")
        if kind == "exit" and now.kind == "start":
            now.pending, now.aborted = kind, True
        return now, False

    def _nothing_to_do(self, kind: str) -> bool:
        if kind == "start":
            return self._state is State.STARTED
        if kind == "stop":
            return self._state is not State.STARTED
        if kind == "drain":
            return self._state is not State.STARTED or self.draining.is_set()
        return self._state is State.EXITING

    def _plan(self, kind: str, caller: Caller, door: str) -> Transition:
        """Return the transition of *kind* with its first steps."""
        transition = Transition(kind, self._changed)
        if kind == "start":
            spare = self._life
            self._begin_life(caller, door)
            transition.limit(self.start_timeout, "start_timeout")
            steps = [self._open_life, self._enter(State.STARTING), self._channel("start")]
            steps += [self._become_started]
            if self._state is State.EXITING:
                steps.insert(0, self._enter(State.STOPPED))
            if spare is not None:
                steps.insert(0, spare.close)  # of a publish to an async listener before this start
        elif kind == "drain":
            steps = [self._announce]
        else:
            steps = self._stop_steps() if self._state is State.STARTED else []
            if kind == "exit":
                steps += [self._limit_stop, self._enter(State.EXITING), self._channel("exit")]
                steps += [self._end_life]  # the spare one, whose loop async listeners were given
            self.deliberate = True
        transition.steps.extend(steps)
        return transition

    def _stop_steps(self) -> "list[Callable[[Caller], Any]]":
        return [
            self._announce,
            self._settle,
            self._limit_stop,
            self._enter(State.STOPPING),
            self._let_latecomers_finish,
            self._channel("stop"),
            self._end_life,
            self._enter(State.STOPPED),
        ]

    async def _run(self, transition: Transition, caller: Caller) -> None:
        """Take the steps of *transition*, then what was asked for meanwhile; raise what failed."""
        while True:
            try:
                await self._take_steps(transition, caller)
                break
            except (SystemExit, KeyboardInterrupt) as exc:  # of a signal handler, between steps
                if transition.done.is_set():
                    raise
                self._interrupted(transition, exc)
        if transition.runner is not caller and self._transition is transition:
            await caller.wait(transition.done)
        if not transition.done.is_set():
            if transition.interrupt is not None:
                raise transition.interrupt  # the fork's own way to leave
            raise EngineError("this process was forked inside a listener, and the fork returned")
        if transition.runner is not caller:  # the watch gave it to another thread
            raise transition.error or Abandoned
        error = transition.error
        if transition.pending:
            try:
                await self._ask(transition.pending, caller)
            except ChannelFailures as exc:
                error = error or exc
        self._finish_restart()
        if error is not None:
            raise error

    async def _take_steps(self, transition: Transition, caller: Caller) -> None:
        transition.runner, transition.thread = caller, threading.get_ident()
        token = inside.set((transition, *inside.get()))
        transition.watch = self._new_watch(transition)
        if any(self._listeners.get(channel) for channel in ("start", "stop", "exit", "drain")):
            transition.watch.start()
        try:
            while transition.steps and self._is_run_by(transition, caller):
                try:
                    await transition.steps.popleft()(caller)
                except Abandoned:
                    return
                except BaseException as exc:  # KeyboardInterrupt may come anywhere
                    self._interrupted(transition, exc)
        finally:
            inside.reset(token)
            transition.watch.stop()
        if self._is_run_by(transition, caller):
            self._finish(transition)

    def alone(self, call: Callable[[], object]) -> None:
        """
        Call *call* amid a transition, with no thread of the engine's own beside it.

        For a listener whose work holds for one thread and what that begets: what the kernel keeps
        for each thread, and a fork by which the process gives its place to a child. There the
        transition goes on as it is, if *call* returns; the parent must leave by itself.

        Raises:
            EngineError: Who asks does not run a transition, or does so no more.
        """
        transition = self._transition
        if transition is None or transition.thread != threading.get_ident():
            raise EngineError(_RUNS_NO_TRANSITION)
        watch = transition.watch
        watch.stop()
        if watch.took_over:
            raise EngineError(_RUNS_NO_TRANSITION)
        try:
            nets.carry_over(self, call)
        finally:
            self.pid, transition.thread = os.getpid(), threading.get_ident()
            transition.watch = self._new_watch(transition)
            transition.watch.start()

    def _new_watch(self, transition: Transition) -> Watch:
        return Watch(
            transition,
            self._the_life,
            self.slow_after,
            self._shortest_limit(),
            tell=self.tell,
            take_over=self._take_over,
        )

    def _is_run_by(self, transition: Transition, caller: Caller) -> bool:
        """Whether *caller* still runs it: no watch took over, no fork made us another process."""
        return transition.runner is caller and self._transition is transition

    def _shortest_limit(self) -> float:
        limits = (self.slow_after, self.start_timeout, self.stop_timeout, self.drain_timeout)
        return min((seconds for seconds in limits if seconds > 0), default=1.0)

    def _finish(self, transition: Transition) -> None:
        with self._changed:
            transition.error = transition.outcome()
            if transition.aborted and transition.error is None and transition.kind == "start":
                transition.error = StartAborted()
            if transition.kind == "exit":
                self._exit_error = transition.error
            transition.done.set()  # first: an interrupt in between has all this done again
            self._transition = None
        if transition.kind == "exit":
            self.notes.wake()
            signals.unwatch(self)

    def _take_over(self, transition: Transition) -> None:
        """Go on in this thread: the runner is stuck in a listener. Called by the watch."""
        with self._changed:
            listener = transition.listener
            if listener is None or self._transition is not transition:
                return
            caller = transition.runner = ThreadCaller()
            transition.listener = None
            self._overran = True
            self._add_failure(transition, listener, self._timeout_of(transition, listener))
        life = self._the_life()
        if life.loop_thread == transition.thread:
            life.give_up_loop()
        try:
            drive(self._run(transition, caller))
        except (Exception, SystemExit):
            pass  # those who wait are told; here nobody is

    # -- steps --------------------------------------------------------------------------------

    def _enter(self, state: State) -> "Callable[[Caller], Any]":
        async def step(caller: Caller) -> None:
            self._set_state(state)

        return step

    async def _become_started(self, caller: Caller) -> None:
        """Be STARTED, unless an exit was asked for while the last listener ran."""
        transition = self._transition
        if transition is not None and transition.aborted:
            self._roll_back(transition)
        else:
            self._set_state(State.STARTED)

    def _note_how_it_serves(self) -> None:
        self.only_serves = self.serves and not self.drains and not self.hears_requests

    def _set_state(self, state: State) -> None:
        with self._changed:
            old = self._state
            if state not in TRANSITIONS[old]:
                raise TransitionError(str(old), str(state))
            self._state = state
            self._entered[state] += 1
            self.serves = state is State.STARTED
            self._note_how_it_serves()
            self.owes_exit = state is not State.EXITING
            self._changed.notify_all()
        self.tell(StateChanged(old=str(old), new=str(state)))

    def _channel(self, channel: str) -> "Callable[[Caller], Any]":
        """Return the step that puts a step for each present listener of *channel* in front."""

        async def step(caller: Caller) -> None:
            transition = self._transition
            assert transition is not None
            skipped: Container[int] = self._unstarted() if channel == "stop" else ()
            if channel == "exit":
                skipped = self._let_go
            calls = [
                partial(self._call, channel, listener)
                for listener in self._listeners.get(channel, ())
                if listener.owner is None or id(listener.owner) not in skipped
            ]
            transition.steps.extendleft(reversed(calls))

        return step

    def _unstarted(self) -> set[int]:
        """Return the ids of the owners with a `start` listener that did not complete."""
        started = self._the_life().started
        return {
            id(listener.owner)
            for listener in self._listeners.get("start", ())
            if listener.owner is not None and listener.call not in started
        }

    async def _call(self, channel: str, listener: Listener, caller: Caller) -> None:
        """Run one *listener*; what its failure means depends on the transition."""
        transition = self._transition
        assert transition is not None
        if channel == "start" and transition.aborted:
            self._roll_back(transition)
            return
        error: BaseException | None = None
        transition.begin(channel, listener)
        since = transition.since
        try:
            abort = self.aborting if channel == "start" else _NEVER
            last = transition.last_moment(self.slow_after)
            await caller.call(self._the_life(), listener, last, abort)
        except Aborted:
            error = StartAborted()
        except Overrun as exc:
            error = self._overrun(transition, listener, exc)
        except BaseException as exc:
            error = exc
        with self._changed:
            if transition.runner is not caller or self._transition is not transition:
                if isinstance(error, Exception | None):
                    raise Abandoned from error
                raise error
            transition.listener = None
            if error is None and channel == "start":
                self._the_life().started.append(listener.call)
        seconds = monotonic() - since
        self.tell(
            ListenerFinished(channel=channel, listener=listener.name, seconds=seconds, error=error)
        )
        if error is None:
            return
        if isinstance(error, StartAborted):
            self._roll_back(transition)
        elif isinstance(error, Exception):
            self._add_failure(transition, listener, error)
        else:
            self._interrupted(transition, error)

    def _add_failure(self, transition: Transition, listener: Listener, error: Exception) -> None:
        transition.failures.append(error)
        if transition.channel == "start":
            self._roll_back(transition)

    def _interrupted(self, transition: Transition, error: BaseException) -> None:
        """Note a SystemExit or its like: a start is rolled back, everything else goes on."""
        if isinstance(error, Exception):
            transition.failures.append(error)
        else:
            transition.interrupt = transition.interrupt or error
        if transition.kind == "start" and self._state is State.STARTING:
            self._roll_back(transition)

    def _overrun(self, transition: Transition, listener: Listener, how: Overrun) -> Exception:
        self._overran = self._overran or how.still_runs
        if how.still_runs or not transition.reported:
            self.tell(
                ListenerSlow(
                    channel=transition.channel,
                    listener=listener.name,
                    seconds=monotonic() - transition.since,
                    stack=how.stack,
                    left_behind=how.still_runs,
                )
            )
        return self._timeout_of(transition, listener, left_behind=how.still_runs)

    def _timeout_of(
        self, transition: Transition, listener: Listener, *, left_behind: bool = True
    ) -> TransitionTimeout:
        return TransitionTimeout(
            transition.channel,
            listener.name,
            monotonic() - transition.since,
            transition.setting,
            left_behind=left_behind,
        )

    def _roll_back(self, transition: Transition) -> None:
        """Put the steps that undo a start in the place of those that are left of it."""
        transition.steps.clear()
        transition.steps.extend(
            [
                self._limit_stop,
                self._enter(State.STOPPING),
                self._channel("stop"),
                self._exit_of_the_started,
                self._end_life,
                self._enter(State.STOPPED),
            ]
        )

    async def _exit_of_the_started(self, caller: Caller) -> None:
        """Give `exit` to owners that started and do not listen to `stop`: a PID file goes away."""
        transition = self._transition
        assert transition is not None
        stopped = {id(listener.owner) for listener in self._listeners.get("stop", ())}
        started = {id(getattr(call, "__self__", None)) for call in self._the_life().started}
        listeners = [
            listener
            for listener in self._listeners.get("exit", ())
            if listener.owner is not None and id(listener.owner) in started - stopped
        ]
        self._let_go = {id(listener.owner): listener.owner for listener in listeners}
        calls = [partial(self._call, "exit", listener) for listener in listeners]
        transition.steps.extendleft(reversed(calls))

    async def _limit_stop(self, caller: Caller) -> None:
        transition = self._transition
        if transition is not None and transition.setting != "stop_timeout":
            transition.limit(self.stop_timeout, "stop_timeout")

    # -- one life: from start to stop ------------------------------------------------------------

    def _begin_life(self, caller: Caller, door: str) -> None:
        self.draining = Flag(self._changed)
        self.aborting = Flag(self._changed)
        self._exit_error = self._restart = None
        self.deliberate = self._overran = self.drains = False
        self._ended_with = None
        self._let_go = {}
        self.notes.times_told = 0
        loop = caller.loop if isinstance(caller, TaskCaller) else None
        self._life = self._new_life(door, loop)
        if self.host is self._detected_host:  # else an adapter has set it
            self.host = self._detected_host = current_host(door)

    def _new_life(self, door: str, loop: "Any" = None) -> Life:
        return Life(self._changed, door, loop, self._stop_with_task, self._warn)

    async def _stop_with_task(self) -> None:
        """Stop because the life's task was cancelled: a resource failed, or the loop ends."""
        import asyncio

        try:
            await self._in_task("stop")
        except (EngineError, SystemExit):
            pass  # nobody waits; each failure is in the log
        self._ended_with = asyncio.get_running_loop()

    @property
    def stays_stopped(self) -> bool:
        """Whether doors must not start it again; they may where only its loop has ended."""
        return self.deliberate and (self._ended_with is None or not self._ended_with.is_closed())

    def _the_life(self) -> Life:
        """Return the present life; listeners may need a loop before there is one."""
        with self._changed:
            if self._life is None:
                self._life = self._new_life("script")
            return self._life

    async def _open_life(self, caller: Caller) -> None:
        if isinstance(caller, TaskCaller):
            self._the_life().open()
        nets.spread(self, self._the_life().door)

    async def _end_life(self, caller: Caller) -> None:
        life, self._life = self._the_life(), None
        life.settled.set()
        await life.close(caller)
        life.over.set()

    # -- drain --------------------------------------------------------------------------------

    async def _announce(self, caller: Caller) -> None:
        """Publish `drain`, once in a life."""
        life = self._the_life()
        if life.announced:
            return
        life.announced = True
        self.requests.excuse_current()
        self.drains = True
        self._note_how_it_serves()
        self.draining.set()
        self.tell(Draining(in_flight=len(self.requests)))
        transition = self._transition
        assert transition is not None
        transition.limit(self.drain_timeout, "drain_timeout")
        await self._channel("drain")(caller)

    async def _settle(self, caller: Caller) -> None:
        """Wait until no request is in flight but the caller's own, or the drain must end."""
        life = self._the_life()
        if self.drain_delay and self.owns_process:  # else the server decides how long it serves
            await caller.wait(life.settled, self.drain_delay)
        self.requests.excuse_current()
        quiet = self._quiet()
        quiet.tell(life.settled.set)
        since = monotonic()
        await caller.wait(life.settled, self.drain_timeout)
        if quiet.is_set():
            return
        left = self.requests.waited_for()
        if left:
            self.tell(DrainExpired(in_flight=left, seconds=monotonic() - since))
        self.requests.excuse_all()

    def _quiet(self) -> Flag:
        """Return a flag that is set as soon as no request is waited for."""
        quiet = Flag(self._changed)
        self.requests.tell_when_quiet(quiet.set)
        return quiet

    async def _let_latecomers_finish(self, caller: Caller) -> None:
        """Wait for requests that were let in just as the drain ended; none is any more."""
        await caller.wait(self._quiet(), self.drain_timeout)

    def _finish_restart(self) -> None:
        """Give way to the new process, if one was asked for and no thread in `block` will."""
        with self._giving_way:  # a thread that would leave `block` now ends the old process first
            with self._changed:
                if not self._has_exited() or self.notes.readers:
                    return
                restart, self._restart = self._restart, None
            if restart is not None and not self.notes.times_told:  # a SIGTERM has the last word
                restart()

    def _has_exited(self) -> bool:
        return self._state is State.EXITING and self._transition is None

    def _set_listeners(self, channel: str, listeners: tuple[Listener, ...]) -> None:
        super()._set_listeners(channel, listeners)
        self.hears_requests = any(map(self._listeners.get, REQUEST_CHANNELS))
        self._note_how_it_serves()
        if channel == "main":
            self.notes.wake()  # the thread in `block` waits without a limit while nobody listens


def raise_shared(error: BaseException | None) -> None:
    """Raise what a transition ended with in one more thread: groups as a group of its own."""
    if isinstance(error, ChannelFailures):
        raise error.derive(error.exceptions)
    if error is not None:
        raise error


_NEVER = Flag()
_PENDING = ("", "drain", "stop", "exit")
_RUNS_NO_TRANSITION = "engine.alone(…) is for listeners of a transition, in the thread that runs it"
_FROM_A_LISTENER = "a listener of the transition that runs now asked for it"
