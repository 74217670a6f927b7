import asyncio
import itertools
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from actors import Call, noting

from engine_bridge import ChannelFailures, Engine, EngineError
from engine_bridge.core.errors import ListenerError, WouldDeadlock

PUBLISHES = 1_000_000


# Order


def test_order_is_priority_then_subscription(notes: list[str]) -> None:
    """Listeners run by priority; those of equal priority in the order of their subscription."""
    engine = Engine()
    plan = [("a", 50), ("b", 10), ("c", None), ("d", 10), ("e", 90), ("f", 50)]
    for word, priority in plan:
        engine.subscribe("work", noting(notes, word), priority)
    engine.publish("work")
    assert notes == ["b", "d", "a", "c", "f", "e"]


def test_order_of_many_equals_is_that_of_subscription(notes: list[str]) -> None:
    """A hundred listeners of equal priority run in the order in which they subscribed."""
    engine = Engine()
    words = [str(number) for number in range(100)]
    for word in words:
        engine.subscribe("work", noting(notes, word))
    engine.publish("work")
    assert notes == words


@pytest.mark.parametrize("channel", ["start", "stop", "exit", "drain"])
def test_order_on_lifecycle_channels_is_the_same(channel: str, notes: list[str]) -> None:
    """Lifecycle channels run ascending too, `stop` and `exit` included."""
    engine = Engine()
    for word, priority in [("late", 80), ("first", 5), ("second", 5), ("default", None)]:
        engine.subscribe(channel, noting(notes, word), priority)
    engine.start()
    engine.exit()
    assert notes == ["first", "second", "default", "late"]


@pytest.mark.parametrize("channel", ["work", "start"])
def test_priority_may_be_any_number(channel: str, notes: list[str]) -> None:
    """Priorities are not bound to 0–100: negative, fractional and large ones compare."""
    engine = Engine()
    for priority in (250, 0.5, -1, 1e9, 50):
        engine.subscribe(channel, noting(notes, str(priority)), priority)
    engine.publish(channel)
    assert notes == ["-1", "0.5", "50", "250", str(1e9)]


def test_priority_attribute_is_the_default(notes: list[str]) -> None:
    """Without the argument a listener's own `priority` holds; the argument wins over it."""
    engine = Engine()
    early, overruled = noting(notes, "early"), noting(notes, "overruled")
    early.priority = overruled.priority = 20  # type: ignore[attr-defined]  # that is the interface
    engine.subscribe("work", noting(notes, "default"))
    engine.subscribe("work", overruled, priority=70)
    engine.subscribe("work", early)
    engine.publish("work")
    assert notes == ["early", "default", "overruled"]


def test_priority_attribute_of_a_method_counts(notes: list[str]) -> None:
    """A bound method's `priority` is that of its function."""

    class Server:
        def start(self) -> None:
            notes.append("server")

        start.priority = 75  # type: ignore[attr-defined]  # that is the interface

    engine = Engine()
    engine.subscribe("work", Server().start)
    engine.subscribe("work", noting(notes, "default"))
    engine.publish("work")
    assert notes == ["default", "server"]


# Subscribing


def test_subscribing_again_keeps_the_place_and_takes_the_priority(notes: list[str]) -> None:
    """A second subscription runs once, at the new priority, at its first place among equals."""
    engine = Engine()
    a, b, c = (noting(notes, word) for word in "abc")
    for listener in (a, b, c):
        engine.subscribe("work", listener)
    engine.subscribe("work", a)
    engine.publish("work")
    assert notes == ["a", "b", "c"]
    notes.clear()
    engine.subscribe("work", a, 60)
    engine.publish("work")
    assert notes == ["b", "c", "a"]
    notes.clear()
    engine.subscribe("work", a, 50)
    engine.publish("work")
    assert notes == ["a", "b", "c"]


def test_method_subscribed_again_is_known_by_its_owner(notes: list[str]) -> None:
    """Bound methods are new objects each time; the same one subscribed twice runs once."""

    class Owner:
        def work(self) -> None:
            notes.append("work")

    engine, owner = Engine(), Owner()
    engine.subscribe("work", owner.work)
    engine.subscribe("work", owner.work)
    engine.publish("work")
    assert notes == ["work"]
    engine.unsubscribe("work", owner.work)
    engine.publish("work")
    assert notes == ["work"]


def test_subscribe_returns_the_function() -> None:
    """As a call and as a decorator, with and without priority, the function comes back as it is."""
    engine = Engine()

    def listener() -> str:
        return "heard"

    assert engine.subscribe("a", listener) is listener
    assert engine.subscribe("b")(listener) is listener
    assert engine.subscribe("c", priority=60)(listener) is listener
    assert [engine.publish(channel) for channel in "abc"] == [["heard"]] * 3


def test_decorators_stack(notes: list[str]) -> None:
    """One function may be decorated for several channels."""
    engine = Engine()

    @engine.subscribe("a")
    @engine.subscribe("b", priority=10)
    def listener() -> None:
        notes.append("heard")

    engine.publish("a")
    engine.publish("b")
    assert notes == ["heard", "heard"]


def test_unsubscribed_listener_runs_no_more(notes: list[str]) -> None:
    """Unsubscribing ends it on that channel alone; the others keep their order."""
    engine = Engine()
    a, b, c = (noting(notes, word) for word in "abc")
    for listener in (a, b, c):
        engine.subscribe("work", listener)
    engine.subscribe("play", b)
    engine.unsubscribe("work", b)
    engine.publish("work")
    assert notes == ["a", "c"]
    engine.publish("play")
    assert notes == ["a", "c", "b"]


def test_unsubscribing_a_stranger_does_nothing() -> None:
    """A listener that was never subscribed, and a channel that nobody knows, are no error."""
    engine = Engine()
    engine.unsubscribe("nowhere", print)
    engine.subscribe("work", len)
    engine.unsubscribe("work", print)
    assert engine.publish("work", "abc") == [3]


def test_listeners_are_told_by_channel_in_order(notes: list[str]) -> None:
    """`listeners` names who listens to what; a channel that everybody left is not there."""
    engine = Engine()
    late, early = noting(notes, "late"), noting(notes, "early")
    engine.subscribe("work", late)
    engine.subscribe("work", early, 10)
    engine.subscribe("rest", late)
    engine.unsubscribe("rest", late)
    found = engine.listeners
    assert list(found) == ["work"]
    assert [(each.call, each.order[0]) for each in found["work"]] == [(early, 10), (late, 50)]


def test_listener_that_leaves_and_comes_back_is_last(notes: list[str]) -> None:
    """Who unsubscribes gives up the place."""
    engine = Engine()
    a, b = noting(notes, "a"), noting(notes, "b")
    engine.subscribe("work", a)
    engine.subscribe("work", b)
    engine.unsubscribe("work", a)
    engine.subscribe("work", a)
    engine.publish("work")
    assert notes == ["b", "a"]


def test_unhashable_callables_are_listeners(notes: list[str]) -> None:
    """A listener needs no hash: subscribe, subscribe again, publish and unsubscribe all work."""

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]  # the point

        def __call__(self) -> None:
            notes.append("heard")

    engine, listener = Engine(), Unhashable()
    engine.subscribe("work", listener)
    engine.subscribe("work", listener, 10)
    engine.publish("work")
    engine.unsubscribe("work", listener)
    engine.publish("work")
    assert notes == ["heard"]


@pytest.mark.parametrize("wrong", ["start", 7, [len], object()])
def test_listener_that_is_not_callable_gets_a_sentence(wrong: Any) -> None:
    """What cannot be called is refused at once, in a sentence with channel and object in it."""
    engine = Engine()
    with pytest.raises(ListenerError) as caught:
        engine.subscribe("work", wrong)
    assert isinstance(caught.value, (EngineError, TypeError))
    assert str(caught.value).count("\n") == 0
    assert "'work'" in str(caught.value)
    assert repr(wrong) in str(caught.value)
    assert engine.publish("work") == []


def test_not_callable_after_the_decorator_is_refused_too() -> None:
    """`subscribe(channel)(something)` looks at what it decorates."""
    with pytest.raises(ListenerError, match="'work'"):
        Engine().subscribe("work")("nothing to call")  # type: ignore[type-var]  # the point


# Publishing


def test_publish_returns_the_results_in_order() -> None:
    """Results come in the order in which the listeners ran, None included."""
    engine = Engine()
    engine.subscribe("work", lambda: "second")
    engine.subscribe("work", lambda: None, 60)
    engine.subscribe("work", lambda: "first", 40)
    assert engine.publish("work") == ["first", "second", None]


def test_publish_hands_its_arguments_on() -> None:
    """Positional and named arguments reach every listener."""
    engine = Engine()
    engine.subscribe("work", lambda *args, **kwargs: (args, kwargs))
    engine.subscribe("work", lambda *args, **kwargs: (args, kwargs))
    assert engine.publish("work", 1, "b", key=[]) == [((1, "b"), {"key": []})] * 2


def test_publish_on_an_unknown_channel_does_nothing() -> None:
    """A channel is made by who subscribes; publishing on any other returns an empty list."""
    engine = Engine()
    assert engine.publish("nobody", 1, a=2) == []
    engine.unsubscribe("work", engine.subscribe("work", print))
    assert engine.publish("work") == []


def test_publish_goes_over_a_snapshot(notes: list[str]) -> None:
    """Who subscribes during a publish is not called in it; who unsubscribes still is."""
    engine = Engine()
    late, last = noting(notes, "late"), noting(notes, "last")

    def change() -> None:
        notes.append("change")
        engine.subscribe("work", late, 99)
        engine.unsubscribe("work", last)

    engine.subscribe("work", change)
    engine.subscribe("work", last)
    engine.publish("work")
    assert notes == ["change", "last"]
    notes.clear()
    engine.publish("work")
    assert notes == ["change", "late"]


def test_publish_may_nest(notes: list[str]) -> None:
    """A listener may publish on its own channel; each publish has its own snapshot and results."""
    engine = Engine()

    def descend(depth: int) -> list[Any]:
        notes.append(str(depth))
        return engine.publish("work", depth - 1) if depth else []

    engine.subscribe("work", descend)
    assert engine.publish("work", 3) == [[[[[]]]]]
    assert notes == ["3", "2", "1", "0"]


def test_observed_publish_behaves_the_same(notes: list[str]) -> None:
    """Order, results, arguments and failures are those of an unobserved publish."""
    engine = Engine()
    engine.observe(lambda record: None)
    engine.subscribe("work", lambda word: word + "2")
    engine.subscribe("work", lambda word: word + "1", 10)
    assert engine.publish("work", "x") == ["x1", "x2"]
    engine.subscribe("work", lambda word: 1 / 0, 20)
    engine.subscribe("work", notes.append, 99)
    with pytest.raises(ChannelFailures) as caught:
        engine.publish("work", "x")
    assert [type(each) for each in caught.value.exceptions] == [ZeroDivisionError]
    assert notes == ["x"]


# Failures


def fail_with_value() -> None:
    """Fail in one way."""
    raise ValueError("bad value")


def fail_with_key() -> None:
    """Fail in another."""
    raise KeyError("bad key")


def failures(engine: Engine) -> ChannelFailures:
    """Return what publishing `work` on *engine* raises."""
    with pytest.raises(ChannelFailures) as caught:
        engine.publish("work")
    return caught.value


def test_failing_listeners_do_not_stop_the_others(notes: list[str]) -> None:
    """All listeners run; one group tells all failures, in the order in which they happened."""
    engine = Engine()
    listeners: list[Callable[[], None]] = [
        noting(notes, "a"), fail_with_value, noting(notes, "b"), fail_with_key, noting(notes, "c"),
    ]  # fmt: skip
    for listener in listeners:
        engine.subscribe("work", listener)
    group = failures(engine)
    assert notes == ["a", "b", "c"]
    assert [repr(each) for each in group.exceptions] == [
        "ValueError('bad value')",
        "KeyError('bad key')",
    ]
    assert isinstance(group, EngineError)
    assert isinstance(group, ExceptionGroup)


def test_failure_is_told_in_one_line() -> None:
    """The message names the channel, the first failure, and how many more there are."""
    engine = Engine()
    engine.subscribe("work", fail_with_value)
    assert "'work' failed: ValueError: bad value" in str(failures(engine))
    engine.subscribe("work", fail_with_key)
    assert "and 1 more" in str(failures(engine))


def test_failures_keep_their_tracebacks() -> None:
    """Each exception in the group has the traceback that leads to its own line."""
    engine = Engine()
    engine.subscribe("work", fail_with_value)
    engine.subscribe("work", fail_with_key)
    group = failures(engine)
    last = [traceback.extract_tb(each.__traceback__)[-1] for each in group.exceptions]
    assert [frame.name for frame in last] == ["fail_with_value", "fail_with_key"]
    assert {frame.filename for frame in last} == {__file__}


def test_parts_of_the_group_keep_its_type() -> None:
    """`subgroup`, `split` and `except*` give ChannelFailures again, never a bare group."""
    engine = Engine()
    engine.subscribe("work", fail_with_value)
    engine.subscribe("work", fail_with_key)
    group = failures(engine)
    sub = group.subgroup(ValueError)
    match, rest = group.split(KeyError)
    assert type(sub) is type(match) is type(rest) is ChannelFailures
    assert sub.message == group.message
    caught: list[BaseException] = []
    try:
        try:
            raise group
        except* ValueError as part:
            caught.append(part)
    except ChannelFailures as left:
        caught.append(left)
    assert [type(each) for each in caught] == [ChannelFailures, ChannelFailures]
    assert [type(each.exceptions[0]) for each in caught if isinstance(each, ChannelFailures)] == [
        ValueError,
        KeyError,
    ]


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(
    "interrupt", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()]
)
def test_interrupt_propagates_at_once(
    interrupt: BaseException, observed: bool, notes: list[str]
) -> None:
    """On a user channel SystemExit and its like go straight up; later listeners do not run."""
    engine = Engine()
    if observed:
        engine.observe(lambda record: None)

    def leave() -> None:
        raise interrupt

    engine.subscribe("work", noting(notes, "before"))
    engine.subscribe("work", leave)
    engine.subscribe("work", noting(notes, "after"))
    with pytest.raises(type(interrupt)) as caught:
        engine.publish("work")
    assert caught.value is interrupt
    assert notes == ["before"]


def test_interrupt_after_a_failure_propagates_too(notes: list[str]) -> None:
    """SystemExit wins over a failure before it."""
    engine = Engine()
    engine.subscribe("work", fail_with_value)
    engine.subscribe("work", partial(sys.exit, 4))
    engine.subscribe("work", noting(notes, "after"))
    with pytest.raises(SystemExit) as caught:
        engine.publish("work")
    assert caught.value.code == 4
    assert notes == []


# Async listeners


def test_async_listener_is_awaited_from_a_thread(notes: list[str]) -> None:
    """A publish from a thread waits for its async listeners; results keep their order."""
    engine = Engine()

    @engine.subscribe("work")
    async def first(word: str) -> str:
        await asyncio.sleep(0)
        notes.append("first")
        return word + "1"

    engine.subscribe("work", lambda word: word + "2")
    with engine:
        assert engine.publish("work", "x") == ["x1", "x2"]
    assert notes == ["first"]


def test_async_failures_are_in_the_group_too(notes: list[str]) -> None:
    """An async listener that fails is one of the group; the others run."""
    engine = Engine()

    @engine.subscribe("work")
    async def fail() -> None:
        raise ValueError("async")

    engine.subscribe("work", noting(notes, "after"))
    with engine:
        group = failures(engine)
    assert repr(group.exceptions[0]) == "ValueError('async')"
    assert notes == ["after"]


def test_publish_async_awaits_on_the_running_loop() -> None:
    """`publish_async` awaits async listeners on the caller's loop and calls the others there."""
    engine = Engine()
    loops: list[object] = []

    @engine.subscribe("work")
    async def listener() -> str:
        loops.append(asyncio.get_running_loop())
        return "async"

    engine.subscribe("work", lambda: loops.append(asyncio.get_running_loop()))

    async def main() -> None:
        assert await engine.publish_async("work") == ["async", None]
        assert loops == [asyncio.get_running_loop()] * 2

    asyncio.run(main())


def test_publish_async_runs_all_and_raises_one_group(notes: list[str]) -> None:
    """Failures, sync and async, come in one ChannelFailures once all have run."""
    engine = Engine()

    @engine.subscribe("work")
    async def fail() -> None:
        raise ValueError

    engine.subscribe("work", fail_with_key)
    engine.subscribe("work", noting(notes, "after"))
    with pytest.raises(ChannelFailures) as caught:
        asyncio.run(engine.publish_async("work"))
    assert [type(each) for each in caught.value.exceptions] == [ValueError, KeyError]
    assert notes == ["after"]


def test_sync_publish_to_an_async_listener_on_its_loop_says_what_to_await(
    notes: list[str],
) -> None:
    """On the application's loop it would wait for itself: it names `publish_async`, runs nobody."""
    engine = Engine()

    @engine.subscribe("work")
    async def listener() -> None:
        notes.append("never")

    async def main() -> None:
        async with engine:
            engine.publish("work")

    with pytest.raises(WouldDeadlock, match=r"await engine\.publish_async\('work'\)"):
        asyncio.run(main())
    assert notes == []


# Concurrency


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Have threads take turns after nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("tiny_switch_interval")
def test_publish_never_raises_while_others_subscribe() -> None:
    """A million publishes, three threads churning: none raises, all listeners that stay run."""
    engine = Engine()
    counters = [itertools.count() for _ in range(3)]
    for counter in counters:
        engine.subscribe("work", counter.__next__)
    done = threading.Event()
    rounds = [0, 0, 0]

    def churn(number: int) -> None:
        def guest() -> None:
            pass

        while not done.is_set():
            engine.subscribe("work", guest, 20 * number + 10)
            engine.subscribe("work", guest, 20 * number + 15)
            engine.unsubscribe("work", guest)
            rounds[number] += 1

    churners = [Call(partial(churn, number)) for number in range(3)]
    try:
        for _ in range(PUBLISHES):
            engine.publish("work")
    finally:
        done.set()
    assert [call.end().outcome for call in churners] == [None] * 3
    assert [next(counter) for counter in counters] == [PUBLISHES] * 3
    assert min(rounds) > 100


@pytest.mark.usefixtures("tiny_switch_interval")
def test_concurrent_subscriptions_are_all_kept() -> None:
    """What eight threads subscribe at once on one channel is all there, none of it twice."""
    engine = Engine()
    barrier = threading.Barrier(8)

    def join(number: int) -> None:
        barrier.wait(10)
        for each in range(50):
            engine.subscribe("work", partial(lambda value: value, (number, each)), each)

    for call in [Call(partial(join, number)) for number in range(8)]:
        assert call.end().error is None
    heard = engine.publish("work")
    assert len(heard) == len(set(heard)) == 400
    assert [each for _, each in heard] == sorted(each for _, each in heard)
