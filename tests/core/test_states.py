import pytest
from actors import within

from engine_bridge import ChannelFailures, Engine, State, TransitionError
from engine_bridge.core.records import Record, StateChanged
from engine_bridge.core.states import TRANSITIONS

EDGES = {(old, new) for old, ways in TRANSITIONS.items() for new in ways}
MISSING = sorted(
    {(old, new) for old in State for new in State} - EDGES, key=lambda edge: [s.name for s in edge]
)


def walk(engine: Engine) -> None:
    """Take every way that there is: a good start, a failing one, stop, exit, and a new life."""
    engine.start()
    engine.stop()
    fail = engine.subscribe("start", lambda: 1 / 0)
    with pytest.raises(ChannelFailures):
        engine.start()
    engine.unsubscribe("start", fail)
    engine.exit()
    engine.start()
    engine.exit()


def at(engine: Engine, state: State, act: "Act") -> None:
    """Bring *engine* to *state* by its verbs, and do *act* there."""
    if state is State.STOPPED:
        act()
    elif state is State.STARTED:
        engine.start()
        act()
    else:
        channel = {State.STARTING: "start", State.STOPPING: "stop", State.EXITING: "exit"}[state]
        engine.subscribe(channel, act)
        engine.start()
    engine.exit()


class Act:
    """Asks for *target* without a way there, and keeps what it was told."""

    def __init__(self, engine: Engine, target: State) -> None:
        self.engine = engine
        self.target = target
        self.error: TransitionError | None = None
        self.found: State | None = None

    def __call__(self) -> None:
        self.found = self.engine.state
        try:
            if self.target is State.STARTING and self.found is not State.STARTED:
                self.engine.start()
            else:  # no verb asks for it: the engine's one place to write the state must refuse
                self.engine._set_state(self.target)
        except TransitionError as exc:
            self.error = exc


def test_table_names_every_state() -> None:
    """Each state has its row, and every state but none is left for good."""
    assert set(TRANSITIONS) == set(State)
    assert all(TRANSITIONS.values())


def test_every_way_of_the_table_is_taken_and_no_other() -> None:
    """The ways that an engine takes, over all its verbs, are those of the table."""
    engine = Engine()
    taken: set[tuple[State, State]] = set()

    @engine.observe
    def note(record: Record) -> None:
        if isinstance(record, StateChanged):
            taken.add((State[record.old], State[record.new]))

    walk(engine)
    assert taken == EDGES


@pytest.mark.parametrize(("old", "new"), MISSING, ids=lambda state: state.name)
def test_way_that_the_table_lacks_is_refused(old: State, new: State) -> None:
    """A way that the table lacks is refused; attributes and message name both states."""
    engine = Engine()
    act = Act(engine, new)
    within(lambda: at(engine, old, act))
    assert act.found is old
    assert act.error is not None
    assert (act.error.current, act.error.target) == (old.name, new.name)
    assert f"from {old.name} to {new.name}" in str(act.error)


@pytest.mark.parametrize("state", State)
def test_state_reads_as_its_name(state: State) -> None:
    """A state's text is its name, so that records and messages need no more."""
    assert str(state) == state.name == state.value
