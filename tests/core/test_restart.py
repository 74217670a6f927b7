import os
import re
import sys
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from processes import Process, run_script, start_process, start_script
from scripts import script

from engine_bridge import Engine, EngineError
from engine_bridge.core import host
from engine_bridge.core.errors import RestartRefused
from engine_bridge.core.host import Host

LIFE = ["start", "drain", "stop", "exit"]

FACTS = """
life = os.environ.get("LIFE", "first")
os.environ["LIFE"] = "second"
record(
    life,
    argv=sys.argv,
    options=[sys.warnoptions, sys._xoptions],
    name=[__name__, __package__ or ""],
    cwd=os.getcwd(),
)
"""
RESTART = """
engine.start()
if life == "first":
    os.chdir("/")
    engine.restart()
"""
PROGRAM = script(FACTS, RESTART, handler=False)


def channels(process: Process) -> list[str]:
    """Return what was published, in both lives."""
    return [entry.channel for entry in process.journal() if entry.channel in LIFE]


def assert_restarted(process: Process) -> None:
    """Check that there were two lives in one process, with the same facts."""
    lives = [entry for entry in process.journal() if entry.channel in {"first", "second"}]
    assert [entry.channel for entry in lives] == ["first", "second"], process.report()
    first, second = lives
    assert first.pid == second.pid == process.pid
    assert first.facts == second.facts


# What is run again


def write_package(folder: Path) -> None:
    """Write a package that is a program."""
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "__main__.py").write_text(PROGRAM)


def write_script(folder: Path) -> None:
    """Write a script."""
    (folder / "program.py").write_text(PROGRAM)


def write_archive(folder: Path) -> None:
    """Write an archive that is a program."""
    with zipfile.ZipFile(folder / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", PROGRAM)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        pytest.param(write_script, ["program.py"], id="script"),
        pytest.param(write_script, ["program.py", "-m", "-c", "ä b", "", '"x"'], id="arguments"),
        pytest.param(
            write_script,
            ["-W", "error::UserWarning", "-Xdev", "-X", "frozen_modules=off", "program.py", "-W"],
            id="options",
        ),
        pytest.param(write_package, ["-m", "package", "-m", "-c"], id="module"),
        pytest.param(write_package, ["package", "x"], id="folder"),
        pytest.param(write_archive, ["archive.pyz", "x"], id="archive"),
        pytest.param(write_script, ["-c", PROGRAM, "-c", "-m", "x y"], id="command"),
    ],
)
def test_the_same_command_line_runs_again(
    write: Callable[[Path], None], words: Sequence[str], tmp_path: Path
) -> None:
    """Script, module, folder, archive or `-c`: all of it again, from where it began, same pid."""
    write(tmp_path)
    with start_process([sys.executable, *words], cwd=tmp_path) as process:
        assert process.wait_exit() == 0
    assert_restarted(process)
    assert channels(process) == LIFE * 2
    assert process.output() == ""


def test_sockets_of_a_service_manager_are_kept(tmp_path: Path) -> None:
    """Sockets handed in as LISTEN_FDS stay open: who connects meanwhile is answered afterwards."""
    (tmp_path / "program.py").write_text(
        script(
            FACTS,
            """
            import socket
            os.set_inheritable(3, False)  # as systemd's and our own code does
            listener = socket.socket(fileno=3)
            engine.start()
            if life == "first":
                record("port", number=listener.getsockname()[1])
                listener.listen()
                connection = socket.create_connection(listener.getsockname())
                connection.sendall(b"hello")
                os.set_inheritable(connection.fileno(), False)
                record("connected")
                engine.subscribe("exit", lambda: connection.shutdown(socket.SHUT_WR))
                engine.restart()
            client, _ = listener.accept()
            record("read", data=client.recv(100).decode())
            """,
            handler=False,
        )
    )
    driver = """
    import os, socket, sys
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)  # it may have been there already
    os.environ |= {"LISTEN_FDS": "9", "LISTEN_PID": str(os.getpid())}  # some are closed
    os.execv(sys.executable, [sys.executable, sys.argv[1]])
    """
    with start_script(driver, tmp_path / "program.py") as process:
        assert process.wait_exit() == 0
    assert_restarted(process)
    [read] = process.wait_published("read")
    assert read.facts == {"data": "hello"}


def test_standard_streams_are_flushed() -> None:
    """What was printed before the restart is printed, once."""
    body = """
    print("to stdout", life, end=" ")
    sys.stderr = open(2, "w", buffering=1000, closefd=False)
    print("to stderr", life, end=" ", file=sys.stderr)
    """
    env = {"PYTHONUNBUFFERED": ""}
    done = run_script(script(FACTS, body, RESTART, handler=False), env=env)
    assert done.stdout == "to stdout first to stdout second "
    assert done.stderr == "to stderr first to stderr second "


@pytest.mark.parametrize(
    "broken",
    [
        "sys.stdout = None",
        "sys.stdout.close()",
        "sys.stdout = open('/dev/full', 'w', buffering=1000); print('x')",
    ],
)
def test_broken_streams_keep_nothing_from_restarting(broken: str) -> None:
    """A standard stream that is missing, closed or full does not end the program."""
    body = f"""
    if life == "first":
        {broken}
    """
    done = run_script(script(FACTS, body, RESTART, handler=False))
    assert done.returncode == 0, done.stderr
    assert_restarted(done.process)


# Who asks for it


@pytest.mark.parametrize(
    "asking",
    [
        pytest.param("threading.Thread(target=engine.restart).start(); block()", id="thread"),
        pytest.param("threading.Thread(target=engine.restart).start(); time.sleep(9)", id="sleep"),
        pytest.param("engine.subscribe('main', engine.restart); engine.block()", id="main"),
        pytest.param("engine.subscribe('stop', engine.restart); engine.stop()", id="stop"),
        pytest.param("engine.subscribe('drain', engine.restart); engine.stop()", id="drain"),
        pytest.param("engine.subscribe('exit', engine.restart); engine.exit()", id="exit"),
        pytest.param("engine.exit(); engine.restart()", id="exited"),
        pytest.param("with engine: engine.restart()", id="with"),
        pytest.param(
            "[threading.Thread(target=engine.restart).start() for _ in range(8)]; block()",
            id="threads",
        ),
    ],
)
def test_anybody_may_ask(asking: str) -> None:
    """From threads, listeners and the main thread, with or without `block`: one new life."""
    body = f"""
    engine.start()
    if life == "first":
        {asking}
    """
    done = run_script(script(FACTS, body, handler=False))
    assert done.returncode == 0, done.stderr
    assert_restarted(done.process)
    assert channels(done.process) == LIFE * 2
    assert done.stderr == ""


def test_a_restart_waits_for_the_thread_in_block() -> None:
    """What that thread is doing for the channel `main` is not cut off in the middle."""
    body = """
    engine.start()
    if life == "first":
        @engine.subscribe("main")
        def tick():
            threading.Thread(target=engine.restart).start()
            while engine.state is not State.EXITING or engine.in_transition:
                time.sleep(0.001)
            time.sleep(0.05)  # anybody else would be quicker
            record("tick is over")

        engine.block()
    """
    done = run_script(script(FACTS, body, handler=False))
    assert_restarted(done.process)
    done.process.wait_published("tick is over")


def test_a_start_listener_may_ask() -> None:
    """A restart that a start listener asks for follows the start."""
    body = """
    if life == "first":
        engine.subscribe("start", engine.restart, priority=10)
    engine.start()
    """
    done = run_script(script(FACTS, body, handler=False))
    assert_restarted(done.process)
    assert channels(done.process) == LIFE * 2


def test_an_engine_that_never_started_may_restart() -> None:
    """The program is started anew although its engine has not been."""
    body = """
    if life == "first":
        engine.restart()
    """
    done = run_script(script(FACTS, body, handler=False))
    assert_restarted(done.process)
    assert channels(done.process) == ["exit"]


@pytest.mark.parametrize("how", ["engine.restart()", "os.kill(os.getpid(), 1); block()"])
@pytest.mark.parametrize("failing", ["1 / 0", "sys.exit(3)"])
def test_a_failing_stop_does_not_keep_it_from_restarting(how: str, failing: str) -> None:
    """When stop listeners fail the others run, the failures are told, and the restart follows."""
    body = f"""
    if life == "first":
        @engine.subscribe("stop", priority=10)
        def fail():
            {failing}
    engine.start()
    if life == "first":
        {how}
    """
    done = run_script(script(FACTS, body))
    assert done.returncode == 0, done.stderr
    assert_restarted(done.process)
    assert channels(done.process) == LIFE * 2
    said = "ZeroDivisionError: division by zero" if failing == "1 / 0" else "SystemExit: 3"
    assert f"__main__.fail failed on 'stop': {said}" in done.stderr


def test_a_hanging_stop_does_not_keep_it_from_restarting() -> None:
    """Past stop_timeout the listener that hangs is left behind, and the restart follows."""
    body = """
    if life == "first":
        engine.stop_timeout = 0.2
        engine.subscribe("stop", partial(time.sleep, 30), priority=10)
    engine.start()
    if life == "first":
        engine.restart()
    """
    done = run_script(script(FACTS, body, handler=False))
    assert_restarted(done.process)
    assert channels(done.process) == LIFE * 2
    assert "left behind" in done.stderr


# What is refused, before anything stops

REFUSED = """
from engine_bridge.core.errors import RestartRefused
engine.start()
try:
    engine.restart()
except RestartRefused as exc:
    print(engine.state, exc, flush=True)
"""


def refusal(process: Process) -> str:
    """Return the sentence with which a restart was refused; check that nothing had stopped."""
    assert process.wait_exit() == 0, process.report()
    assert channels(process) == LIFE, process.report()
    state, _, sentence = process.output().strip().partition(" ")
    assert state == "STARTED", process.report()
    return sentence


@pytest.mark.parametrize("words", [[], ["-"], ["-X", "dev", "-", "x"]], ids=repr)
def test_a_program_from_standard_input_is_refused(words: list[str], tmp_path: Path) -> None:
    """What was piped into the interpreter is gone."""
    path = tmp_path / "program.py"
    path.write_text(script(REFUSED, handler=False))
    driver = """
    import os, subprocess, sys
    sys.exit(subprocess.run([sys.executable, *sys.argv[2:]], stdin=open(sys.argv[1])).returncode)
    """
    with start_script(driver, path, *words) as process:
        said = refusal(process)
    assert said == (
        "the program came from standard input or a prompt and cannot be read again; "
        "put it into a file, or restart it from outside"
    )


def test_a_directory_that_is_closed_by_now_is_refused(tmp_path: Path) -> None:
    """A user who may not go back to where the program began, as with rights dropped, is told."""
    body = """
    import os, sys
    from engine_bridge import engine
    from engine_bridge.core.errors import RestartRefused
    engine.start()
    os.chmod(".", 0o600)
    sys.executable = "/bin/sh"  # this one may be closed to others as well
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    try:
        engine.restart()
    except RestartRefused as exc:
        print(engine.state, exc, os.geteuid(), flush=True)
    """
    words = [sys.executable, "-c", textwrap.dedent(body)]
    with start_process(words, cwd=tmp_path) as process:
        assert process.wait_exit() == 0
    state, *said, user = process.output().split()
    assert state == "STARTED"
    assert " ".join(said) == (
        f"the directory in which this process began, {tmp_path}, is closed to user {user}, "
        "who it is now; restart it from outside, and begin in another"
    )


@pytest.mark.parametrize("words", [["program.py"], ["-m", "package"], ["package"]])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("os.unlink(__file__)", "cannot read {path} again: No such file or directory"),
        ("os.unlink(__file__); os.mkdir(__file__)", "cannot read {path} again: Is a directory"),
        (
            "open(__file__, 'w').write('import os\\nif True\\n')",
            r"{path} does not compile, line 2: expected ':'",
        ),
        (
            "open(__file__, 'w').write('import os\\n\\0')",
            r"{path} does not compile, line \d: source code .*cannot contain null bytes",
        ),
        (
            "open(__file__, 'wb').write(b'import os\\nx = \"\\xff\"')",
            r"{path} does not compile, line \d: .*utf-8.*",
        ),
    ],
    ids=["deleted", "a directory", "syntax", "null", "encoding"],
)
def test_a_program_that_cannot_run_again_is_refused(
    words: list[str], spoil: str, sentence: str, tmp_path: Path
) -> None:
    """A program that is gone, or no longer compiles, goes on running as it is, and says why."""
    program = script(spoil, REFUSED, handler=False)
    (tmp_path / "program.py").write_text(program)
    write_package(tmp_path)
    (tmp_path / "package" / "__main__.py").write_text(program)
    path = tmp_path / ("program.py" if words == ["program.py"] else "package/__main__.py")
    with start_process([sys.executable, *words], cwd=tmp_path) as process:
        said = refusal(process)
    assert re.fullmatch(sentence.format(path=re.escape(str(path))), said), said


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_directory_that_is_gone_is_refused(when: str, tmp_path: Path) -> None:
    """Relative paths were meant from a directory that is no more, so nothing is started there."""
    (tmp_path / "program.py").write_text(
        script(
            "os.rmdir(sys.argv[1])" if when == "after" else "",
            REFUSED,
            handler=False,
        )
    )
    place = tmp_path / "place"
    place.mkdir()
    driver = """
    import os, sys
    if sys.argv[3] == "before":
        os.rmdir(sys.argv[2])
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    """
    (tmp_path / "driver.py").write_text(textwrap.dedent(driver))
    argv: list[str | Path] = [sys.executable, tmp_path / "driver.py"]
    argv += [tmp_path / "program.py", place, when]
    with start_process(argv, cwd=place) as process:
        said = refusal(process)
        place.mkdir()  # the helpers remove it
    told = str(place) if when == "after" else "(unknown)"
    assert said == (
        f"the directory in which this process began, {told}, is gone; restart it from outside"
    )


def test_a_process_of_a_server_is_refused() -> None:
    """A worker does not exec: the sentence names the process to restart instead."""
    engine = Engine()
    engine.host = Host("worker", 1234)
    engine.start()
    with pytest.raises(RestartRefused) as caught:
        engine.restart()
    assert str(caught.value) == (
        "this process is a worker of process 1234, and nothing is known of how that gives "
        "a new one; restart it from outside"
    )
    assert isinstance(caught.value, EngineError)
    assert engine.ready
    engine.exit()


def test_an_interpreter_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment that was removed, or an embedded interpreter, cannot be run again."""
    for executable, named in (("/nowhere/python", "/nowhere/python"), ("", "Python")):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(RestartRefused, match=f"^cannot run {named} again: no such program$"):
            host.prepare_exec()


# What is prepared


def test_a_frozen_program_is_its_own_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyInstaller and its like get the program's arguments without the interpreter's."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["program", "x"])
    assert host._command_line() == [sys.executable, "x"]


@pytest.mark.parametrize(
    ("pid", "count", "sockets"),
    [("own", "2", [3, 4]), ("1", "2", []), ("own", "", []), ("own", "-1", []), ("own", "x", [])],
)
def test_only_sockets_that_are_ours_are_kept(
    pid: str, count: str, sockets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LISTEN_FDS counts where LISTEN_PID names this process; nonsense is no reason to fail."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert host.inherited_sockets() == sockets


def test_a_host_names_the_process_to_signal() -> None:
    """The main process is this one, unless a server's is named."""
    assert Host().main_pid == os.getpid()
    assert Host("worker", 7).main_pid == 7
    assert [
        role for role in ("script", "main", "worker", "supervisor") if Host(role).owns_process
    ] == [
        "script",
        "supervisor",
    ]
