import asyncio
import threading

import pytest
from actors import ALL, LIFE, Call, Part, at_once, failed, follow, names, noting, within
from processes import run_script

from engine_bridge import (
    ChannelFailures,
    Engine,
    StartAborted,
    State,
    TransitionError,
)

# start


def test_engine_is_stopped_at_first() -> None:
    """A new engine is STOPPED, alive and not ready."""
    engine = Engine()
    assert (engine.state, engine.alive, engine.ready) == (State.STOPPED, True, False)


def test_life_takes_the_states_in_order(notes: list[str]) -> None:
    """Listeners run between the states that enclose them: start, drain, stop, exit."""
    engine = Engine()
    follow(engine, notes)
    for channel in ("start", "drain", "stop", "exit"):
        engine.subscribe(channel, noting(notes, channel))
    engine.start()
    engine.exit()
    assert notes == [
        "STARTING", "start", "STARTED", "drain", "STOPPING", "stop", "STOPPED", "EXITING", "exit",
    ]  # fmt: skip


def test_started_engine_is_ready_until_it_drains() -> None:
    """It is ready in STARTED; while draining it is alive and not ready; after the exit neither."""
    engine = Engine()
    seen: list[tuple[State, bool, bool]] = []

    def look() -> None:
        seen.append((engine.state, engine.ready, engine.alive))

    engine.subscribe("drain", look)
    engine.start()
    look()
    engine.exit()
    look()
    assert seen == [
        (State.STARTED, True, True),
        (State.STARTED, False, True),
        (State.EXITING, False, False),
    ]


def test_start_when_started_does_nothing(notes: list[str]) -> None:
    """A second start publishes nothing and raises nothing."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)
    engine.start()
    engine.start()
    assert notes == ["part.start"]
    engine.exit()


def test_failing_start_stops_at_the_first_failure_and_rolls_back(notes: list[str]) -> None:
    """No listener after the failing one starts; what started is stopped; the engine is STOPPED."""
    engine = Engine()
    follow(engine, notes)
    for name in ("first", "second"):
        Part(name, notes).on(engine, *ALL)
    Part("broken", notes, {"start": ValueError("no database")}).on(engine, *ALL)
    Part("later", notes).on(engine, *ALL)
    group = failed(engine.start)
    assert [repr(each) for each in group.exceptions] == ["ValueError('no database')"]
    assert notes == [
        "STARTING", "first.start", "second.start", "broken.start",
        "STOPPING", "first.stop", "second.stop", "STOPPED",
    ]  # fmt: skip
    assert engine.state is State.STOPPED


def test_failing_start_tells_the_original_traceback(notes: list[str]) -> None:
    """The group of a failing start holds the exception as it was raised, and says which it is."""
    engine = Engine()
    error = ValueError("no database")
    Part("broken", notes, {"start": error}).on(engine, "start")
    group = failed(engine.start)
    assert group.exceptions == (error,)
    assert "start failed: ValueError: no database" in str(group)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "_asked"
    assert type(group.subgroup(ValueError)) is ChannelFailures


def test_roll_back_skips_only_owners_that_did_not_start(notes: list[str]) -> None:
    """Functions, owners without a start listener and started owners get `stop`; others do not."""
    engine = Engine()
    Part("started", notes).on(engine, *ALL)
    Part("startless", notes).on(engine, "stop")
    engine.subscribe("stop", noting(notes, "function"))
    Part("broken", notes, {"start": ValueError()}).on(engine, *ALL)
    Part("later", notes).on(engine, *ALL)
    failed(engine.start)
    assert notes == ["started.start", "broken.start", "started.stop", "startless.stop", "function"]


def test_roll_back_gives_exit_to_the_started_that_do_not_listen_to_stop(notes: list[str]) -> None:
    """A part that cleans up on `exit` alone, as a PID file does, does so after a failed start."""
    engine = Engine()
    Part("pidfile", notes).on(engine, "start", "exit")
    Part("server", notes).on(engine, *ALL)
    Part("exiter", notes).on(engine, "exit")
    engine.subscribe("exit", noting(notes, "function"))
    Part("broken", notes, {"start": OSError("in use")}).on(engine, "start", "exit")
    Part("later", notes).on(engine, "start", "exit")
    failed(engine.start)
    assert notes == [
        "pidfile.start", "server.start", "broken.start", "server.stop", "pidfile.exit",
    ]  # fmt: skip
    notes.clear()
    engine.exit()  # what had its `exit` does not get it again
    assert notes == ["server.exit", "exiter.exit", "function", "broken.exit", "later.exit"]


def test_roll_back_goes_on_when_a_stop_fails_too(notes: list[str]) -> None:
    """All are stopped whatever fails, and the group holds the start's failure first."""
    engine = Engine()
    Part("a", notes, {"stop": KeyError("a")}).on(engine, *ALL)
    Part("b", notes).on(engine, *ALL)
    Part("broken", notes, {"start": ValueError("first")}).on(engine, "start")
    group = failed(engine.start)
    assert [type(each) for each in group.exceptions] == [ValueError, KeyError]
    assert notes[-2:] == ["a.stop", "b.stop"]
    assert engine.state is State.STOPPED


def test_owner_is_the_self_of_whatever_class(notes: list[str]) -> None:
    """Any object with bound methods is an owner, and a class with class methods is too."""

    class Database:
        @classmethod
        def open(cls) -> None:
            raise ValueError

        @classmethod
        def close(cls) -> None:
            notes.append("never")

    engine = Engine()
    engine.subscribe("start", Database.open)
    engine.subscribe("stop", Database.close)
    failed(engine.start)
    assert notes == []


def test_owners_are_told_apart_by_identity(notes: list[str]) -> None:
    """Two owners that compare equal are still two: only the one that failed is skipped."""

    class Equal(Part):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]  # nor may anybody hash an owner

    engine = Engine()
    Equal("good", notes).on(engine, *ALL)
    Equal("bad", notes, {"start": ValueError()}).on(engine, *ALL)
    failed(engine.start)
    assert notes == ["good.start", "bad.start", "good.stop"]


def test_engine_starts_after_a_failed_start(notes: list[str]) -> None:
    """A failed start leaves no trace: the next one starts everything."""
    engine = Engine()
    part = Part("part", notes, {"start": ValueError()}).on(engine, *ALL)
    failed(engine.start)
    part.failing.clear()
    engine.start()
    engine.stop()
    assert notes == ["part.start", "part.start", "part.stop"]


@pytest.mark.parametrize(
    "interrupt", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_interrupted_start_is_rolled_back_and_the_interrupt_kept(
    interrupt: BaseException, notes: list[str]
) -> None:
    """SystemExit and its like roll a start back and come out as they were, code included."""
    engine = Engine()
    Part("first", notes).on(engine, *ALL)
    Part("leaver", notes, {"start": interrupt}).on(engine, *ALL)
    Part("later", notes).on(engine, *ALL)
    with pytest.raises(type(interrupt)) as caught:
        engine.start()
    assert caught.value is interrupt
    assert notes == ["first.start", "leaver.start", "first.stop"]
    assert engine.state is State.STOPPED


# stop


def test_stop_when_stopped_does_nothing(notes: list[str]) -> None:
    """Stopping what is STOPPED, or has exited, publishes nothing."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL, "drain")
    engine.stop()
    engine.exit()
    engine.stop()
    assert notes == ["part.exit"]
    assert engine.state is State.EXITING


def test_stop_runs_all_and_ends_stopped_whatever_fails(notes: list[str]) -> None:
    """Every stop listener runs, the engine is STOPPED, and one group tells what failed."""
    engine = Engine()
    Part("a", notes, {"drain": OSError("a"), "stop": ValueError("a")}).on(engine, "drain", *ALL)
    Part("b", notes, {"stop": KeyError("b")}).on(engine, *ALL)
    Part("c", notes).on(engine, *ALL)
    engine.start()
    notes.clear()
    group = failed(engine.stop)
    assert [repr(e) for e in group.exceptions] == [
        "OSError('a')",
        "ValueError('a')",
        "KeyError('b')",
    ]
    assert notes == ["a.drain", "a.stop", "b.stop", "c.stop"]
    assert engine.state is State.STOPPED


def test_stop_skips_who_came_after_the_start(notes: list[str]) -> None:
    """An owner that subscribed to start and stop after the start is not stopped."""
    engine = Engine()
    engine.start()
    Part("late", notes).on(engine, "start", "stop")
    Part("stopper", notes).on(engine, "stop")
    engine.stop()
    assert notes == ["stopper.stop"]
    engine.start()
    engine.stop()
    assert notes == ["stopper.stop", "late.start", "late.stop", "stopper.stop"]


def test_engine_starts_again_after_a_stop(notes: list[str]) -> None:
    """One engine may start and stop as often as one likes."""
    engine = Engine()
    Part("part", notes).on(engine, "start", "drain", "stop")
    for _ in range(3):
        engine.start()
        engine.stop()
    assert notes == ["part.start", "part.drain", "part.stop"] * 3


@pytest.mark.parametrize("interrupt", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize(("verb", "end"), [("stop", State.STOPPED), ("exit", State.EXITING)])
@pytest.mark.parametrize("channel", ["drain", "stop", "exit"])
def test_interrupted_end_goes_on_and_re_raises(
    interrupt: BaseException, verb: str, end: State, channel: str, notes: list[str]
) -> None:
    """SystemExit in drain, stop or exit: later listeners run, and it is re-raised at the end."""
    engine = Engine()
    channels = ("drain", "stop", "exit") if verb == "exit" else ("drain", "stop")
    Part("leaver", notes, {channel: interrupt}).on(engine, "start", *channels)
    Part("later", notes).on(engine, "start", *channels)
    engine.start()
    notes.clear()
    if channel in channels:
        with pytest.raises(type(interrupt)) as caught:
            getattr(engine, verb)()
        assert caught.value is interrupt
    else:
        engine.stop()
    assert notes == [f"{name}.{each}" for each in channels for name in ("leaver", "later")]
    assert engine.state is end


def test_interrupt_wins_over_failures(notes: list[str]) -> None:
    """Where listeners failed and one asked to leave, who asked to leave is heard."""
    engine = Engine()
    Part("a", notes, {"stop": ValueError()}).on(engine, "stop")
    Part("b", notes, {"stop": SystemExit(7)}).on(engine, "stop")
    Part("c", notes, {"stop": SystemExit(8)}).on(engine, "stop")
    engine.start()
    with pytest.raises(SystemExit) as caught:
        engine.exit()
    assert caught.value.code == 7


# exit


def test_exit_stops_first_and_ends_in_exiting(notes: list[str]) -> None:
    """From STARTED an exit drains, stops, and then publishes `exit`."""
    engine = Engine()
    Part("part", notes).on(engine, "start", "drain", "stop", "exit")
    engine.start()
    engine.exit()
    assert notes == ["part.start", "part.drain", "part.stop", "part.exit"]
    assert engine.state is State.EXITING


def test_exit_raises_everything_in_one_group(notes: list[str]) -> None:
    """Failures of drain, stop and exit come together, and the engine is EXITING nevertheless."""
    engine = Engine()
    failing = {"drain": OSError("d"), "stop": ValueError("s"), "exit": KeyError("x")}
    Part("part", notes, dict(failing)).on(engine, *failing)
    Part("other", notes).on(engine, *failing)
    engine.start()
    group = failed(engine.exit)
    assert group.exceptions == tuple(failing.values())
    assert notes == [f"{name}.{channel}" for channel in failing for name in ("part", "other")]
    assert engine.state is State.EXITING


def test_exit_again_does_nothing(notes: list[str]) -> None:
    """Repeated exits coalesce, also where the first one failed."""
    engine = Engine()
    Part("part", notes, {"exit": ValueError()}).on(engine, *ALL)
    engine.start()
    failed(engine.exit)
    engine.exit()
    engine.exit()
    assert notes == ["part.start", "part.stop", "part.exit"]


def test_exit_gives_exit_to_owners_that_never_started(notes: list[str]) -> None:
    """Only `stop` skips; `exit` is for everybody, and without a start too."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)
    engine.exit()
    assert notes == ["part.exit"]


def test_new_life_begins_after_a_completed_exit(notes: list[str]) -> None:
    """Where the process lives on, start() after an exit passes STOPPED and starts everything."""
    engine = Engine()
    follow(engine, notes)
    Part("part", notes).on(engine, *ALL)
    for _ in range(2):
        engine.start()
        assert (engine.alive, engine.ready, engine.draining.is_set()) == (True, True, False)
        engine.exit()
    assert notes == [*LIFE, "STOPPED", *LIFE]


def test_new_life_forgets_how_the_last_one_ended(notes: list[str]) -> None:
    """The failures of one exit are not told again by the next."""
    engine = Engine()
    part = Part("part", notes, {"exit": ValueError()}).on(engine, *ALL)
    engine.start()
    failed(engine.exit)
    part.failing.clear()
    engine.start()
    engine.exit()
    engine.block()


def test_start_while_the_exit_runs_is_refused() -> None:
    """A new life cannot begin before the old one is over; the refusal names both states."""
    engine = Engine()
    exiting, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        exiting.set()
        go_on.wait(10)

    engine.subscribe("exit", hold)
    call = Call(engine.exit)
    assert exiting.wait(10)
    with pytest.raises(TransitionError) as caught:
        engine.start()
    go_on.set()
    assert call.end().error is None
    assert (caught.value.current, caught.value.target) == ("EXITING", "STARTING")


# graceful


@pytest.mark.parametrize("state", [State.STOPPED, State.STARTED, State.EXITING])
def test_graceful_publishes_and_changes_no_state(state: State, notes: list[str]) -> None:
    """graceful() works in every state and changes none."""
    engine = Engine()
    engine.subscribe("graceful", noting(notes, "graceful"))
    if state is State.STARTED:
        engine.start()
    if state is State.EXITING:
        engine.exit()
    engine.graceful()
    assert notes == ["graceful"]
    assert engine.state is state
    engine.exit()


def test_graceful_raises_what_failed(notes: list[str]) -> None:
    """A failing listener does not keep the others from reopening their logs."""
    engine = Engine()
    engine.subscribe("graceful", lambda: 1 / 0)
    engine.subscribe("graceful", noting(notes, "graceful"))
    assert names(failed(engine.graceful).exceptions) == ["ZeroDivisionError"]
    assert notes == ["graceful"]


# threads


def test_verbs_from_other_threads_share_the_outcome(notes: list[str]) -> None:
    """A failing start, shared by threads, is told to each of them as a group of its own."""
    engine = Engine()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        go_on.wait(10)
        raise ValueError("shared")

    engine.subscribe("start", hold)
    first = Call(engine.start)
    assert inside.wait(10)
    others = [Call(engine.start) for _ in range(3)]
    go_on.set()
    outcomes = [call.end().outcome for call in (first, *others)]
    shared = [each for each in outcomes if each.exceptions == outcomes[0].exceptions]
    assert shared  # late comers start anew, with a failure of their own
    assert {type(each) for each in outcomes} == {ChannelFailures}


def test_lock_is_free_while_listeners_run() -> None:
    """A listener may wait for another thread that uses the engine."""
    engine = Engine()

    def look() -> State:
        engine.subscribe("work", print)
        engine.unsubscribe("work", print)
        engine.publish("work")
        engine.log("x")
        engine.wait(State.STOPPED, 0)
        return engine.state

    seen: list[State] = []

    def listener() -> None:
        seen.append(within(look, 5))

    for channel in ("start", "drain", "stop", "exit"):
        engine.subscribe(channel, listener)
    engine.start()
    engine.exit()
    assert seen == [State.STARTING, State.STARTED, State.STOPPING, State.EXITING]


def test_lock_is_free_while_those_are_told_who_wait_for_an_abort() -> None:
    """Who asked to be told of an abort may wait for another thread that uses the engine."""
    engine = Engine()
    inside, seen = threading.Event(), []

    def listener() -> None:
        engine.aborting.tell(lambda: seen.append(within(lambda: engine.wait(list(State), 5), 5)))
        inside.set()
        assert engine.aborting.wait(10)

    engine.subscribe("start", listener)
    call = Call(engine.start)
    assert inside.wait(10)
    within(engine.exit)
    assert isinstance(call.end().error, StartAborted)
    assert seen == [True]


def test_at_once_shares_one_start(notes: list[str]) -> None:
    """Ten threads that start at once all return once it is STARTED."""
    engine = Engine()
    Part("part", notes).on(engine, "start")
    assert at_once([engine.start] * 10) == [None] * 10
    assert engine.state is State.STARTED
    assert notes == ["part.start"]
    engine.exit()


# scripts, in processes of their own

SCRIPT = """
import os, sys
from journal import record
from engine_bridge import ChannelFailures, Engine, engine

def leave():
    sys.exit(3)

for name in ("start", "drain", "stop", "exit"):
    engine.subscribe(name, lambda name=name: record(name), 1)
"""


def script(body: str) -> tuple[int, list[str], str]:
    """Run a script to its end; return its code, what it published, and what it wrote."""
    done = run_script(SCRIPT + body)
    return done.returncode, done.process.published().get(done.process.pid, []), done.stdout


def test_sys_exit_in_a_start_listener_ends_the_script_with_its_code() -> None:
    """`sys.exit(3)` in a start listener ends the script with 3; what had started is stopped."""
    code, published, printed = script(
        "engine.subscribe('start', leave)\nengine.start()\nprint('never')\n"
    )
    assert (code, printed) == (3, "")
    assert published == ["start", "stop", "exit"]


@pytest.mark.parametrize("channel", ["stop", "exit"])
def test_sys_exit_in_an_end_listener_ends_the_script_with_its_code(channel: str) -> None:
    """In `stop` and `exit` too, and everything has run by then."""
    code, published, _ = script(
        f"engine.subscribe({channel!r}, leave, 0)\nengine.start()\nengine.exit()\n"
    )
    assert code == 3
    assert published == ["start", "drain", "stop", "exit"]


def test_failing_start_never_ends_its_process() -> None:
    """A script that catches the failure of a start goes on, tries again, and ends with 0."""
    code, published, printed = script(
        "fail = engine.subscribe('start', lambda: 1 / 0)\n"
        "try:\n"
        "    engine.start()\n"
        "except ChannelFailures:\n"
        "    print('goes on')\n"
        "engine.unsubscribe('start', fail)\n"
        "engine.start()\n"
    )
    assert (code, printed) == (0, "goes on\n")
    assert published == ["start", "stop", "start", "drain", "stop", "exit"]


def test_script_that_just_ends_gets_stop_and_exit_once() -> None:
    """A script that starts and falls off its end stops and exits, once, with 0."""
    code, published, _ = script("engine.start()\nengine.start()\n")
    assert code == 0
    assert published == ["start", "drain", "stop", "exit"]


def test_script_that_stops_and_ends_gets_its_exit() -> None:
    """What has stopped and not exited is still owed its exit; what never started is not."""
    code, published, _ = script("engine.start()\nengine.stop()\n")
    assert (code, published) == (0, ["start", "drain", "stop", "exit"])
    code, published, _ = script("")
    assert (code, published) == (0, [])


def test_script_that_exited_gets_nothing_more() -> None:
    """After an exit the end of the process publishes nothing."""
    code, published, _ = script("engine.start()\nengine.exit()\n")
    assert (code, published) == (0, ["start", "drain", "stop", "exit"])


def test_uncaught_exception_stops_the_engine_too() -> None:
    """A script that dies of its own error stops and exits, and ends with 1."""
    code, published, _ = script("engine.start()\nraise ValueError\n")
    assert (code, published) == (1, ["start", "drain", "stop", "exit"])


def test_every_engine_of_a_script_is_ended() -> None:
    """At the end of the process every engine that it started is exited, whatever others do."""
    code, published, _ = script(
        "other = Engine()\n"
        "other.subscribe('stop', lambda: record('other'))\n"
        "other.subscribe('exit', lambda: 1 / 0)\n"
        "engine.start()\nother.start()\n"
    )
    assert code == 0
    assert sorted(published) == sorted(["start", "drain", "stop", "exit", "other"])


def test_async_listeners_are_awaited_at_the_end_of_a_script() -> None:
    """At interpreter exit no thread may be had any more; async stop listeners run nevertheless."""
    code, published, _ = script(
        "import asyncio\n"
        "@engine.subscribe('stop')\n"
        "async def stop():\n"
        "    await asyncio.sleep(0)\n"
        "    record('async stop')\n"
        "engine.start()\n"
    )
    assert (code, published) == (0, ["start", "drain", "stop", "async stop", "exit"])
