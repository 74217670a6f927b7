"""Records, observers, and the log."""

import logging

import pytest
from actors import ALL, Part, failed, within

from engine_bridge import (
    ChannelFailures,
    Engine,
    State,
)
from engine_bridge.core.errors import ListenerError
from engine_bridge.core.records import (
    Draining,
    ListenerFinished,
    Message,
    Record,
    StateChanged,
)


def test_observer_gets_the_records_of_a_life() -> None:
    """States, listeners with their times and errors, and the drain come as records, in order."""
    engine = Engine()
    records: list[Record] = []
    error = ValueError("late")
    Part("part", [], {"stop": error}).on(engine, "start", "stop")
    engine.observe(records.append)
    engine.start()
    failed(engine.stop)
    shape = [
        (r.channel, r.listener, r.error) if isinstance(r, ListenerFinished) else r for r in records
    ]
    assert shape == [
        StateChanged(old="STOPPED", new="STARTING"),
        ("start", "Part.start", None),
        StateChanged(old="STARTING", new="STARTED"),
        Draining(in_flight=0),
        StateChanged(old="STARTED", new="STOPPING"),
        ("stop", "Part.stop", error),
        StateChanged(old="STOPPING", new="STOPPED"),
    ]
    assert all(r.seconds >= 0 for r in records if isinstance(r, ListenerFinished))


def test_observer_is_returned_and_can_be_taken_away() -> None:
    """observe() is a decorator too; after unobserve() nothing comes any more."""
    engine = Engine()
    records: list[Record] = []

    @engine.observe
    def keep(record: Record) -> None:
        records.append(record)

    engine.log("heard")
    engine.unobserve(keep)
    engine.log("unheard")
    assert [record.message() for record in records] == ["heard"]


def test_user_channels_make_records_only_while_observed() -> None:
    """A publish on a user's own channel is recorded while somebody observes, failures included."""
    engine = Engine()
    records: list[Record] = []
    engine.subscribe("work", lambda: None)
    engine.subscribe("work", lambda: 1 / 0)
    with pytest.raises(ChannelFailures):
        engine.publish("work")
    engine.observe(records.append)
    with pytest.raises(ChannelFailures):
        engine.publish("work")
    engine.unobserve(records.append)
    with pytest.raises(ChannelFailures):
        engine.publish("work")
    assert [(r.channel, type(r.error)) for r in records if isinstance(r, ListenerFinished)] == [
        ("work", type(None)),
        ("work", ZeroDivisionError),
    ]


def test_observer_that_is_not_callable_gets_a_sentence() -> None:
    """What cannot be called is refused at once."""
    with pytest.raises(ListenerError, match=r"observe.*'nothing'"):
        Engine().observe("nothing")  # type: ignore[type-var]  # the point


def test_log_reaches_channel_and_observers() -> None:
    """log() publishes text and level, and leaves a record; the level defaults to 20."""
    engine = Engine()
    heard: list[tuple[str, int]] = []
    records: list[Record] = []
    engine.subscribe("log", lambda msg, level: heard.append((msg, level)))
    engine.observe(records.append)
    engine.log("hello")
    engine.log("careful", 30)
    assert heard == [("hello", 20), ("careful", 30)]
    assert records == [
        Message(text="hello", level=20, error=None),
        Message(text="careful", level=30, error=None),
    ]


def test_log_appends_the_traceback_on_request() -> None:
    """With traceback=True the exception that is being handled is in the text."""
    engine = Engine()
    heard: list[str] = []
    engine.subscribe("log", lambda msg, level: heard.append(msg))
    try:
        raise KeyError("missing")
    except KeyError:
        engine.log("it failed", 40, traceback=True)
    assert heard[0].startswith("it failed\nTraceback")
    assert "KeyError: 'missing'" in heard[0]


def test_warnings_reach_logging_without_a_plugin(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings, errors and failing listeners are in `logging`, "engine_bridge"; the rest is not."""
    engine = Engine()
    engine.subscribe("start", lambda: 1 / 0)
    with caplog.at_level(logging.DEBUG, "engine_bridge"):
        engine.log("fine")
        engine.log("careful", 30)
        failed(engine.start)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert {record.name for record in caplog.records} == {"engine_bridge"}
    assert caplog.records[1].exc_info is not None
    assert caplog.records[1].exc_info[0] is ZeroDivisionError


def test_transitions_are_told_on_the_log_channel() -> None:
    """Each new state is a line on `log`."""
    engine = Engine()
    heard: list[str] = []
    engine.subscribe("log", lambda msg, level: heard.append(msg))
    engine.start()
    engine.stop()
    assert heard == [
        "Engine STARTING", "Engine STARTED", "Engine draining, 0 in flight",
        "Engine STOPPING", "Engine STOPPED",
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["observer", "log", "async log"])
def test_failing_observer_or_log_listener_breaks_nothing(
    how: str, notes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A life goes its way though every observer or log listener fails; stderr tells of it."""
    engine = Engine()
    Part("part", notes).on(engine, "start", "drain", "stop", "exit")

    def fail(*args: object) -> None:
        raise ValueError("an observer's fault")

    async def fail_async(*args: object) -> None:
        raise ValueError("an observer's fault")

    if how == "observer":
        engine.observe(fail)
    else:
        engine.subscribe("log", fail if how == "log" else fail_async)
    within(engine.start)
    within(engine.exit)
    assert notes == ["part.start", "part.drain", "part.stop", "part.exit"]
    assert "an observer's fault" in capsys.readouterr().err


def test_interrupt_from_an_observer_loses_no_stop(notes: list[str]) -> None:
    """An observer that raises SystemExit rolls the start back: who had started is stopped."""
    engine = Engine()
    Part("part", notes).on(engine, *ALL)

    @engine.observe
    def leave(record: Record) -> None:
        if isinstance(record, ListenerFinished) and record.channel == "start":
            raise SystemExit(6)

    with pytest.raises(SystemExit) as caught:
        engine.start()
    assert caught.value.code == 6
    assert notes == ["part.start", "part.stop"]
    assert engine.state is State.STOPPED
