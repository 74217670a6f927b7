import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mounts import run_on_mount
from processes import open_files, run_script, start_script

from engine_bridge import ChannelFailures, Engine, EngineError
from engine_bridge.core.records import Record, RecordText, to_logging
from engine_bridge.plugins import Log
from engine_bridge.plugins.log import reopen

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
START_TO_EXIT = ["STARTING", "STARTED", "draining, 0 in flight", "STOPPING", "STOPPED", "EXITING"]


class Kept(logging.Handler):
    """A handler that keeps what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entries.append(record)

    @property
    def lines(self) -> list[str]:
        return [f"{entry.levelname} {entry.getMessage()}" for entry in self.entries]


@pytest.fixture
def logger() -> logging.Logger:
    """A logger that reaches no handler, as in a process where logging is not configured."""
    logger = logging.Logger("app")  # noqa: LOG001  # not in the tree, where pytest's handlers are
    logger.setLevel(logging.DEBUG)
    return logger


@pytest.fixture
def kept(logger: logging.Logger) -> Kept:
    """A handler of that logger."""
    handler = Kept()
    logger.addHandler(handler)
    return handler


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine; what a test turned on is turned off again."""
    engine = Engine()
    yield engine
    engine.exit()
    for observer in engine.observers:
        if isinstance(plugin := getattr(observer, "__self__", None), Log):
            plugin.unsubscribe()


@contextmanager
def writes_to(
    logger: logging.Logger, path: Path, *, mode: str = "a", delay: bool = False
) -> Iterator[logging.FileHandler]:
    """Have *logger* write to a file, as an application configures it."""
    handler = logging.FileHandler(path, mode, "utf-8", delay)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        handler.close()


def fail() -> None:
    """Be a listener that fails."""
    raise ValueError("no such thing")


# -- lines -----------------------------------------------------------------------------------------


def test_log_writes_plain_lines_to_a_file(
    engine: Engine, logger: logging.Logger, tmp_path: Path
) -> None:
    """A line has time, pid, level and message; there is one for each change of state."""
    path = tmp_path / "app.log"
    Log(engine, logger, file=path).subscribe()
    engine.start()
    engine.log("ä \ud800 %s", 30)
    engine.exit()
    *expected, last = [f"INFO Engine {what}" for what in START_TO_EXIT]
    expected.insert(2, "WARNING ä \\ud800 %s")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7
    for line, end in zip(lines, [*expected, last], strict=True):
        assert re.fullmatch(rf"{TIME} {os.getpid()} {re.escape(end)}", line)


def test_log_writes_json_lines_to_a_file(engine: Engine, tmp_path: Path) -> None:
    """A line is an object with time, level, event, message, fields and pid."""
    path = tmp_path / "app.log"
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    Log(engine, json=True, file=path).subscribe()
    engine.start()
    engine.log("two\nlines", 30)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
        assert line.pop("pid") == os.getpid()
    assert lines == [
        {
            "level": "INFO",
            "event": "StateChanged",
            "message": "Engine STARTING",
            "fields": {"old": "STOPPED", "new": "STARTING"},
        },
        {
            "level": "INFO",
            "event": "StateChanged",
            "message": "Engine STARTED",
            "fields": {"old": "STARTING", "new": "STARTED"},
        },
        {"level": "WARNING", "event": "Message", "message": "two\nlines", "fields": {}},
    ]


def test_log_tells_the_traceback_of_a_failure(engine: Engine, tmp_path: Path) -> None:
    """Plain, it follows the line; in JSON it is a field, and the line stays one."""
    Log(engine, file=tmp_path / "plain").subscribe()
    Log(engine, json=True, file=tmp_path / "json").subscribe()
    engine.subscribe("start", fail)
    with pytest.raises(ChannelFailures):
        engine.start()
    plain = (tmp_path / "plain").read_text()
    assert re.search(r" ERROR \S*fail failed on 'start': ValueError: no such thing\nTrace", plain)
    assert plain.count("raise ValueError") == 1
    lines = [json.loads(line) for line in (tmp_path / "json").read_text().splitlines()]
    (line,) = [line for line in lines if line["level"] == "ERROR"]
    assert line["event"] == "ListenerFinished"
    assert line["fields"]["error"] == "ValueError: no such thing"
    assert line["fields"]["traceback"].startswith("Traceback")
    assert line["fields"]["channel"] == "start"


@pytest.mark.parametrize("level", [logging.DEBUG, "DEBUG"])
def test_log_tells_of_listeners_at_debug_level(
    engine: Engine, kept: Kept, logger: logging.Logger, level: int | str
) -> None:
    """With DEBUG each listener of the lifecycle has its line."""
    Log(engine, logger, level=level).subscribe()
    engine.subscribe("start", test_log_tells_of_listeners_at_debug_level, 3)
    engine.unsubscribe("start", test_log_tells_of_listeners_at_debug_level)
    engine.subscribe("start", lambda: None)
    engine.start()
    assert any(re.match(r"DEBUG .* finished 'start' in 0\.\d+ s", line) for line in kept.lines)


def test_log_keeps_quiet_below_its_level(
    engine: Engine, kept: Kept, logger: logging.Logger
) -> None:
    """What is below `level` is not told, however it was said."""
    Log(engine, logger, level="WARNING").subscribe()
    engine.start()
    engine.publish("log", "info", 20)
    engine.publish("log", "warning", 30)
    assert kept.lines == ["WARNING warning"]


# -- where to --------------------------------------------------------------------------------------


def test_log_hands_records_to_the_handlers_that_are_there(
    engine: Engine, kept: Kept, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where logging is configured, its handlers decide; nothing is written besides."""
    Log(engine, logger).subscribe()
    engine.start()
    engine.exit()
    assert kept.lines == [f"INFO Engine {what}" for what in START_TO_EXIT]
    assert {entry.name for entry in kept.entries} == {"app"}
    assert capsys.readouterr().err == ""


def test_log_hands_the_object_to_the_handlers_that_are_there(
    engine: Engine, kept: Kept, logger: logging.Logger
) -> None:
    """With `json` their message is the object, on one line."""
    Log(engine, logger, json=True).subscribe()
    engine.subscribe("start", fail)
    with pytest.raises(ChannelFailures):
        engine.start()
    messages = [entry.getMessage() for entry in kept.entries]
    assert [json.loads(text)["message"] for text in messages if "STARTING" in text]
    assert not any("\n" in text for text in messages)
    assert all(entry.exc_info is None for entry in kept.entries)


def test_log_leaves_the_level_to_the_logger(
    engine: Engine, kept: Kept, logger: logging.Logger, tmp_path: Path
) -> None:
    """Handlers of others show what their logger's level admits; a file of ours shows all."""
    logger.setLevel(logging.WARNING)
    Log(engine, logger, file=tmp_path / "app.log").subscribe()
    engine.log("info")
    engine.log("warning", 30)
    assert kept.lines == ["WARNING warning"]
    assert len((tmp_path / "app.log").read_text().splitlines()) == 2


def test_log_writes_to_stderr_where_logging_is_not_configured(
    engine: Engine, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line once, warnings too, and no longer when somebody configures logging."""
    Log(engine, logger).subscribe()
    engine.log("info")
    engine.log("warning", 30)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["info", "warning"]
    logger.addHandler(Kept())
    engine.log("info")
    assert capsys.readouterr().err == ""


def test_log_writes_warnings_to_its_file_only(
    engine: Engine,
    logger: logging.Logger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file is enough: standard error is not used besides."""
    Log(engine, logger, file=tmp_path / "app.log").subscribe()
    engine.log("warning", 30)
    assert capsys.readouterr().err == ""


def test_log_takes_the_name_of_a_logger(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A logger may be given by name; that of the library is the default."""
    caplog.set_level(logging.INFO)
    one, two = Log(engine), Log(engine, "app.lifecycle")
    one.subscribe()
    two.subscribe()
    engine.log("hello")
    assert [entry.name for entry in caplog.records] == ["engine_bridge", "app.lifecycle"]


def test_log_means_the_directory_in_which_it_was_made(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path goes by the directory at construction."""
    monkeypatch.chdir(tmp_path)
    log = Log(engine, file="app.log")
    monkeypatch.chdir("/")
    log.subscribe()
    engine.log("hello")
    assert (tmp_path / "app.log").read_text().endswith("hello\n")


# -- nothing twice ---------------------------------------------------------------------------------


def test_log_hears_what_others_publish_once(
    engine: Engine, kept: Kept, logger: logging.Logger
) -> None:
    """The engine's own words, and those published on the channel, each reach logging once."""
    Log(engine, logger).subscribe()
    engine.log("by the engine", 30)
    engine.publish("log", "by a plugin", 30)
    engine.publish("log", "by keyword", level=40)
    engine.publish("log", msg="as info")
    assert kept.lines == [
        "WARNING by the engine",
        "WARNING by a plugin",
        "ERROR by keyword",
        "INFO as info",
    ]


def test_log_channel_tells_the_text_of_records(engine: Engine) -> None:
    """A listener of the channel gets a string, and finds the record in it if it wants to."""
    heard: list[tuple[str, int]] = []
    engine.subscribe("log", lambda msg, level: heard.append((msg, level)))
    engine.start()
    assert heard == [("Engine STARTING", 20), ("Engine STARTED", 20)]
    text = heard[0][0]
    assert isinstance(text, RecordText)
    assert text.record is engine.last_records[0]


@pytest.mark.parametrize("arguments", [(), (7, "high"), ("a", 20, "more"), (None, None)])
def test_log_bears_any_arguments(
    engine: Engine, kept: Kept, logger: logging.Logger, arguments: tuple[object, ...]
) -> None:
    """Whatever somebody publishes on the channel does no harm."""
    Log(engine, logger).subscribe()
    engine.publish("log", *arguments)
    engine.publish("log", *arguments, colour="red")
    assert len(kept.lines) == 2


def test_log_replaces_the_default_reader(
    engine: Engine, logger: logging.Logger, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is on, warnings do not also go the engine's own way; afterwards they do again."""
    plugin = Log(engine, logger)
    plugin.subscribe()
    plugin.subscribe()
    engine.log("first", 30)
    assert caplog.records == []
    assert kept.lines == ["WARNING first"]
    plugin.unsubscribe()
    plugin.unsubscribe()
    engine.log("second", 30)
    assert [entry.getMessage() for entry in caplog.records] == ["second"]
    assert kept.lines == ["WARNING first"]
    assert engine.observers == (to_logging,)
    engine.publish("log", "third", 30)
    assert kept.lines == ["WARNING first"]


def test_log_leaves_out_a_default_reader_that_was_turned_off(engine: Engine) -> None:
    """What somebody else turned off stays off."""
    engine.unobserve(to_logging)
    plugin = Log(engine)
    plugin.subscribe()
    plugin.unsubscribe()
    assert engine.observers == ()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_log_of_two_puts_the_default_reader_back_with_the_last(
    engine: Engine, order: tuple[int, int]
) -> None:
    """Two of them, in whatever order they are turned off, count as one."""
    plugins = Log(engine, "one"), Log(engine, "two")
    for plugin in plugins:
        plugin.subscribe()
    plugins[order[0]].unsubscribe()
    assert to_logging not in engine.observers
    plugins[order[1]].unsubscribe()
    assert engine.observers == (to_logging,)


def test_log_does_not_hear_its_own_handlers(
    engine: Engine, kept: Kept, logger: logging.Logger
) -> None:
    """A handler that says something on the channel does not make it say something again."""

    class Echo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            engine.log("echo", 40)
            engine.publish("log", "echo", 40)

    logger.addHandler(Echo())
    Log(engine, logger).subscribe()
    engine.log("hello")
    engine.log("again")
    assert kept.lines == ["INFO hello", "INFO again"]


# -- cost ------------------------------------------------------------------------------------------


def test_log_does_not_make_other_channels_dearer(engine: Engine) -> None:
    """Requests and users' channels make no records for it; those who want them still get them."""
    engine.subscribe("before_request", fail)
    engine.subscribe("app:mail", len)
    calls = {channel: engine._calls[channel] for channel in ("before_request", "app:mail")}
    Log(engine, level=logging.DEBUG).subscribe()
    assert {channel: engine._calls[channel] for channel in calls} == calls
    assert None not in calls.values()
    seen: list[Record] = []
    engine.observe(seen.append)
    assert engine.publish("app:mail", "abc") == [3]
    assert [type(record).__name__ for record in seen] == ["ListenerFinished"]
    engine.unobserve(seen.append)
    assert {channel: engine._calls[channel] for channel in calls} == calls


def test_log_does_not_depend_on_who_else_observes(
    engine: Engine, kept: Kept, logger: logging.Logger
) -> None:
    """A failure on a user's channel is raised to its publisher, not logged besides."""
    Log(engine, logger).subscribe()
    engine.observe(lambda record: None)
    engine.subscribe("app:mail", fail)
    with pytest.raises(ChannelFailures):
        engine.publish("app:mail")
    assert kept.lines == []


# -- graceful --------------------------------------------------------------------------------------

SERVICE = """
import sys
from engine_bridge import engine
from engine_bridge.plugins import Log, SignalHandler

SignalHandler(engine).subscribe()
Log(engine, file=sys.argv[1]).subscribe()
engine.subscribe("graceful", lambda: print("graceful", flush=True), 99)
engine.start()

@engine.subscribe("main")  # by `block`: a signal is answered by that from now on
def up():
    print("up", flush=True)
    engine.unsubscribe("main", up)

engine.block()
"""


def test_log_opens_its_file_anew_on_sigusr1(tmp_path: Path) -> None:
    """After a rename and SIGUSR1 the old file is closed, and the name has a new one."""
    path, old = tmp_path / "app.log", tmp_path / "app.log.1"
    with start_script(SERVICE, path) as process:
        process.wait_line("^up$")
        path.rename(old)
        process.signal(signal.SIGUSR1)
        process.wait_line("^graceful$")
        opened = open_files(process.pid)
        assert str(path) in opened
        assert str(old) not in opened
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert re.findall("Engine [A-Z]+|Caught.*", old.read_text())[:2] == [
        "Engine STARTING",
        "Engine STARTED",
    ]
    assert re.findall("Engine [A-Z]+|Caught SIGTERM", path.read_text()) == [
        "Caught SIGTERM",
        "Engine STOPPING",
        "Engine STOPPED",
        "Engine EXITING",
    ]


def test_log_follows_a_renamed_file_by_itself(engine: Engine, tmp_path: Path) -> None:
    """Whoever renames the file without telling us gets the next line in a new one."""
    path = tmp_path / "app.log"
    Log(engine, file=path).subscribe()
    engine.log("first")
    path.rename(tmp_path / "app.log.1")
    engine.log("second")
    assert (tmp_path / "app.log.1").read_text().endswith("first\n")
    assert path.read_text().endswith("second\n")
    assert path.read_text().count("\n") == 1


def test_log_opens_the_files_of_other_handlers_anew(
    engine: Engine, logger: logging.Logger, tmp_path: Path
) -> None:
    """On graceful, files of the logger and of its parents follow; "w" empties nothing."""
    parent = logging.Logger("parent")  # noqa: LOG001  # as above
    logger.parent = parent
    with (
        writes_to(logger, tmp_path / "near", mode="w"),
        writes_to(parent, tmp_path / "far"),
        writes_to(logger, tmp_path / "late", delay=True) as late,
    ):
        Log(engine, logger).subscribe()
        engine.log("first")
        for name in ("near", "far"):
            (tmp_path / name).rename(tmp_path / f"{name}.1")
            (tmp_path / name).write_text("somebody else's\n")
        late.close()
        engine.graceful()
        engine.graceful()
        engine.log("second")
    for name in ("near", "far"):
        assert (tmp_path / f"{name}.1").read_text() == "first\n"
        assert (tmp_path / name).read_text() == "somebody else's\nsecond\n"
    assert (tmp_path / "late").read_text() == "first\nsecond\n"


def test_log_does_not_look_beyond_what_its_logger_reaches(
    engine: Engine, logger: logging.Logger, kept: Kept, tmp_path: Path
) -> None:
    """Where records do not propagate, files are left alone."""
    parent = logging.Logger("parent")  # noqa: LOG001  # as above
    logger.parent, logger.propagate = parent, False
    with writes_to(parent, tmp_path / "far"):
        Log(engine, logger).subscribe()
        (tmp_path / "far").unlink()
        engine.graceful()
        assert not (tmp_path / "far").exists()


def test_log_goes_on_with_the_old_file_where_it_cannot_open_a_new_one(
    engine: Engine, tmp_path: Path
) -> None:
    """A directory that is gone at graceful costs a line, not the log."""
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    Log(engine, file=folder / "app.log").subscribe()
    folder.rename(moved)
    engine.graceful()
    engine.log("hello")
    first, second = (moved / "app.log").read_text().splitlines()
    assert f"cannot open the log file {folder}/app.log anew: No such file or directory" in first
    assert second.endswith(" INFO hello")


# -- faults ----------------------------------------------------------------------------------------


def test_log_that_fails_breaks_nothing_and_says_so_once(
    engine: Engine, kept: Kept, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that raises does not disturb the engine; a new fault after a good line is told."""
    broken = True

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if broken:
                raise ValueError("broken handler")

    logger.addHandler(Broken())
    Log(engine, logger).subscribe()
    engine.start()
    engine.publish("log", "hello")
    engine.exit()
    assert kept.lines[-1] == "INFO Engine EXITING"
    assert capsys.readouterr().err.count("ValueError: broken handler") == 1
    broken = False
    engine.log("fine")
    broken = True
    engine.log("broken")
    assert capsys.readouterr().err.count("engine_bridge: the log 'app' failed") == 1


def test_log_bears_what_cannot_be_written_down(
    engine: Engine, kept: Kept, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that cannot say what it says does no harm either."""

    class Mute(Record):
        __slots__ = ()

        def _text(self) -> str:
            raise ValueError("cannot say")

    Log(engine, logger).subscribe()
    engine.tell(Mute())
    engine.start()
    assert kept.lines == ["INFO Engine STARTING", "INFO Engine STARTED"]
    assert "cannot say" in capsys.readouterr().err


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_log_bears_a_full_disk(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that cannot be written is lost, which is said once; then it goes on."""
    plugin = Log(engine, file=FULL)
    plugin.subscribe()
    engine.start()
    engine.exit()
    plugin.unsubscribe()
    assert capsys.readouterr().err.count(os.strerror(errno.ENOSPC)) == 1


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_log_leaves_a_full_disk_behind(tmp_path: Path) -> None:
    """A handler whose old file cannot be written out gets its new one nevertheless."""
    path = tmp_path / "app.log"
    path.symlink_to(FULL)
    handler = logging.FileHandler(path, encoding="utf-8")
    assert handler.stream is not None
    handler.stream.write("lost")
    path.unlink()
    reopen(handler)
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    handler.close()
    assert path.read_text() == "hello\n"


@pytest.mark.parametrize("how", ["sys.stderr = None", "sys.stderr.close()", "os.close(2)"])
@pytest.mark.parametrize("how_it_logs", ["Log(engine).subscribe()", "engine.observe(int)", ""])
def test_log_bears_a_closed_stderr(how: str, how_it_logs: str) -> None:
    """With nowhere left to complain, the engine goes on."""
    script = f"""
    import os, sys
    from engine_bridge import engine
    from engine_bridge.plugins import Log

    {how_it_logs}
    engine.subscribe("log", int)
    {how}
    engine.start()
    engine.log("hello", 40)
    engine.publish("fork")
    engine.exit()
    print(engine.state)
    """
    done = run_script(script)
    assert (done.returncode, done.stdout) == (0, "EXITING\n")


ON_MOUNT = """
import os
from engine_bridge import EngineError, engine
from engine_bridge.plugins import Log

def lines():
    with open("app.log") as file:
        return [line.rpartition(" ")[2].strip() for line in file]
"""


def test_log_survives_a_disk_that_fills_and_empties(tmp_path: Path) -> None:
    """What finds no room is said once and breaks no transition; with room again it goes on."""
    script = """
    with open("filler", "wb") as file:
        file.write(b"x" * 4096)
    plugin = Log(engine, file="app.log")
    plugin.subscribe()
    engine.subscribe("start", lambda: engine.log("x" * 5000))
    engine.start()
    engine.stop()
    print(engine.state)
    os.unlink("filler")
    os.truncate("app.log", 0)
    engine.exit()
    print(engine.state, lines()[-1])
    plugin.unsubscribe()
    """
    process = run_on_mount(tmp_path, "size=8192", ON_MOUNT + textwrap.dedent(script))
    assert process.output() == "STOPPED\nEXITING EXITING\n"
    assert process.errors().count("engine_bridge: the log") == 1
    assert process.errors().count(os.strerror(errno.ENOSPC)) == 1


def test_log_that_cannot_be_closed_for_want_of_room_is_closed(tmp_path: Path) -> None:
    """A file whose last lines find no room is given up without an error."""
    script = """
    with open("filler", "wb") as file:
        file.write(b"x" * 4096)
    plugin = Log(engine, file="app.log")
    plugin.subscribe()
    before = len(os.listdir("/proc/self/fd"))
    engine.log("x" * 5000)
    plugin.unsubscribe()
    print(before - len(os.listdir("/proc/self/fd")))
    """
    process = run_on_mount(tmp_path, "size=8192", ON_MOUNT + textwrap.dedent(script))
    assert process.output() == "1\n"
    assert process.errors().count("Traceback") == 1


def test_log_says_that_the_file_system_is_read_only(tmp_path: Path) -> None:
    """At subscribe, in a sentence; the engine is as it was."""
    script = """
    try:
        Log(engine, file="app.log").subscribe()
    except EngineError as exc:
        print(exc)
    engine.start()
    """
    process = run_on_mount(tmp_path, "ro", ON_MOUNT + textwrap.dedent(script))
    said = f"cannot open the log file {tmp_path}/app.log: Read-only file system; "
    assert process.output().startswith(said)
    assert process.errors() == ""


@pytest.mark.parametrize("how", ["create", "nocreate", "copytruncate"])
def test_log_loses_no_line_to_logrotate(tmp_path: Path, how: str) -> None:
    """By rename or by copy and truncate, with SIGUSR1 afterwards: each line is there once."""
    path = tmp_path / "app.log"
    with start_script(SERVICE, path) as process:
        process.wait_line("^up$")
        for number in (1, 2):
            rotate(path, how, process.pid)
            process.wait_line("^graceful$", number)
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    files = [path.with_name("app.log.2"), path.with_name("app.log.1"), path]
    text = "".join(each.read_text() for each in files)
    assert "\0" not in text, "a hole: written behind the end of a truncated file"
    said = re.findall("Caught [A-Z1]+|Engine [A-Z]+", text)
    assert said == [
        "Engine STARTING",
        "Engine STARTED",
        "Caught SIGUSR1",
        "Caught SIGUSR1",
        "Caught SIGTERM",
        "Engine STOPPING",
        "Engine STOPPED",
        "Engine EXITING",
    ]


def rotate(path: Path, how: str, pid: int) -> None:
    """Do what logrotate(8) does with *path*, and tell process *pid*."""
    second, first = path.with_name("app.log.2"), path.with_name("app.log.1")
    if first.exists():
        first.rename(second)
    if how == "copytruncate":
        shutil.copy(path, first)
        os.truncate(path, 0)
    else:
        path.rename(first)
        if how == "create":
            path.touch(0o640)
    os.kill(pid, signal.SIGUSR1)


def test_log_comes_back_when_its_directory_does(engine: Engine, tmp_path: Path) -> None:
    """With the directory removed lines go to the file that is open, then to a new one."""
    folder = tmp_path / "log"
    folder.mkdir()
    Log(engine, file=folder / "app.log").subscribe()
    shutil.rmtree(folder)
    engine.start()
    engine.graceful()
    engine.log("lost")
    folder.mkdir()
    engine.exit()
    text = (folder / "app.log").read_text()
    assert "STARTED" not in text
    assert text.endswith("Engine EXITING\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
@pytest.mark.parametrize("what", ["stays", "renamed"])
def test_log_goes_on_when_it_may_not_be_read_any_more(tmp_path: Path, what: str) -> None:
    """Once privileges are dropped the open file still takes every line; graceful says why."""
    script = """
    import os, sys
    from pathlib import Path
    from engine_bridge import engine
    from engine_bridge.plugins import Log

    path = Path(sys.argv[1])
    path.parent.mkdir(mode=0o700)
    Log(engine, file=path).subscribe()
    engine.start()
    if sys.argv[2] == "renamed":
        path.rename(path.with_name("app.log.1"))
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    engine.graceful()
    engine.exit()
    print(engine.state)
    """
    path = tmp_path / "private" / "app.log"
    done = run_script(script, path, what)
    assert (done.returncode, done.stdout, done.stderr) == (0, "EXITING\n", "")
    [found] = path.parent.iterdir()
    assert found.name == ("app.log" if what == "stays" else "app.log.1")
    text = found.read_text()
    assert f"ERROR cannot open the log file {path} anew: Permission denied" in text
    assert text.endswith("Engine EXITING\n")


def test_log_works_in_a_forked_child(tmp_path: Path) -> None:
    """A child writes its own lines, with its own pid, into the same file."""
    script = """
    import os, sys
    from engine_bridge import engine
    from engine_bridge.plugins import Log

    Log(engine, json=True, file=sys.argv[1]).subscribe()
    engine.start()
    if not os.fork():
        engine.start()
        engine.exit()
        os._exit(0)
    os.wait()
    engine.exit()
    """
    done = run_script(script, tmp_path / "app.log")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    parent, child = dict.fromkeys(line["pid"] for line in lines)
    for pid in (parent, child):
        states = [line["fields"].get("new") for line in lines if line["pid"] == pid]
        assert [state for state in states if state] == [
            "STARTING",
            "STARTED",
            "STOPPING",
            "STOPPED",
            "EXITING",
        ]
    assert parent == done.process.pid


def test_log_says_why_a_file_cannot_be_opened(engine: Engine, tmp_path: Path) -> None:
    """It is said in a sentence, at subscribe, and nothing has been subscribed."""
    with pytest.raises(EngineError, match=r"cannot open the log file .*: No such file"):
        Log(engine, file=tmp_path / "no" / "app.log").subscribe()
    assert engine.observers == (to_logging,)


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"logger": 7}, "wants a logger or its name, got 7"),
        ({"logger": ""}, "wants a logger or its name, got ''"),
        ({"file": 7}, "not the path of a file: 7"),
        ({"file": ""}, "not the path of a file: ''"),
        ({"level": "LOUD"}, "no log level 'LOUD'; known: CRITICAL"),
        ({"level": None}, "no log level None"),
    ],
)
def test_log_refuses_what_it_cannot_use(
    engine: Engine, arguments: dict[str, object], words: str
) -> None:
    """A wrong argument is named at once."""
    with pytest.raises(EngineError, match=re.escape(words)):
        Log(engine, **arguments)  # type: ignore[arg-type]  # that is the point


def test_log_costs_no_import_of_handlers() -> None:
    """`logging.handlers`, which imports sockets and pickle, is not needed."""
    script = "import sys, engine_bridge.plugins; print('logging.handlers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"False\n"
