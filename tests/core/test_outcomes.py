"""
What start, stop and exit come to, asked for anywhere and at any moment, cell by cell.

The table here is the one of `docs/concurrency.md`, with the facts beside its words.
"""

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from actors import LIMIT, Call, flatten, wait_blocked, within
from processes import start_script

from engine_bridge import Engine, State, TransitionError
from engine_bridge.core.records import Message, Record, StateChanged

VERBS = ("start", "stop", "exit")
CHANNELS = ("start", "drain", "stop", "exit")
PAGE = Path(__file__).parents[2] / "docs" / "concurrency.md"


class Cell(NamedTuple):
    """
    What became of it.

    Attributes:
        word: As the page says it.
        asked: What the call in question raised, or None.
        other: What the call that was under way raised, or None.
        facts: What was published from the first start to when all is quiet, and the state then.
    """

    word: str
    asked: str | None
    other: str | None
    facts: tuple[str, str]


NEVER = ("", "STOPPED")
ONLY_EXIT = ("exit", "EXITING")
UP = ("start", "STARTED")
DRAINS = ("start drain", "STARTED")
DOWN = ("start drain stop", "STOPPED")
GONE = ("start drain stop exit", "EXITING")
BACK = ("start stop", "STOPPED")
BACK_AND_GONE = ("start stop exit", "EXITING")
UP_AGAIN = ("start drain stop start", "STARTED")
REBORN = ("start drain stop exit start", "STARTED")
REFUSED, FAILED, ABORTED = "TransitionError", "ValueError", "StartAborted"

# Asked from another thread; what is under way is held until the call waits or has returned.
# fmt: off
ELSEWHERE = {
    ("start", "STOPPED"): Cell("runs", None, None, UP),
    ("start", "STARTING"): Cell("shares", None, None, UP),
    ("start", "STOPPING, roll back"): Cell("shares", FAILED, FAILED, BACK),
    ("start", "STARTED"): Cell("nothing", None, None, UP),
    ("start", "STARTED, drain announced"): Cell("waits, then runs", None, None, UP_AGAIN),
    ("start", "STARTED, draining to stop"): Cell("waits, then runs", None, None, UP_AGAIN),
    ("start", "STARTED, draining to exit"): Cell("refused", REFUSED, None, GONE),
    ("start", "STOPPING, to stop"): Cell("waits, then runs", None, None, UP_AGAIN),
    ("start", "STOPPING, to exit"): Cell("refused", REFUSED, None, GONE),
    ("start", "EXITING, running"): Cell("refused", REFUSED, None, GONE),
    ("start", "EXITING, complete"): Cell("a new life", None, None, REBORN),

    ("stop", "STOPPED"): Cell("nothing", None, None, NEVER),
    ("stop", "STARTING"): Cell("waits, then runs", None, None, DOWN),
    ("stop", "STOPPING, roll back"): Cell("waits", None, FAILED, BACK),
    ("stop", "STARTED"): Cell("runs", None, None, DOWN),
    ("stop", "STARTED, drain announced"): Cell("runs", None, None, DOWN),
    ("stop", "STARTED, draining to stop"): Cell("shares", None, None, DOWN),
    ("stop", "STARTED, draining to exit"): Cell("shares", None, None, GONE),
    ("stop", "STOPPING, to stop"): Cell("shares", None, None, DOWN),
    ("stop", "STOPPING, to exit"): Cell("shares", None, None, GONE),
    ("stop", "EXITING, running"): Cell("shares", None, None, GONE),
    ("stop", "EXITING, complete"): Cell("nothing", None, None, GONE),

    ("exit", "STOPPED"): Cell("runs", None, None, ONLY_EXIT),
    ("exit", "STARTING"): Cell("aborts the start, then runs", None, ABORTED, BACK_AND_GONE),
    ("exit", "STOPPING, roll back"): Cell("waits, then runs", None, FAILED, BACK_AND_GONE),
    ("exit", "STARTED"): Cell("runs", None, None, GONE),
    ("exit", "STARTED, drain announced"): Cell("runs", None, None, GONE),
    ("exit", "STARTED, draining to stop"): Cell("waits, then runs", None, None, GONE),
    ("exit", "STARTED, draining to exit"): Cell("shares", None, None, GONE),
    ("exit", "STOPPING, to stop"): Cell("waits, then runs", None, None, GONE),
    ("exit", "STOPPING, to exit"): Cell("shares", None, None, GONE),
    ("exit", "EXITING, running"): Cell("shares", None, None, GONE),
    ("exit", "EXITING, complete"): Cell("nothing", None, None, GONE),
}
# fmt: on

# Asked by a listener of the transition that is under way. What it is held by asks.
# fmt: off
INSIDE = {
    ("start", "STARTING"): Cell("refused", REFUSED, None, UP),
    ("start", "STOPPING, roll back"): Cell("refused", REFUSED, FAILED, BACK),
    ("start", "STARTED, drain announced"): Cell("refused", REFUSED, None, DRAINS),
    ("start", "STARTED, draining to stop"): Cell("refused", REFUSED, None, DOWN),
    ("start", "STARTED, draining to exit"): Cell("refused", REFUSED, None, GONE),
    ("start", "STOPPING, to stop"): Cell("refused", REFUSED, None, DOWN),
    ("start", "STOPPING, to exit"): Cell("refused", REFUSED, None, GONE),
    ("start", "EXITING, running"): Cell("refused", REFUSED, None, GONE),

    ("stop", "STARTING"): Cell("follows", None, None, DOWN),
    ("stop", "STOPPING, roll back"): Cell("nothing", None, FAILED, BACK),
    ("stop", "STARTED, drain announced"): Cell("follows", None, None, DOWN),
    ("stop", "STARTED, draining to stop"): Cell("nothing", None, None, DOWN),
    ("stop", "STARTED, draining to exit"): Cell("nothing", None, None, GONE),
    ("stop", "STOPPING, to stop"): Cell("nothing", None, None, DOWN),
    ("stop", "STOPPING, to exit"): Cell("nothing", None, None, GONE),
    ("stop", "EXITING, running"): Cell("nothing", None, None, GONE),

    ("exit", "STARTING"): Cell("follows", None, None, GONE),
    ("exit", "STOPPING, roll back"): Cell("follows", None, FAILED, BACK_AND_GONE),
    ("exit", "STARTED, drain announced"): Cell("follows", None, None, GONE),
    ("exit", "STARTED, draining to stop"): Cell("follows", None, None, GONE),
    ("exit", "STARTED, draining to exit"): Cell("nothing", None, None, GONE),
    ("exit", "STOPPING, to stop"): Cell("follows", None, None, GONE),
    ("exit", "STOPPING, to exit"): Cell("nothing", None, None, GONE),
    ("exit", "EXITING, running"): Cell("nothing", None, None, GONE),
}
# fmt: on

# How to get there: the verb that is under way, and the channel whose listener holds it.
HELD = {
    "STARTING": ("start", "start"),
    "STOPPING, roll back": ("start", "stop"),
    "STARTED, drain announced": ("drain", "drain"),
    "STARTED, draining to stop": ("stop", "drain"),
    "STARTED, draining to exit": ("exit", "drain"),
    "STOPPING, to stop": ("stop", "stop"),
    "STOPPING, to exit": ("exit", "stop"),
    "EXITING, running": ("exit", "exit"),
}


class Scene:
    """An engine whose channels are noted, and which can be held inside a transition."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.published: list[str] = []
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.blocked: list[Call] = []
        for channel in CHANNELS:
            self.engine.subscribe(
                channel, lambda channel=channel: self.published.append(channel), 1
            )

    def fail_start(self) -> None:
        """Have a later start listener fail: what started is rolled back."""

        def fail() -> None:
            raise ValueError("a failing start")

        self.engine.subscribe("start", fail, 99)

    def hold(self, when: str) -> Call | None:
        """Bring the engine there and hold it; return the call that is under way, if one is."""
        if when in ("STOPPED", "STARTED", "STARTED, drain announced", "EXITING, complete"):
            self.be(when)
            return None
        verb, channel = HELD[when]
        self.prepare(when)

        def wait() -> None:
            self.held.set()
            self.go_on.wait(LIMIT)

        self.engine.subscribe(channel, wait)
        under_way = Call(getattr(self.engine, verb))
        assert self.held.wait(LIMIT)
        return under_way

    def prepare(self, when: str) -> None:
        """Be where the verb that leads to *when* can be called."""
        if when == "STOPPING, roll back":
            self.fail_start()
        elif when != "STARTING":
            self.engine.start()

    def be(self, when: str) -> None:
        """Be in a state in which nothing is under way."""
        if when != "STOPPED":
            self.engine.start()
        if when == "STARTED, drain announced":
            self.engine.drain()
        if when == "EXITING, complete":
            self.engine.exit()

    def cell(self, word: str, asked: BaseException | None, other: BaseException | None) -> Cell:
        """Return what became of it, and leave the engine at its end."""
        facts = " ".join(self.published), str(self.engine.state)
        within(self.engine.exit)
        for each in self.blocked:
            assert each.end().error is None
        return Cell(word, _name(asked), _name(other), facts)


def _name(error: BaseException | None) -> str | None:
    leaves = flatten(error)
    return type(leaves[0]).__name__ if leaves else None


def named(key: tuple[str, ...]) -> str:
    """Return the id of a cell."""
    return " · ".join(key)


# From another thread


@pytest.mark.parametrize(("key", "cell"), ELSEWHERE.items(), ids=map(named, ELSEWHERE))
def test_asked_from_another_thread(key: tuple[str, str], cell: Cell) -> None:
    """Each verb, from another thread at each moment, comes to what the table says."""
    verb, when = key
    scene = Scene()
    under_way = scene.hold(when)
    asked = wait_blocked(Call(getattr(scene.engine, verb)))
    waits = not asked.ended.is_set()
    if under_way is not None:
        assert waits == (cell.word not in ("refused", "nothing"))
    elif waits:  # a drain that was only announced: now the server stops
        scene.engine.stop()
    scene.go_on.set()
    asked.end()
    other = under_way.end().error if under_way else None
    assert scene.cell(cell.word, asked.error, other) == cell


@pytest.mark.parametrize(
    "key", [key for key, cell in ELSEWHERE.items() if cell.word == "refused"], ids=named
)
def test_refused_from_another_thread_names_both_states(key: tuple[str, str]) -> None:
    """A refusal says from where to where it will not go."""
    scene = Scene()
    under_way = scene.hold(key[1])
    with pytest.raises(TransitionError) as caught:
        within(scene.engine.start)
    scene.go_on.set()
    assert under_way
    under_way.end()
    current = key[1].partition(",")[0]
    assert (caught.value.current, caught.value.target) == (current, "STARTING")
    assert f"from {current} to STARTING" in str(caught.value)


def test_start_after_a_drain_that_no_stop_follows_is_refused_in_time() -> None:
    """Where a drain was announced and nobody stops, start() gives up and says after what time."""
    engine = Engine(drain_timeout=0.02, stop_timeout=0.03)
    engine.start()
    engine.drain()
    with pytest.raises(TransitionError, match=r"within 0\.05 s no stop followed") as caught:
        within(engine.start)
    assert caught.value.target == "STARTING"
    assert engine.state is State.STARTED
    engine.exit()


# From a listener of the transition


def asking(scene: Scene, verb: str, errors: list[BaseException | None]) -> Callable[[], None]:
    """Return a sync listener that asks, once."""

    def ask() -> None:
        if not errors:
            errors.append(None)
            with suppress(TransitionError):
                getattr(scene.engine, verb)()
                return
            errors[0] = TransitionError("", "")

    return ask


def asking_async(
    scene: Scene, verb: str, errors: list[BaseException | None]
) -> Callable[[], Awaitable[None]]:
    """Return an async listener that asks, once."""

    async def ask() -> None:
        if not errors:
            errors.append(None)
            await asyncio.sleep(0)
            with suppress(TransitionError):
                await getattr(scene.engine, f"{verb}_async")()
                return
            errors[0] = TransitionError("", "")

    return ask


ASKING: dict[str, Callable[..., Callable[[], Any]]] = {"sync": asking, "async": asking_async}


def call(engine: Engine, verb: str, where: str) -> BaseException | None:
    """Call *verb* in a thread, or on a loop; return what it raises."""
    if where == "thread":
        return Call(getattr(engine, verb)).end().error
    return Call(lambda: asyncio.run(getattr(engine, f"{verb}_async")())).end().error


@pytest.mark.parametrize(("key", "cell"), INSIDE.items(), ids=map(named, INSIDE))
def test_asked_by_a_listener_of_the_transition(key: tuple[str, str], cell: Cell) -> None:
    """Each verb, from each transition's own listener, comes to what the table says."""
    verb, when = key
    for where, how in itertools.product(("thread", "loop"), ASKING):
        scene = Scene()
        errors: list[BaseException | None] = []
        under_way, channel = HELD[when]
        scene.prepare(when)
        scene.engine.subscribe(channel, ASKING[how](scene, verb, errors))
        other = call(scene.engine, under_way, where)
        assert errors, (where, how)
        expected = cell
        if where == "loop" and cell.facts == UP:
            expected = cell._replace(facts=DOWN)  # the end of the loop stops what it started
        assert scene.cell(cell.word, errors[0], other) == expected, (where, how)


def through_worker_thread(engine: Engine, channel: str, ask: Callable[[], None]) -> None:
    """Have a listener of *channel* call *ask* in a worker thread, and await it."""

    async def listener() -> None:
        await asyncio.to_thread(ask)

    engine.subscribe(channel, listener)


def through_user_channel(engine: Engine, channel: str, ask: Callable[[], None]) -> None:
    """Have a listener of *channel* publish on another, on which *ask* listens."""
    engine.subscribe("work", ask)
    engine.subscribe(channel, lambda: engine.publish("work"))


def through_log(engine: Engine, channel: str, ask: Callable[[], None]) -> None:
    """Have a listener of *channel* log; *ask* listens to the log."""
    engine.subscribe("log", lambda msg, level: ask() if msg == "ask" else None)
    engine.subscribe(channel, lambda: engine.log("ask"))


def through_observer(engine: Engine, channel: str, ask: Callable[[], None]) -> None:
    """Have a listener of *channel* log; *ask* observes."""
    engine.observe(lambda record: ask() if record.message() == "ask" else None)
    engine.subscribe(channel, lambda: engine.log("ask"))


@pytest.mark.parametrize(("key", "cell"), INSIDE.items(), ids=map(named, INSIDE))
def test_asked_by_what_a_listener_calls(key: tuple[str, str], cell: Cell) -> None:
    """What a listener publishes, logs or runs in a worker thread is inside the transition too."""
    verb, when = key
    for through in (through_worker_thread, through_user_channel, through_log, through_observer):
        scene = Scene()
        errors: list[BaseException | None] = []
        under_way, channel = HELD[when]
        scene.prepare(when)
        through(scene.engine, channel, asking(scene, verb, errors))
        other = call(scene.engine, under_way, "thread")
        assert errors, through
        assert scene.cell(cell.word, errors[0], other) == cell, through


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
def test_asked_by_an_observer_of_a_new_state(verb: str, state: State) -> None:
    """An observer that asks as soon as it hears of a state never holds the engine up."""
    engine = Engine()
    errors: list[BaseException | None] = []

    @engine.observe
    def ask(record: Record) -> None:
        if isinstance(record, StateChanged) and record.new == state.name and not errors:
            errors.append(None)
            with suppress(TransitionError):
                getattr(engine, verb)()
                return
            errors[0] = TransitionError("", "")

    Call(engine.start).end()
    Call(engine.stop).end()
    Call(engine.exit).end()
    assert errors == [None] if verb != "start" else [_name(each) for each in errors] == [REFUSED]
    assert engine.state is State.EXITING


# From listeners that belong to no transition, while STARTED

OUTSIDE = {
    "start": Cell("nothing", None, None, UP),
    "stop": Cell("runs", None, None, DOWN),
    "exit": Cell("runs", None, None, GONE),
}
MEDIA = ("graceful", "log", "main", "before_request", "after_request", "work", "observer")


def publish(scene: Scene, medium: str, ask: Callable[..., Any]) -> None:
    """Have *ask* called by *medium*, in a thread that has no part in a transition."""
    engine = scene.engine
    if medium == "observer":
        engine.observe(lambda record: ask() if isinstance(record, Message) else None)
        within(lambda: engine.log("ask"))
    elif medium == "log":
        engine.subscribe("log", lambda msg, level: ask() if msg == "ask" else None)
        within(lambda: engine.log("ask"))
    elif medium == "main":
        asked = threading.Event()

        def main() -> None:
            ask()
            asked.set()

        engine.subscribe("main", main)
        scene.blocked.append(Call(lambda: engine.block(0.001)))
        assert asked.wait(LIMIT)
    else:
        engine.subscribe(medium, ask)
        within(lambda: engine.publish(medium))


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize(("verb", "cell"), OUTSIDE.items())
def test_asked_by_a_listener_of_no_transition(verb: str, cell: Cell, medium: str) -> None:
    """A listener of any other channel, and an observer, may call each verb as any thread may."""
    scene = Scene()
    errors: list[BaseException | None] = []
    scene.engine.start()
    publish(scene, medium, asking(scene, verb, errors))
    assert scene.cell(cell.word, errors[0], None) == cell


@pytest.mark.parametrize("where", ["engine's loop", "application's loop"])
@pytest.mark.parametrize(("verb", "cell"), OUTSIDE.items())
def test_asked_by_an_async_listener_of_no_transition(verb: str, cell: Cell, where: str) -> None:
    """An async listener of a user channel may await each verb, on whichever loop it runs."""
    scene = Scene()
    errors: list[BaseException | None] = []
    scene.engine.subscribe("work", asking_async(scene, verb, errors))

    async def main() -> None:
        await scene.engine.start_async()
        await scene.engine.publish_async("work")

    if where == "application's loop":
        within(lambda: asyncio.run(main()))
        if verb == "start":  # the end of the loop has stopped it
            cell = cell._replace(facts=DOWN)
    else:
        scene.engine.start()
        within(lambda: scene.engine.publish("work"))
    assert scene.cell(cell.word, errors[0], None) == cell


# By a signal

# A script with a SignalHandler gets SIGTERM: in the listener of the channel that HELD says, or
# where nothing is under way. Its exit code and what was published in all, when the main thread
# runs the transition, and when it waits in `block` while another thread runs it.
# fmt: off
SIGNALLED = {
    "STOPPED":                    ((-15, ""),                     (0, "exit")),
    "STARTING":                   ((143, "start stop exit"),      (0, "start stop exit")),
    "STOPPING, roll back":        ((143, "start stop exit"),      (0, "start stop exit")),
    "STARTED":                    ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "STARTED, drain announced":   ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "STARTED, draining to stop":  ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "STARTED, draining to exit":  ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "STOPPING, to stop":          ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "STOPPING, to exit":          ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "EXITING, running":           ((143, "start drain stop exit"), (0, "start drain stop exit")),
    "EXITING, complete":          ((-15, "start drain stop exit"), None),
}
# fmt: on

SCRIPT = """
import os, signal, sys, threading
from journal import record
from engine_bridge import Engine
from engine_bridge.core.records import SignalCaught
from engine_bridge.plugins.signals import SignalHandler

verb, channel, before, fails, place = sys.argv[1:]
engine = Engine()
SignalHandler(engine).subscribe()
caught, held = threading.Event(), []
for name in ("start", "drain", "stop", "exit"):
    engine.subscribe(name, lambda name=name: record(name), 1)

@engine.observe
def note(each):
    if isinstance(each, SignalCaught):
        caught.set()

def send():
    if not held:
        held.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught.wait(10)
        if engine.state.name == "STARTING":
            assert engine.aborting.wait(10)

if fails:
    @engine.subscribe("start", priority=99)
    def fail():
        raise ValueError
for each in before.split():
    getattr(engine, each)()

def act():
    if place == "block":
        while not engine.notes.readers:
            pass
    if verb:
        try:
            getattr(engine, verb)()
        except Exception as exc:
            print(type(exc).__name__)
    else:
        send()

if channel:
    engine.subscribe(channel, send)
if place == "block":
    thread = threading.Thread(target=act)
    thread.start()
    try:
        engine.block()
    finally:
        thread.join()
else:
    act()
    print("went on")
"""


@pytest.mark.parametrize("place", ["main", "block"])
@pytest.mark.parametrize(("when", "outcomes"), SIGNALLED.items(), ids=SIGNALLED)
def test_asked_by_a_signal(
    when: str, outcomes: tuple[tuple[int, str], tuple[int, str] | None], place: str
) -> None:
    """SIGTERM at each moment of a script ends it: no deadlock, and no listener runs twice."""
    outcome = outcomes[place == "block"]
    if outcome is None:
        return  # `block` has returned, and the script with it
    verb, channel = HELD.get(when, ("", ""))
    before = {
        "STOPPED": "", "STARTING": "", "STOPPING, roll back": "",
        "EXITING, complete": "start exit",
        "STARTED, drain announced": "start" if verb else "start drain",
    }.get(when, "start")  # fmt: skip
    fails = "fails" if when == "STOPPING, roll back" else ""
    with start_script(SCRIPT, verb, channel, before, fails, place) as process:
        code = process.wait_exit(LIMIT)
    assert (code, " ".join(process.published().get(process.pid, []))) == outcome


# As the page has it


NONE = "\N{EN DASH}"


def rows() -> dict[str, list[str]]:
    """Return the rows of the page's table, by the moment that they tell of."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    return {line[0]: line[1:] for line in lines if line[0] in SIGNALLED}


@pytest.mark.parametrize("when", SIGNALLED)
def test_page_tells_the_same(when: str) -> None:
    """The table in docs/concurrency.md has a row for each moment, with the words of this one."""
    tables = [(verb, table) for verb in VERBS for table in (ELSEWHERE, INSIDE)]
    words = [table[verb, when].word if (verb, when) in table else NONE for verb, table in tables]
    codes = [str(outcome[0]) if outcome else NONE for outcome in SIGNALLED[when]]
    assert rows()[when] == [*words, " / ".join(codes).replace("-15", "killed")]
