"""Real scripts that restart when a file has changed: the same process, the new code."""

import os
import re
import signal
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import (
    Entry,
    Process,
    open_files,
    run_script,
    start_process,
    wait_asleep,
    wait_until,
)

from engine_bridge import Engine, EngineError, State
from engine_bridge.core.host import STARTUP_CWD, Host
from engine_bridge.plugins import Autoreloader, autoreload
from engine_bridge.plugins.watcher import Watcher

ROOT = os.geteuid() == 0
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "autoreload.md"

# `up` tells what is running; `looked` that a change is seen from now on.
APP = """
import os, signal, sys, threading, time
from journal import record
from engine_bridge import ChannelFailures, Engine, State, engine
from engine_bridge.plugins import Autoreloader, SignalHandler, autoreload

autoreload.HEAD_START = 0.0
SignalHandler(engine).subscribe()
life = int(os.environ.get("LIFE", "0")) + 1
os.environ["LIFE"] = str(life)
options = {"backend": sys.argv[1], "frequency": 0.05}

@engine.observe
def note(it):
    if it.level >= 20 and hasattr(it, "text"):
        record("log", text=it.text, level=it.level)

def reloader(engine=engine, **more):
    it = Autoreloader(engine, **(options | more))
    act = it._act
    def noted(watcher, changed):
        pending = act(watcher, changed)
        if not changed and not pending:
            record("looked")
        return pending
    it._act = noted
    it.subscribe()
    return it

def gate(name):
    "Say that we are here, and wait until the test has opened the gate."
    record(name)
    while not os.path.exists(f"{name}.{life}"):
        time.sleep(0.005)

"""
SIMPLE = """
import helper
reloader()
engine.start()
record("up", value=helper.VALUE)
engine.block()
"""


@pytest.fixture(autouse=True)
def no_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to watch at once."""
    monkeypatch.setattr(autoreload, "HEAD_START", 0.0)


@pytest.fixture(params=["inotify", "watchfiles", "polling"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each of the backends: they are to find the same."""
    return str(request.param)


def write(folder: Path, body: str = SIMPLE, value: object = 1) -> Path:
    """Write the application and its helper."""
    (folder / "app.py").write_text(APP + textwrap.dedent(body))
    save(folder, value)
    return folder / "app.py"


def save(folder: Path, value: object, *, second: int | None = None) -> None:
    """Save the helper, as editors do; in a given second, if it matters."""
    new = folder / "helper.py~"
    new.write_text(f"VALUE = {value!r}\n")
    if second is not None:
        os.utime(new, (second, second))
    new.rename(folder / "helper.py")


@contextmanager
def running(
    folder: Path, backend: str, body: str = SIMPLE, *, looked: int = 1
) -> Iterator[Process]:
    """Run the application until its watch is in place."""
    app = write(folder, body)
    compiles = {"PYTHONDONTWRITEBYTECODE": ""}  # as it does where nobody says otherwise
    with start_process([sys.executable, app, backend], cwd=folder, env=compiles) as process:
        if looked:
            process.wait_published("looked", looked)
        yield process


def values(process: Process) -> list[object]:
    """Return what ran, one life after another; all of it in one process."""
    ups = [entry for entry in process.journal() if entry.channel == "up"]
    assert {entry.pid for entry in ups} == {process.pid}
    return [entry.facts["value"] for entry in ups]


def wait_value(process: Process, value: object) -> Entry:
    """Wait until the code with *value* runs."""

    def runs() -> list[Entry]:
        return [e for e in process.journal() if e.channel == "up" and e.facts["value"] == value]

    return process.wait(runs, 10, f"value {value!r} runs")[-1]


def wait_log(process: Process, pattern: str, count: int = 1) -> str:
    """Wait until the log has *count* lines that match; return the last."""

    def found() -> list[str]:
        texts = logged(process)
        matching = [text for text in texts if re.search(pattern, text)]
        return matching if len(matching) >= count else []

    return process.wait(found, 10, f"{pattern!r} in the log")[-1]


def logged(process: Process) -> list[str]:
    """Return what the log said."""
    return [str(e.facts["text"]) for e in process.journal() if e.channel == "log"]


# -- a change, and the restart ---------------------------------------------------------------------


def test_a_save_restarts_the_script(backend: str, tmp_path: Path) -> None:
    """The same process runs the new code, each time; the log names what changed."""
    with running(tmp_path, backend) as process:
        for number in (2, 3):  # in the same second, of the same size: not from old bytecode
            save(tmp_path, number, second=1_700_000_000)
            wait_value(process, number)
            process.wait_published("looked", number)
        (tmp_path / "helper.py").write_text("VALUE = 4\n")
        os.utime(tmp_path / "helper.py", (1, 1))
        wait_value(process, 4)
        wait_asleep(process.pid)  # in `block`
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert values(process) == [1, 2, 3, 4]
    assert [text for text in logged(process) if "restarting" in text] == [
        "helper.py changed; restarting"
    ] * 3


def test_code_that_does_not_compile_stops_nothing(backend: str, tmp_path: Path) -> None:
    """It is told once a change, with its line; the next good save restarts."""
    faults: list[tuple[bytes, str]] = [
        (b"VALUE = 1\nVALUE = (\n", "does not compile, line 2: '\\(' was never closed"),
        (b"VALUE = '\0'\n", "does not compile.*null bytes"),
        (b"# coding: nonsense\n", "does not compile, line 1: .*nonsense"),
        (b"VALUE = '\xff'\n", "does not compile, line 1: .*utf-8"),
        (b"return\n", "does not compile, line 1: 'return' outside function"),
        (b"(" * 9999, "does not compile, line 1: too many nested parentheses"),
    ]
    with running(tmp_path, backend) as process:
        for number, (source, pattern) in enumerate(faults, 1):
            (tmp_path / "helper.py").write_bytes(source)
            wait_log(process, f"helper.py {pattern}.*; not restarting, the running code goes on")
            assert len(logged(process)) == number
        with (tmp_path / "app.py").open("a") as app:
            app.write("# more\n")
        wait_log(process, r"app.py changed; not restarting before helper.py is right")
        (tmp_path / "helper.py").unlink()
        os.mkfifo(tmp_path / "helper.py")
        wait_log(process, "helper.py cannot be read: that is no file; not restarting")
        assert values(process) == [1]
        save(tmp_path, 2)
        wait_value(process, 2)
    assert values(process) == [1, 2]
    assert wait_log(process, "; restarting") == "app.py and helper.py changed; restarting"


def test_a_broken_file_that_goes_away_again_stops_nothing(tmp_path: Path) -> None:
    """Somebody begins a module that is imported where it exists, and gives it up."""
    body = """
    try:
        import extra
        value = extra.VALUE
    except ImportError:
        value = "none"
    reloader()
    engine.start()
    record("up", value=value)
    engine.block()
    """
    with running(tmp_path, "watchfiles", body) as process:
        (tmp_path / "extra.py").write_text("VALUE = (\n")
        wait_log(process, "extra.py does not compile, line 1")
        (tmp_path / "extra.py").write_text("VALUE = 'extra'\n")
        wait_value(process, "extra")
        process.wait_published("looked", 2)
        (tmp_path / "extra.py").unlink()
        wait_until(lambda: values(process).count("none") == 2)


def test_files_that_are_named_and_directories_count(backend: str, tmp_path: Path) -> None:
    """Templates, globs, and a file that is added while it runs; many are not all named."""
    body = """
    import helper
    it = reloader(directories=["templates"], files=["*.yaml"], exclude=["draft*", "later.py"])
    engine.start()
    it.files.add("notes.txt")
    record("up", value=life)
    engine.block()
    """
    (tmp_path / "templates").mkdir()
    (tmp_path / "later.py").touch()
    with running(tmp_path, backend, body) as process:
        (tmp_path / "templates" / "draft.html").write_text("x")
        (tmp_path / "later.py").write_text("x")
        (tmp_path / "templates" / "a.html").write_text("x")
        wait_value(process, 2)
        process.wait_published("looked", 2)
        (tmp_path / "conf.yaml").write_text("x")
        wait_value(process, 3)
        process.wait_published("looked", 3)
        (tmp_path / "notes.txt").write_text("x")
        wait_value(process, 4)
        process.wait_published("looked", 4)
        for number in range(5):
            (tmp_path / "templates" / f"{number}.html").write_text("x")
        wait_value(process, 5)
    said = [text for text in logged(process) if "restarting" in text]
    assert said[:3] == [
        f"{name} changed; restarting" for name in ("templates/a.html", "conf.yaml", "notes.txt")
    ]
    assert re.match(r"templates/0.html(, templates/1.html, templates/2.html and 2 more)? ", said[3])


def test_a_module_that_is_imported_later_counts(backend: str, tmp_path: Path) -> None:
    """An import within a function, long after the start."""
    body = """
    reloader()
    engine.start()
    import helper
    record("up", value=helper.VALUE)
    while not os.path.exists("late.1"):
        time.sleep(0.005)
    import late
    record("late", value=late.VALUE)
    engine.block()
    """
    with running(tmp_path, backend, body) as process:
        (tmp_path / "late.py").write_text("VALUE = 1\n")
        (tmp_path / "late.1").touch()
        process.wait_published("late")
        later = tmp_path / "late.py"
        later.write_text("VALUE = 22\n")
        process.wait(
            lambda: any(e.facts.get("value") == 22 for e in process.journal()), 10, "late is 22"
        )


@pytest.mark.parametrize("how", ["-m", "folder", "archive"])
def test_the_program_itself_counts(tmp_path: Path, how: str) -> None:
    """A package, a folder and an archive run by Python are watched, however they were run."""
    source = (
        APP + "VALUE = {}\nreloader()\nengine.start()\nrecord('up', value=VALUE)\nengine.block()"
    )
    package = tmp_path / "program"
    package.mkdir()

    def put(value: int) -> None:
        text = source.replace("VALUE = {}", f"VALUE = {value}")
        if how == "archive":
            with zipfile.ZipFile(tmp_path / "new", "w") as archive:
                archive.writestr("__main__.py", text)
            (tmp_path / "new").rename(tmp_path / "program.pyz")
        else:
            (package / "__main__.py").write_text(text)

    put(1)
    words = {"-m": ["-m", "program"], "folder": ["program"], "archive": ["program.pyz"]}[how]
    with start_process([sys.executable, *words, "polling"], cwd=tmp_path) as process:
        process.wait_published("looked")
        put(22)
        wait_value(process, 22)
    assert values(process) == [1, 22]


def test_a_burst_is_one_restart(backend: str, tmp_path: Path) -> None:
    """A file that is saved a hundred times a second is loaded once it has come to rest."""
    body = SIMPLE.replace("reloader()", "reloader(debounce=0.3)")
    with running(tmp_path, backend, body) as process:
        for number in range(100):
            save(tmp_path, number)
            threading.Event().wait(0.005)
        save(tmp_path, "end")
        wait_value(process, "end")
        process.wait_published("looked", 2)
    assert values(process) == [1, "end"]


# -- what changes while a process starts or ends ---------------------------------------------------

SLOW = """
import helper
gate("imported")
reloader()
engine.subscribe("start", lambda: gate("starting"), priority=75)
engine.subscribe("stop", lambda: gate("stopping"))
engine.subscribe("SIGTERM", lambda: record("told"), priority=1)
engine.start()
record("up", value=helper.VALUE)
engine.block()
"""


@pytest.mark.parametrize(
    ("moment", "backend"), [("imported", "polling"), ("starting", "watchfiles")]
)
def test_what_changes_while_the_process_starts_is_not_lost(
    backend: str, tmp_path: Path, moment: str
) -> None:
    """The first process, and one that came by a restart, load what was saved after the import."""
    for number in (1, 2, 3, 4):
        for name in ("imported", "starting", "stopping"):
            (tmp_path / f"{name}.{number}").touch()
    (tmp_path / f"{moment}.1").unlink()
    (tmp_path / f"{moment}.3").unlink()
    with running(tmp_path, backend, SLOW, looked=0) as process:
        process.wait_published(moment)
        save(tmp_path, 2)
        (tmp_path / f"{moment}.1").touch()
        wait_value(process, 2)
        process.wait_published("looked")
        save(tmp_path, 3)
        process.wait_published(moment, 3)  # the third life has imported the helper
        save(tmp_path, 4)
        (tmp_path / f"{moment}.3").touch()
        wait_value(process, 4)
        process.wait_published("looked", 2)
    assert values(process) == [1, 2, 3, 4]
    texts = [text for text in logged(process) if "changed" in text]
    assert texts == [
        "helper.py changed while this process started; restarting",
        "helper.py changed; restarting",
        "helper.py changed while this process started; restarting",
    ]


def test_what_changes_while_the_old_process_stops_is_loaded(tmp_path: Path) -> None:
    """No second restart follows: the new process has it already."""
    for name in ("imported.1", "starting.1", "imported.2", "starting.2", "stopping.2"):
        (tmp_path / name).touch()
    with running(tmp_path, "watchfiles", SLOW) as process:
        save(tmp_path, 2)
        process.wait_published("stopping")
        save(tmp_path, 3)
        (tmp_path / "stopping.1").touch()
        wait_value(process, 3)
        process.wait_published("looked", 2)
    assert values(process) == [1, 3]


def test_an_application_that_writes_what_is_watched_does_not_restart_for_ever(
    tmp_path: Path,
) -> None:
    """After three starts in a row somebody is told, and it runs."""
    body = """
    import helper
    with open("static/bundle.css", "w") as file:
        file.write(str(time.time()))
    record("up", value=life)  # before the start, after which it may be restarted at any moment
    reloader(directories=["static"])
    engine.start()
    engine.block()
    """
    (tmp_path / "static").mkdir()
    with running(tmp_path, "polling", body, looked=0) as process:
        wait_log(process, "static/bundle.css changed .* 4th time in a row; not restarting: .*excl")
        (tmp_path / "static" / "more.css").touch()  # it still watches
        wait_value(process, 5)
    assert values(process)[:4] == [1, 2, 3, 4]


# -- other threads, processes and hosts ------------------------------------------------------------


def test_a_refusal_is_told_and_the_watch_goes_on(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a server the log says in one line what to do, for each change."""
    engine = Engine()
    engine.host = Host("worker", 1)
    said: list[str] = []
    engine.subscribe("log", lambda msg, level: said.append(f"{level} {msg}"))
    path = tmp_path / "settings.yaml"
    path.touch()
    looked = threading.Event()
    reloader = Autoreloader(engine, 0.05, "nothing", files=[path], backend=backend)
    act = reloader._act

    def noted(subject: Watcher, changed: set[str]) -> bool:
        insists = act(subject, changed)
        looked.set()
        return insists

    monkeypatch.setattr(reloader, "_act", noted)
    reloader.subscribe()
    engine.start()
    try:
        for number in (1, 2):
            assert looked.wait(10)
            looked.clear()
            path.write_text("x" * number)
        assert looked.wait(10)
        assert engine.state is State.STARTED
        refusal = (
            "no restart: this process is a worker of process 1, and nothing is known of how "
            "that gives a new one; restart it from outside"
        )
        assert [line for line in said if "changed" in line] == [
            f"30 {path} changed while this process started; {refusal}",
            f"30 {path} changed; {refusal}",
            f"30 {path} changed; {refusal}",
        ]
    finally:
        engine.exit()
        os.environ.pop(autoreload.HANDOVER)


def test_a_process_that_a_server_forked_counts_from_its_start(tmp_path: Path) -> None:
    """With the application preloaded, a new worker would have the same old code."""
    body = """
    import helper
    engine.host = __import__("engine_bridge.core.host").core.host.Host("worker", 1)
    reloader()
    gate("imported")
    if not os.fork():
        engine.start()
        time.sleep(60)
    os.wait()
    """
    with running(tmp_path, "polling", body, looked=0) as process:
        process.wait_published("imported")
        save(tmp_path, 2)
        (tmp_path / "imported.1").touch()
        process.wait_published("looked")
        save(tmp_path, 3)
        wait_log(process, "no restart")
        assert len(logged(process)) == 1
        [worker] = process.workers()
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_does_not_watch(tmp_path: Path) -> None:
    """Neither does it restart itself, nor does it end the watch of its parent by its own end."""
    body = """
    import helper
    it = reloader()
    engine.start()
    record("up", value=helper.VALUE)
    if life == 1:
        for how in ("leave", "stay"):
            if not os.fork():
                engine.stop()
                assert threading.active_count() == 1
                record(how)
                if how == "leave":
                    engine.start()
                    assert [each.name for each in threading.enumerate()][1:] == ["Autoreloader"]
                    record("started")
                    sys.exit()
                try:
                    time.sleep(60)
                finally:
                    os._exit(0)
    engine.block()
    """
    with running(tmp_path, "watchfiles", body) as process:
        process.wait_published("started")
        process.wait_published("stay")
        save(tmp_path, 2)
        wait_value(process, 2)
        process.wait_published("looked", 2)
        for child in process.children():
            os.kill(child, signal.SIGKILL)
    assert values(process) == [1, 2]


def test_a_change_during_a_stop_is_found_by_the_next_start(tmp_path: Path) -> None:
    """Subscribed twice, stopped without a start, started again: one watch, and nothing lost."""
    body = """
    import helper
    it = reloader()
    it.subscribe()
    it.stop()
    engine.start()
    record("up", value=helper.VALUE)
    if life == 1:
        while len(it._watched) == 0:
            time.sleep(0.005)
        engine.stop()
        assert threading.active_count() == 1, threading.enumerate()
        gate("stopped")
        engine.start()
        assert [thread.name for thread in threading.enumerate()].count("Autoreloader") == 1
    engine.block()
    """
    with running(tmp_path, "watchfiles", body) as process:
        process.wait_published("stopped")
        save(tmp_path, 2)
        (tmp_path / "stopped.1").touch()
        wait_value(process, 2)
    assert values(process) == [1, 2]


def test_unsubscribing_ends_the_watch(backend: str, tmp_path: Path) -> None:
    """No thread is left, and a start begins none."""
    engine = Engine()
    engine.host = Host("worker", 1)
    reloader = Autoreloader(engine, files=[tmp_path / "x"], backend=backend)
    reloader.subscribe()
    engine.start()
    assert is_watching()
    for _ in range(2):
        reloader.unsubscribe()
    wait_until(lambda: not is_watching())
    engine.stop()
    engine.start()
    assert not is_watching()
    engine.exit()
    assert autoreload.HANDOVER not in os.environ


def test_a_failing_start_ends_the_watch(backend: str, tmp_path: Path) -> None:
    """A change during a start does not abort it, and what it started is rolled back."""
    engine = Engine()
    engine.host = Host("worker", 1)
    Autoreloader(engine, files=[tmp_path / "x"], backend=backend).subscribe()

    @engine.subscribe("start", priority=75)
    def bind() -> None:
        (tmp_path / "x").touch()
        raise OSError("the port is taken")

    with pytest.raises(EngineError):
        engine.start()
    wait_until(lambda: not is_watching())


def is_watching() -> bool:
    """Whether there is a thread that watches."""
    return "Autoreloader" in [thread.name for thread in threading.enumerate()]


def test_turning_it_off_during_the_start_waits_for_nobody(tmp_path: Path) -> None:
    """Its thread waits for the end of the start, which waits for this listener."""
    engine = Engine()
    engine.host = Host("worker", 1)
    reloader = Autoreloader(engine, files=[tmp_path / "x"])
    reloader.subscribe()
    engine.subscribe("start", reloader.unsubscribe, priority=75)
    engine.start()
    wait_until(lambda: not is_watching())
    engine.exit()


def test_a_change_that_a_stop_has_overtaken_is_not_lost(tmp_path: Path) -> None:
    """Seen, but too late to act on it: the next start does."""
    engine = Engine()
    engine.host = Host("worker", 1)
    said: list[str] = []
    engine.subscribe("log", lambda msg, level: said.append(msg))
    path = tmp_path / "x"
    reloader = Autoreloader(engine, match="nothing", files=[path], backend="polling")
    stopped = Watcher(reloader._watched, lambda changed: False, print)
    stopped.stop()
    assert not reloader._act(stopped, {str(path)})
    assert not any("changed" in line for line in said)
    reloader.subscribe()
    engine.start()
    wait_until(lambda: any(f"{path} changed; no restart" in line for line in said))
    reloader.unsubscribe()
    engine.exit()


def test_an_exit_at_the_same_moment_has_its_way(tmp_path: Path) -> None:
    """SIGTERM while the change makes it stop: it stops once, leaves, and nothing hangs."""
    for name in ("imported.1", "starting.1"):
        (tmp_path / name).touch()
    with running(tmp_path, "watchfiles", SLOW) as process:
        save(tmp_path, 2)
        process.wait_published("stopping")
        process.signal(signal.SIGTERM)
        process.wait_published("told")
        (tmp_path / "stopping.1").touch()
        assert process.wait_exit() == 0
    assert values(process) == [1]


def test_without_a_thread_in_block_it_restarts_as_well(tmp_path: Path) -> None:
    """A main thread that does something else does not keep the new code from running."""
    body = SIMPLE.replace("engine.block()", "time.sleep(60)")
    with running(tmp_path, "polling", body) as process:
        save(tmp_path, 2)
        wait_value(process, 2)


def test_a_stop_listener_that_fails_is_no_obstacle(tmp_path: Path) -> None:
    """Its failure is in the log; the new code runs."""
    body = SIMPLE.replace(
        "engine.start()", "engine.subscribe('stop', lambda: 1 / 0)\nengine.start()"
    )
    with running(tmp_path, "polling", body) as process:
        save(tmp_path, 2)
        wait_value(process, 2)
        process.signal(signal.SIGTERM)
        process.wait_exit()


def test_greenlets_in_the_place_of_threads_poll(tmp_path: Path) -> None:
    """Where gevent has patched threads, waiting in watchfiles would stop all of them."""
    body = """
    import _thread
    start_new_thread = _thread.start_new_thread
    def spawn(*arguments):
        return start_new_thread(*arguments)
    _thread.start_new_thread = spawn  # as gevent.monkey does
    """
    with running(tmp_path, "auto", textwrap.dedent(body) + SIMPLE) as process:
        save(tmp_path, 2)
        wait_value(process, 2)
        process.wait_published("looked", 2)
        assert "anon_inode:inotify" not in open_files(process.pid)


def test_the_program_of_the_guide_works(tmp_path: Path) -> None:
    """As it is printed there, without a word of ours in it."""
    [program, *_] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    app = tmp_path / "app.py"
    app.write_text(program)
    with start_process([sys.executable, app], cwd=tmp_path) as process:
        process.wait_line("^running")
        app.write_text(program.replace("running", "anew"))
        process.wait_line("^anew")
        assert "INFO app.py changed" in process.output()
        wait_asleep(process.pid)  # in `block`
        process.signal(signal.SIGINT)
        assert process.wait_exit() == 0


@pytest.mark.skipif(not ROOT, reason="needs root, to become somebody whom a mode keeps out")
def test_a_file_that_cannot_be_read_stops_nothing(backend: str, anybodys: Path) -> None:
    """Until it can be read: a change of its mode is none of its content, yet noticed."""
    body = """
    import helper, importlib.util
    try:
        import watchfiles
    except ImportError:
        pass
    import engine_bridge.core.stacks, traceback, linecache
    reloader()
    os.setgid(54321)
    os.setuid(54321)
    engine.host = type("Nobody", (__import__("engine_bridge.core.host").core.host.Host,), {
        "prepare_restart": lambda self: lambda: record("restart")})("worker", 1)
    engine.start()
    record("up", value=life)
    engine.block()
    """
    with running(anybodys, backend, body, looked=0) as process:
        os.chmod(process.journal_path, 0o666)
        os.chmod(process.journal_path.parent, 0o755)
        process.wait_published("looked")
        new = anybodys / "new"
        new.write_text("VALUE = 2")
        new.chmod(0)
        new.rename(anybodys / "helper.py")
        wait_log(process, "helper.py cannot be read: Permission denied; not restarting, the run")
        (anybodys / "helper.py").chmod(0o644)
        process.wait_published("restart")


# -- arguments, and what is not installed ----------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"frequency": 0}, r"Autoreloader\(frequency=…\) wants seconds, more than 0; got 0"),
        ({"frequency": "1"}, "got '1'"),
        ({"frequency": True}, "got True"),
        ({"frequency": float("nan")}, "got nan"),
        ({"debounce": float("inf")}, "debounce=….* got inf"),
        ({"match": "("}, r"regular expression .* got '\('"),
        ({"match": None}, "got None"),
        ({"backend": "x"}, "no backend 'x'.* known: auto, inotify, watchfiles, polling"),
        ({"files": "app.yaml"}, "wants a list of paths; got 'app.yaml'"),
        ({"files": [""]}, "not the path of a file: ''"),
        ({"files": [7]}, "not the path of a file: 7"),
        ({"files": ["/"]}, "/ is a directory; name it in directories="),
        ({"directories": "templates"}, "wants a list of paths"),
        ({"directories": [__file__]}, "is no directory; name it in files="),
        ({"include": "*.html"}, "wants a list of patterns; got '.*html'"),
        ({"exclude": [7]}, "wants patterns as text; got 7"),
        ({"exclude": ["a/***/["]}, None),
        ({"exclude": ["!"]}, "wants patterns as in .gitignore"),
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, object], says: str | None) -> None:
    """When the plugin is made, in a sentence."""
    if says is None:
        Autoreloader(Engine(), **wrong)  # type: ignore[arg-type]  # what git takes is taken
        return
    with pytest.raises(EngineError, match=says):
        Autoreloader(Engine(), **wrong)  # type: ignore[arg-type]  # that is the point


def test_without_the_extra_it_polls_and_says_what_patterns_need() -> None:
    """Neither watchfiles nor pathspec is needed to watch modules."""
    done = run_script("""
    import sys, threading
    sys.modules["watchfiles"] = sys.modules["pathspec"] = None
    from engine_bridge import Engine, EngineError
    from engine_bridge.plugins import Autoreloader
    engine = Engine()
    reloader = Autoreloader(engine)
    reloader.subscribe()
    with engine:
        while not len(reloader._watched):
            pass
    for wrong in ({"backend": "watchfiles"}, {"exclude": ["x"]}, {"directories": ["."]}):
        try:
            Autoreloader(engine, **wrong)
        except EngineError as exc:
            print(exc)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.endswith("pip install 'engine-bridge[reload]'") for line in lines)


def test_a_directory_that_is_not_there_yet_is_told(tmp_path: Path) -> None:
    """A wrong name would else never be noticed."""
    engine = Engine()
    said: list[str] = []
    engine.subscribe("log", lambda msg, level: said.append(msg))
    reloader = Autoreloader(engine, directories=[tmp_path / "templates"])
    reloader.start()
    reloader.stop()
    assert said == [f"the directory {tmp_path / 'templates'} is not there; waiting for it"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "c", "b"], "a, b and c"),
        ([*"abcdefghijklmno"], "a, b, c and 12 more"),
        (["a\nb", "ä"], r"'a\nb' and ä"),
    ],
)
def test_the_log_names_a_few_files(names: list[str], text: str) -> None:
    """In one line, whatever is in a name."""
    assert autoreload.name_some(os.path.join(STARTUP_CWD, n) for n in names) == text


@pytest.mark.parametrize("handover", ["", "x y z", "1 2", "1 2 3", "{pid} -2 3", "{pid} 2 3"])
def test_only_what_this_process_left_word_of_counts(
    monkeypatch: pytest.MonkeyPatch, handover: str
) -> None:
    """What is in the environment by chance, or of a parent, is not believed."""
    text = handover.replace("{pid}", str(os.getpid()))
    monkeypatch.setenv(autoreload.HANDOVER, text)
    found = autoreload._handed_over(os.getpid())
    assert found == ((2, 3) if handover == "{pid} 2 3" else None)


def test_a_process_began_before_it_imported_anything() -> None:
    """By proc(5), to a hundredth of a second; a shell's `exec` does not count."""
    done = run_script("""
    import time
    began = time.time_ns()
    from engine_bridge.plugins import autoreload
    assert began - 10e9 < autoreload._process_start() < began
    autoreload.LONGEST_IMPORT = 0
    assert autoreload._process_start() == autoreload.IMPORTED
    """)
    assert done.returncode == 0, done.stderr
