"""
The engine against a model, under commands that Hypothesis draws.

The model knows what each command must publish, in which order, and what it must raise. For
commands from several threads at once it only knows what must hold in any order.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from actors import at_once, flatten, within
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from engine_bridge import ChannelFailures, Engine, StartAborted, State, TransitionError
from engine_bridge.core.records import Record, StateChanged

LIFECYCLE = ("start", "drain", "stop", "exit")
VERBS = ("start", "stop", "exit", "graceful")
# Which transition a channel belongs to begins with this state.
BEGINS = {"start": "STARTING", "drain": "STARTED", "stop": "STOPPING", "exit": "EXITING"}


class Actor:
    """An owner of listeners, or of plain functions; it tells the witness of each call."""

    def __init__(
        self,
        witness: "Witness",
        number: int,
        channels: Sequence[str],
        failing: Sequence[str],
        kind: str,
    ) -> None:
        self.number = number
        self.channels = tuple(channels)
        self.failing = set(failing)
        self.kind = kind
        self.owns = kind != "function"
        self.witness = witness
        self.listeners = {channel: self._listener(channel) for channel in self.channels}

    def __repr__(self) -> str:
        return f"Actor({self.number}, {self.channels}, failing={self.failing}, {self.kind!r})"

    def _listener(self, channel: str) -> Any:
        if self.kind == "function":
            return lambda: self.act(channel)
        return getattr(self, f"{channel}_async" if self.kind == "async" else channel)

    def act(self, channel: str) -> None:
        self.witness.called(self, channel)
        if channel in self.failing:
            raise Failure(self.number, channel)
        self.witness.completed(self, channel)

    def start(self) -> None:
        self.act("start")

    def drain(self) -> None:
        self.act("drain")

    def stop(self) -> None:
        self.act("stop")

    def exit(self) -> None:
        self.act("exit")

    def graceful(self) -> None:
        self.act("graceful")

    async def start_async(self) -> None:
        self.act("start")

    async def drain_async(self) -> None:
        self.act("drain")

    async def stop_async(self) -> None:
        self.act("stop")

    async def exit_async(self) -> None:
        self.act("exit")

    async def graceful_async(self) -> None:
        self.act("graceful")


class Failure(Exception):
    pass


class Witness:
    """Sees what happens, and what must never happen."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.wrong: list[str] = []
        self.started: set[Actor] = set()  # in this life, completely
        self.stopped: set[Actor] = set()
        self.let_go: set[int] = set()  # who got `exit` of the roll-back of the last start
        self.state = ""
        self.ran: dict[str, set[int]] = {channel: set() for channel in LIFECYCLE}

    def record(self, record: Record) -> None:
        """Note when a transition begins: from then on each of its listeners may run once more."""
        if not isinstance(record, StateChanged):
            return
        self.state = record.new
        for channel, state in BEGINS.items():
            if state == record.new and channel != "exit":
                self.ran[channel] = set()
        if record.new == "STARTING":
            self.started, self.stopped = set(), set()
            self.ran["exit"], self.let_go = set(), set()
        if record.new == "STOPPED" and record.old == "STOPPING":
            self._check_life()

    def called(self, actor: Actor, channel: str) -> None:
        """Note a call."""
        self.calls.append((actor.number, channel))
        if channel not in LIFECYCLE:
            return
        if actor.number in self.ran[channel]:
            self.wrong.append(f"{actor} was called twice by one {channel}")
        self.ran[channel].add(actor.number)
        if channel == "exit" and self.state == "STOPPING":
            self.let_go.add(actor.number)
        if channel == "stop":
            if actor.owns and "start" in actor.channels and actor not in self.started:
                self.wrong.append(f"{actor} was stopped and had not started")
            self.stopped.add(actor)

    def completed(self, actor: Actor, channel: str) -> None:
        """Note that a call did not fail."""
        if channel == "start":
            self.started.add(actor)

    def _check_life(self) -> None:
        """See that whoever started and listens to `stop` has been stopped."""
        for actor in self.started - self.stopped:
            if "stop" in actor.channels and actor in self.present:
                self.wrong.append(f"{actor} started and was not stopped")

    present: frozenset[Actor] = frozenset()


class Expected(NamedTuple):
    """What the model says of one command."""

    calls: list[tuple[int, str]]
    failures: list[tuple[int, str]]
    state: State


class EngineMachine(RuleBasedStateMachine):
    """Commands, the model, and what must always hold."""

    actors: Bundle[Actor] = Bundle("actors")

    @initialize()
    def begin(self) -> None:
        self.engine = Engine()
        self.witness = Witness()
        self.engine.observe(self.witness.record)
        self.state = State.STOPPED
        self.present: dict[Actor, dict[str, tuple[float, int]]] = {}
        self.sequence = 0

    # The model

    def order(self, channel: str) -> list[Actor]:
        """Return who listens to *channel*, in the order in which they are to run."""
        listening = [actor for actor, places in self.present.items() if channel in places]
        return sorted(listening, key=lambda actor: self.present[actor][channel])

    def ending(self, started: set[Actor]) -> list[tuple[int, str]]:
        """Return the `stop` calls for a life in which *started* started."""
        return [
            (actor.number, "stop")
            for actor in self.order("stop")
            if not actor.owns or "start" not in actor.channels or actor in started
        ]

    def expect(self, verb: str) -> Expected:
        """Say what *verb* must do now."""
        if verb == "graceful":
            calls = [(actor.number, "graceful") for actor in self.order("graceful")]
            return self.expected(calls, self.state)
        if verb == "start":
            return self.expect_start()
        calls = []
        state = self.state
        if state is State.STARTED:
            calls += [(actor.number, "drain") for actor in self.order("drain")]
            calls += self.ending(self.witness.started)
            state = State.STOPPED
        if verb == "exit" and state is not State.EXITING:
            calls += [
                (actor.number, "exit")
                for actor in self.order("exit")
                if not actor.owns or actor.number not in self.witness.let_go
            ]
            state = State.EXITING
        return self.expected(calls, state)

    def expect_start(self) -> Expected:
        """Say what start must do now: everything, or all up to a failure and back."""
        if self.state is State.STARTED:
            return Expected([], [], self.state)
        calls: list[tuple[int, str]] = []
        started: set[Actor] = set()
        for actor in self.order("start"):
            calls.append((actor.number, "start"))
            if "start" in actor.failing:
                calls += self.ending(started)
                calls += [
                    (other.number, "exit")
                    for other in self.order("exit")
                    if other.owns and other in started and "stop" not in other.channels
                ]
                return self.expected(calls, State.STOPPED)
            started.add(actor)
        return self.expected(calls, State.STARTED)

    def expected(self, calls: list[tuple[int, str]], state: State) -> Expected:
        """Add which of *calls* fail."""
        failing = {(actor.number, channel) for actor in self.present for channel in actor.failing}
        return Expected(calls, [call for call in calls if call in failing], state)

    # Commands

    @rule(
        target=actors,
        channels=st.lists(st.sampled_from([*LIFECYCLE, "graceful"]), min_size=1, unique=True),
        failing=st.lists(st.sampled_from([*LIFECYCLE, "graceful"]), max_size=2, unique=True),
        fails=st.booleans(),
        kind=st.sampled_from(["method", "method", "function", "async"]),
        priority=st.sampled_from([None, 10, 50, 90]),
    )
    def subscribe(
        self,
        channels: list[str],
        failing: list[str],
        fails: bool,
        kind: str,
        priority: float | None,
    ) -> Actor:
        """Have somebody new listen."""
        self.sequence += 1
        actor = Actor(self.witness, self.sequence, channels, failing if fails else [], kind)
        self.present[actor] = {}
        for channel, listener in actor.listeners.items():
            self.engine.subscribe(channel, listener, priority)
            self.present[actor][channel] = (50 if priority is None else priority, self.sequence)
        return actor

    @rule(actor=consumes(actors))
    def unsubscribe(self, actor: Actor) -> None:
        """Have somebody listen no more."""
        for channel, listener in actor.listeners.items():
            self.engine.unsubscribe(channel, listener)
        del self.present[actor]

    @rule(target=actors, actor=consumes(actors))
    def mend(self, actor: Actor) -> Any:
        """Have somebody fail no more."""
        actor.failing.clear()
        return multiple(actor)

    @rule(verb=st.sampled_from(VERBS))
    def command(self, verb: str) -> None:
        """Do one thing, and see that it comes to what the model says."""
        self.carry_out(verb, self.expect(verb))

    @rule()
    def new_life(self) -> None:
        """Exit, and start again."""
        self.carry_out("exit", self.expect("exit"))
        self.carry_out("start", self.expect("start"))

    @rule(verb=st.sampled_from(("stop", "exit")))
    def start_that_is_to_end(self, verb: str) -> None:
        """Start with a listener, before all others, that asks for the end: it follows the start."""
        ask = self.engine.subscribe("start", getattr(self.engine, verb), -1)
        first = self.expect("start")
        if self.state is State.STARTED:
            self.carry_out("start", first)
        else:
            expected = first
            if first.state is State.STARTED or verb == "exit":
                started = {actor for actor in self.present if "start" in actor.channels}
                self.witness.started, before = started, self.witness.started
                self.witness.let_go = {
                    number for number, channel in first.calls if channel == "exit"
                }
                self.state, was = first.state, self.state
                second = self.expect(verb)
                self.witness.started, self.state = before, was
                calls = first.calls + second.calls
                failures = first.failures or second.failures  # the first that failed is raised
                expected = Expected(calls, failures, second.state)
            self.carry_out("start", expected)
        self.engine.unsubscribe("start", ask)

    @rule(channel=st.sampled_from(LIFECYCLE))
    def start_from_within(self, channel: str) -> None:
        """Live through a life in which a listener asks for a start: refused, naming both states."""
        told: list[TransitionError] = []

        def ask() -> None:
            try:
                self.engine.start()
            except TransitionError as exc:
                told.append(exc)

        self.engine.subscribe(channel, ask, -1)
        for verb in ("exit", "start", "exit"):
            self.carry_out(verb, self.expect(verb))
        self.engine.unsubscribe(channel, ask)
        current = {"start": "STARTING", "drain": "STARTED", "stop": "STOPPING", "exit": "EXITING"}
        for error in told:
            assert (error.current, error.target) == (current[channel], "STARTING")
            assert f"from {current[channel]} to STARTING" in str(error)

    @rule(verbs=st.lists(st.sampled_from(VERBS), min_size=2, max_size=6))
    def storm(self, verbs: list[str]) -> None:
        """Do several things at once; whatever their order, they end and are told what is true."""
        self.witness.present = frozenset(self.present)
        outcomes = at_once([getattr(self.engine, verb) for verb in verbs])
        for verb, outcome in zip(verbs, outcomes, strict=True):
            assert outcome is None or isinstance(
                outcome, (ChannelFailures, TransitionError, StartAborted)
            ), outcome
            if isinstance(outcome, TransitionError):
                assert verb == "start"
                assert outcome.target == "STARTING"
                assert outcome.current in State.__members__
                assert f"from {outcome.current} to STARTING" in str(outcome)
        assert self.engine.state in (State.STOPPED, State.STARTED, State.EXITING)
        if "exit" in verbs and "start" not in verbs:
            assert self.engine.state is State.EXITING
        self.state = self.engine.state
        self.witness.calls.clear()

    def carry_out(self, verb: str, expected: Expected) -> None:
        """Do *verb* and compare."""
        self.witness.present = frozenset(self.present)
        error: BaseException | None = None
        try:
            within(getattr(self.engine, verb))
        except ChannelFailures as exc:
            error = exc
        assert self.witness.calls == expected.calls
        assert [each.args for each in flatten(error)] == expected.failures
        assert self.engine.state is expected.state
        self.state = expected.state
        self.witness.calls.clear()

    # What must always hold

    @invariant()
    def nothing_is_wrong(self) -> None:
        """Nobody was called twice, stopped without a start, or started without a stop."""
        if hasattr(self, "witness"):
            assert not self.witness.wrong

    @invariant()
    def engine_is_where_the_model_is(self) -> None:
        """The state is the model's, and nothing is under way."""
        if hasattr(self, "engine"):
            assert self.engine.state is self.state
            assert not self.engine.in_transition

    def teardown(self) -> None:
        for verb in ("exit", "start", "exit"):  # a start ends the loop of publishes before it
            with suppress(ChannelFailures):
                within(getattr(self.engine, verb))


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Have threads take turns often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("tiny_switch_interval")
def test_engine_holds_against_the_model(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is commanded, in whatever order and by how many threads, the model holds."""
    caplog.set_level(logging.CRITICAL, "engine_bridge")  # thousands of failures are meant
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            deadline=None,
            max_examples=60,
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),  # threads take the time that they take
        ),
    )
