import functools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import Process, start_process, wait_asleep, wait_gone, wait_line, wait_until

from engine_bridge import ChannelFailures, Engine, EngineError
from engine_bridge.core.host import Host
from engine_bridge.plugins import DropPrivileges, privileges

TESTS = Path(__file__).resolve().parent.parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to drop it")

# Users of the tests' own, whatever there is on the machine.
WEB, MORE, NUMBER = 4321, 4322, 4330
PASSWD = (
    f"root:x:0:0::/root:/bin/sh\nweb:x:{WEB}:{WEB}::/srv/web:/bin/sh\n007:x:{NUMBER}:{WEB}::/:\n"
)
GROUP = f"root:x:0:\nweb:x:{WEB}:\nmore:x:{MORE}:web\n"

# In a namespace of its own, so that nothing stays mounted whatever happens.
AS_IF = 'mount --bind passwd /etc/passwd && mount --bind group /etc/group && exec "$@"'

HEAD = """
import ctypes, json, logging, os, signal, socket, stat, subprocess, sys, threading, traceback
from engine_bridge import ChannelFailures, Engine, engine
from engine_bridge.plugins import Daemonizer, DropPrivileges, Log, PIDFile, SignalHandler

libc = ctypes.CDLL(None)

def tell(**facts):
    umask = os.umask(0)
    os.umask(umask)
    told = {
        "pid": os.getpid(), "uids": os.getresuid(), "gids": os.getresgid(),
        "groups": sorted(os.getgroups()), "umask": umask,
        **{name: os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")}, **facts,
    }
    print(json.dumps(told), flush=True)

def start(before=lambda: None, **arguments):
    "Start an engine in a child that has run *before*; tell what became of it."
    if os.fork():
        os.wait()
        return
    try:
        said = []
        engine = Engine()
        engine.observe(lambda record: said.append([record.level, record.message()]))
        engine.unobserve(engine.observers[0])  # logging's
        DropPrivileges(engine, **arguments).subscribe()
        before()
        try:
            engine.start()
        except ChannelFailures as exc:
            tell(failed=[str(each) for each in exc.exceptions], state=engine.state.name)
        else:
            first = [each for each in said if "rivileges dr" in each[1] or each[0] > 20]
            first += [each for each in said if "rivileges to" in each[1]]
            try:
                os.setuid(0)
                way_back = True
            except PermissionError:
                way_back = False
            engine.stop()
            engine.start()
            tell(said=first, way_back=way_back)
            engine.exit()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)

"""


@functools.cache
def interpreter() -> str:
    """Return an interpreter that any user may run: it must be so after a restart."""
    program = "import sys, engine_bridge.plugins; sys.exit(sys.version_info < (3, 11))"
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run(
                [candidate, "-c", program],
                env=env, cwd="/", user=WEB, group=WEB, extra_groups=[], check=True,
                capture_output=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip("no interpreter here that another user may run")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with the users' database, that any user can enter and only root write."""
    folder = Path("/tmp", f"engine-bridge-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "passwd").write_text(PASSWD)
    (folder / "group").write_text(GROUP)
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


@contextmanager
def running(folder: Path, *parts: str) -> Iterator[Process]:
    """Run a script as root, with the users of the tests; end its daemons, too."""
    probe = ["unshare", "--mount", "sh", "-c", AS_IF, "", "true"]
    if subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("no file can be mounted here")
    (folder / "program.py").write_text(HEAD + "".join(map(textwrap.dedent, parts)))
    argv: list[str | Path] = [*probe[:-1], interpreter(), folder / "program.py"]
    env = {"PYTHONPATH": str(TESTS.parent), "HOME": "/root", "USER": "root", "LOGNAME": "root"}
    with start_process(argv, cwd=folder, env=env, apart=True) as process:
        try:
            yield process
        finally:
            for info in process.family():
                if info.pid != process.pid:
                    os.kill(info.pid, signal.SIGTERM)


def facts(text: str) -> list[dict[str, Any]]:
    """Return what a script told."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def told(folder: Path, *parts: str) -> list[dict[str, Any]]:
    """Run a script to its end; return what it told."""
    with running(folder, *parts) as process:
        assert process.wait_exit() == 0, process.report()
    assert process.errors() == "", process.report()
    return facts(process.output())


def one(folder: Path, *parts: str) -> dict[str, Any]:
    """Run a script to its end; return the one thing that it told."""
    [fact] = told(folder, *parts)
    return fact


def owner(path: Path) -> tuple[int, int]:
    """Return the user and the group to whom something belongs; a link itself, not its target."""
    there = path.lstat()
    return there.st_uid, there.st_gid


# -- who it becomes --------------------------------------------------------------------------------

CASES: list[tuple[str, int, int, list[int], Sequence[str]]] = [
    ("uid='web'", WEB, WEB, [WEB, MORE], ["/srv/web", "web", "web"]),
    (f"uid={WEB}", WEB, WEB, [WEB, MORE], ["/srv/web", "web", "web"]),
    (f"uid='{WEB}'", WEB, WEB, [WEB, MORE], ["/srv/web", "web", "web"]),
    ("uid='web', gid='more'", WEB, MORE, [MORE], ["/srv/web", "web", "web"]),
    ("uid='web', gid=99", WEB, 99, [99, MORE], ["/srv/web", "web", "web"]),
    ("uid='007'", NUMBER, WEB, [WEB], ["/", "007", "007"]),
    ("uid=1234, gid=1235", 1234, 1235, [1235], ["/root", "root", "root"]),
    ("uid='1234', gid='1235'", 1234, 1235, [1235], ["/root", "root", "root"]),
    ("uid='web', gid=0", WEB, 0, [0, MORE], ["/srv/web", "web", "web"]),
]


@needs_root
def test_dropprivileges_becomes_the_user_with_its_groups_and_never_root_again(
    folder: Path,
) -> None:
    """By name or number, with an entry or without; also over a stop and a second start."""
    calls = "\n".join(f"start({arguments}, umask=0o027)" for arguments, *_ in CASES)
    found = told(folder, calls)
    assert len(found) == len(CASES)
    for fact, (_, uid, gid, groups, variables) in zip(found, CASES, strict=True):
        assert fact["uids"] == [uid] * 3
        assert fact["gids"] == [gid] * 3
        assert fact["groups"] == sorted(groups)
        assert [fact["HOME"], fact["USER"], fact["LOGNAME"]] == variables
        assert fact["umask"] == 0o027
        assert fact["way_back"] is False
        user = f"{fact['USER']} ({uid})" if fact["USER"] != "root" else uid
        said = f"Privileges dropped: this is user {user}, group {gid} from now on"
        assert fact["said"] == [[20, said]]


@needs_root
def test_dropprivileges_with_a_group_only_stays_root_and_warns(folder: Path) -> None:
    """The group is changed, and the log says that this drops nothing."""
    fact = one(folder, "start(gid='more')")
    assert (fact["uids"], fact["gids"], fact["groups"]) == ([0] * 3, [MORE] * 3, [MORE])
    assert fact["said"][1:] == [[30, "This process goes on as root: a group alone drops nothing"]]


@needs_root
def test_dropprivileges_drops_them_in_all_threads(folder: Path) -> None:
    """Threads that run already, such as a server's, are the new user as well."""
    fact = one(
        folder,
        """
        over = threading.Event()
        thread = threading.Thread(target=over.wait)
        thread.start()
        DropPrivileges(engine, uid="web").subscribe()
        engine.start()
        uids = set()
        for name in os.listdir("/proc/self/task"):
            [line] = [line for line in open(f"/proc/self/task/{name}/status") if "Uid" in line]
            uids |= set(line.split()[1:])
        tell(of_threads=sorted(uids))
        over.set()
        thread.join()
        """,
    )
    assert fact["of_threads"] == [str(WEB)]


@needs_root
def test_dropprivileges_looks_the_user_up_at_each_start(folder: Path) -> None:
    """A user that was missing may be there at the next try, and is dropped to then."""
    first, second = told(
        folder,
        """
        logging.disable()
        DropPrivileges(engine, uid="late").subscribe()
        try:
            engine.start()
        except ChannelFailures as exc:
            tell(failed=str(exc.exceptions[0]))
        with open("/etc/passwd", "a") as file:
            file.write("late:x:5000:5000::/:\\n")
        engine.start()
        tell()
        """,
    )
    assert first["failed"].startswith("no user 'late' on this system (getent passwd)")
    assert first["uids"] == [0, 0, 0]
    assert second["uids"] == [5000] * 3


@needs_root
def test_dropprivileges_is_content_when_it_is_that_user_already(folder: Path) -> None:
    """Begun as the user, as after a restart; ids in reserve are dropped, groups are warned of."""
    present, reserve, groups = told(
        folder,
        f"""
        def become(saved, *groups):
            os.setgroups(groups)
            os.setresgid({WEB}, {WEB}, {WEB})
            os.setresuid({WEB}, {WEB}, saved)

        start(lambda: become({WEB}, {WEB}, {MORE}), uid="web")
        start(lambda: become(0, {WEB}, {MORE}), uid="web")
        start(lambda: become({WEB}, {WEB}, 0, 7), uid="web")
        """,
    )
    text = f"this is user web ({WEB}), group {WEB}"
    assert present["said"] == [[20, f"No privileges to drop: {text} already"]]
    assert reserve["said"] == [[20, f"Privileges dropped: {text} from now on"]]
    warning = f"user web ({WEB}), group {WEB} has groups left that only root can drop: 0, 7"
    assert groups["said"] == [[30, warning], [20, f"No privileges to drop: {text} already"]]
    for fact in (present, reserve, groups):
        assert fact["uids"] == [WEB] * 3
        assert fact["way_back"] is False


# -- what is refused -------------------------------------------------------------------------------


@needs_root
def test_dropprivileges_says_what_keeps_it_from_becoming_the_user(folder: Path) -> None:
    """One sentence each: no such user or group, an unknown group, rights that are missing."""
    found = told(
        folder,
        """
        start(uid="nosuch")
        start(uid="web", gid="nosuch")
        start(uid=1234)
        start(lambda: os.setresuid(1234, 1234, 1234), uid="web")
        start(lambda: os.setgroups([1235]) or os.setresuid(1234, 1234, 1234), uid=9, gid=1235)
        """,
    )
    assert [fact["state"] for fact in found] == ["STOPPED"] * 5
    example = "example: DropPrivileges(engine, uid='www-data')"
    named = "name one, DropPrivileges(engine, uid=1234, gid=1234)"
    denied = (
        "Operation not permitted; this process is user 1234: start it as root, "
        "or as that user at once"
    )
    assert [fact["failed"] for fact in found] == [
        [f"no user 'nosuch' on this system (getent passwd); {example}"],
        [f"no group 'nosuch' on this system (getent group); {example[:-1]}, gid='www-data')"],
        [f"user 1234 has no entry in the user database, so its group is unknown: {named}"],
        [f"cannot become user web ({WEB}), group {WEB}: {denied}"],
        [f"cannot become user 9, group 1235: {denied}"],
    ]


@needs_root
def test_dropprivileges_fails_where_root_could_be_regained(folder: Path) -> None:
    """Capabilities that outlive the change of user fail the start, and it ends as that user."""
    found = told(
        folder,
        """
        PR_SET_KEEPCAPS, PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 8, 28, 4
        start(lambda: libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), uid="web")
        start(lambda: libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), uid="web")
        """,
    )
    who = f"user web ({WEB}), group {WEB} could become root again, by"
    assert [fact["failed"][0].partition(":")[0] for fact in found] == [
        f"{who} setuid(2)",
        f"{who} a capability that it may still raise",
    ]
    for fact in found:
        assert (fact["uids"], fact["state"]) == ([WEB] * 3, "STOPPED")


@pytest.mark.parametrize("role", ["main", "worker", "reloader", "command"])
def test_dropprivileges_refuses_a_process_of_a_server(role: str) -> None:
    """Known at subscribe it is refused there, else by the start; the sentence says what to run."""
    engine = Engine()
    plugin = DropPrivileges(engine, no_new_privs=True)
    plugin.subscribe()
    engine.host = Host(role, os.getppid())
    sentence = (
        f"DropPrivileges is for a process of its own, but this one is a {role} of process "
        f"{os.getppid()}: leave it out here and run `engine-bridge run --user … --group …` or "
        "`gunicorn --user … --group …` instead"
    )
    with pytest.raises(ChannelFailures) as caught:
        engine.start()
    assert str(caught.value.exceptions[0]) == sentence
    with pytest.raises(EngineError) as refused:
        plugin.subscribe()
    assert str(refused.value) == sentence
    engine.exit()


@pytest.mark.parametrize(
    "arguments",
    [
        {"uid": ""},
        {"uid": -1},
        {"uid": 2**32 - 1},
        {"uid": "4294967295"},
        {"uid": True},
        {"uid": b"web"},
        {"uid": "a\0b"},
        {"gid": 1.5},
        {"umask": "022"},
        {"umask": 0o1000},
    ],
)
def test_dropprivileges_wants_names_or_numbers(arguments: dict[str, Any]) -> None:
    """Anything else is refused at construction, with an example."""
    with pytest.raises(EngineError, match=r"example: DropPrivileges\(engine, u"):
        DropPrivileges(Engine(), **arguments)


def test_dropprivileges_says_what_the_platform_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the users of POSIX, or without Linux for no_new_privs, subscribe says so."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(EngineError, match="for Linux only"):
            DropPrivileges(Engine(), no_new_privs=True).subscribe()
    monkeypatch.setattr(privileges, "pwd", None)
    with pytest.raises(EngineError, match="needs the users of POSIX"):
        DropPrivileges(Engine()).subscribe()


@pytest.mark.parametrize(
    ("user", "level", "said"), [(0, 30, "goes on as root"), (7, 20, "is user 7")]
)
def test_dropprivileges_tells_that_nothing_is_dropped(
    monkeypatch: pytest.MonkeyPatch, user: int, level: int, said: str
) -> None:
    """Without a user or group there is nothing to do but the umask; a warning if that is root."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    engine = Engine()
    records: list[tuple[int, str]] = []
    engine.observe(lambda record: records.append((record.level, record.message())))
    before = os.umask(0o022)
    try:
        DropPrivileges(engine, umask=0o077).subscribe()
        engine.start()
        assert os.umask(0o022) == 0o077
    finally:
        os.umask(before)
    engine.exit()
    [record] = [each for each in records if "rivileges" in each[1] and "neither" in each[1]]
    assert record[0] == level
    assert said in record[1]


# -- no new privileges -----------------------------------------------------------------------------


@needs_root
def test_dropprivileges_may_forgo_new_privileges(folder: Path) -> None:
    """A setuid program is then the user's that runs it, in every thread; without it, root's."""
    found = told(
        folder,
        """
        subprocess.run(["cp", "/usr/bin/id", "id"], check=True)
        os.chmod("id", 0o4755)

        def run(**arguments):
            if os.fork():
                os.wait()
                return
            engine = Engine()
            DropPrivileges(engine, uid="web", **arguments).subscribe()
            engine.start()
            for _ in range(2):
                ids = []
                look = lambda: ids.append(int(subprocess.check_output(["./id", "-u"])))
                thread = threading.Thread(target=look)
                thread.start()
                thread.join()
                look()
                tell(ids=ids)
                engine.stop()
                engine.start()
            os._exit(0)

        run(no_new_privs=True)
        run()
        """,
    )
    if found[-1]["ids"] != [0, 0]:
        pytest.skip("setuid programs mean nothing here anyway")
    assert [fact["ids"] for fact in found[:2]] == [[WEB] * 2] * 2


def test_dropprivileges_refuses_no_new_privs_that_would_not_hold(tmp_path: Path) -> None:
    """Threads that run already keep the right; the sentence names them."""
    source = """
    import logging, threading
    from engine_bridge import ChannelFailures, engine
    from engine_bridge.plugins import DropPrivileges, privileges
    privileges.PATIENCE = 0.05
    logging.disable()
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    DropPrivileges(engine, no_new_privs=True).subscribe()
    try:
        engine.start()
    except ChannelFailures as exc:
        print(exc.exceptions[0], flush=True)
    over.set()
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(source))
    with start_process([sys.executable, path]) as process:
        assert process.wait_exit() == 0
    said = "no_new_privs would not hold for 1 threads that run already (python"
    assert process.output().startswith(said)


def test_dropprivileges_says_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not know no_new_privs fails the start with a sentence."""
    monkeypatch.setattr(privileges, "PR_SET_NO_NEW_PRIVS", 999)
    engine = Engine()
    DropPrivileges(engine, no_new_privs=True).subscribe()
    with pytest.raises(ChannelFailures) as caught:
        engine.start()
    assert "the kernel refuses no_new_privs: Invalid argument" in str(caught.value.exceptions[0])
    engine.exit()


# -- what is handed over ---------------------------------------------------------------------------

HOLDS = """
os.mkdir("own", 0o755)
SignalHandler(engine).subscribe()
PIDFile(engine, "own/app.pid").subscribe()
Log(engine, file="own/app.log").subscribe()
DropPrivileges(engine, uid="web").subscribe()
"""


@needs_root
def test_dropprivileges_hands_over_what_the_process_holds(folder: Path) -> None:
    """PID file, log files and bound Unix sockets are the new user's; what else is open is not."""
    told(
        folder,
        HOLDS,
        """
        for logger, name, delay in (("", "root", 0), ("some.where", "some", 0), ("x", "late", 1)):
            handler = logging.FileHandler(f"own/{name}.log", delay=delay)
            logging.getLogger(logger).addHandler(handler)
        os.mknod("own/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        logging.getLogger("y").addHandler(logging.FileHandler("own/null"))
        logging.getLogger("z").addHandler(logging.StreamHandler())

        def bind(kind, path):
            sock = socket.socket(socket.AF_UNIX, kind)
            sock.bind(path)
            return sock

        listener = bind(socket.SOCK_STREAM, os.path.abspath("own/stream"))
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(os.path.abspath("own/stream"))
        accepted = listener.accept()
        datagram = bind(socket.SOCK_DGRAM, os.path.abspath("own/datagram"))
        abstract = bind(socket.SOCK_STREAM, "\\0engine-bridge-%d" % os.getpid())
        network = socket.create_server(("127.0.0.1", 0))
        other = open("own/other", "w")
        engine.start()
        engine.stop()
        """,
    )
    own = folder / "own"
    given = {path.name for path in own.iterdir() if owner(path) == (WEB, WEB)}
    assert given == {"app.pid", "app.log", "root.log", "some.log", "stream", "datagram"}
    assert owner(own / "other") == (0, 0)
    assert owner(own) == (0, 0)


@needs_root
def test_dropprivileges_leaves_a_service_managers_sockets_alone(folder: Path) -> None:
    """A socket that was handed in belongs to whom its owner has given it."""
    told(
        folder,
        """
        inherited = socket.socket(socket.AF_UNIX)
        inherited.bind(os.path.abspath("socket"))
        inherited.listen()
        os.dup2(inherited.detach(), 3)
        os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
        DropPrivileges(engine, uid="web").subscribe()
        engine.start()
        """,
    )
    assert owner(folder / "socket") == (0, 0)


@needs_root
def test_dropprivileges_is_not_led_astray_by_links(folder: Path) -> None:
    """What another user could have had root open, by links or by other names, stays root's."""
    with running(
        folder,
        f"""
        os.mkdir("theirs")
        os.chown("theirs", {WEB}, {WEB})
        os.chmod("theirs", 0o755)
        for name in ("shadow", "twice", "linked", "replaced", "link", "mine", "foreign"):
            open(name, "w").close()
        os.chown("foreign", 1234, 1234)
        os.symlink(os.path.abspath("shadow"), "theirs/app.log")
        os.chown("theirs/app.log", {WEB}, {WEB}, follow_symlinks=False)
        os.link("twice", "theirs/twice.log")
        os.symlink(os.path.abspath("mine"), "mine.log")  # root's own link
        os.symlink(os.path.abspath("."), "theirs/way")
        os.chown("theirs/way", {WEB}, {WEB}, follow_symlinks=False)
        names = "theirs/app.log", "theirs/twice.log", "theirs/way/linked", "replaced", "mine.log"
        for name in (*names, "foreign"):
            logging.getLogger("a").addHandler(logging.FileHandler(name))
        os.rename("replaced", "moved")
        open("replaced", "w").close()

        sockets = []
        for path in ("socket", os.path.abspath("theirs/gone"), os.path.abspath("theirs/file"),
                     os.path.abspath("theirs/foreign"), os.path.abspath("theirs/link")):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            sock.listen()
            sockets.append(sock)
        for name in ("gone", "file", "link"):
            os.unlink(f"theirs/{{name}}")
        os.symlink(os.path.abspath("shadow"), "theirs/link")
        open("theirs/file", "w").close()
        os.chown("theirs/foreign", 1234, 1234)
        DropPrivileges(engine, uid="web").subscribe()
        engine.start()
        """,
    ) as process:
        assert process.wait_exit() == 0, process.report()
    said = process.errors().splitlines()
    here = f"{folder}/"
    because = {
        "theirs/app.log": f"{here}theirs/app.log is a link that somebody else has made",
        "theirs/twice.log": "it has 2 names",
        "theirs/way/linked": f"{here}theirs/way is a link that somebody else has made",
        "replaced": "another file has its name by now",
        "foreign": "it belongs to user 1234",
        "theirs/gone": "No such file or directory",
        "theirs/file": "there is something else by now",
        "theirs/foreign": "it belongs to user 1234",
        "theirs/link": "there is something else by now",
    }
    expected = [
        f"{here}{name} is not handed over to user {WEB}: {why}" for name, why in because.items()
    ]
    expected.append(
        f"socket is not handed over to user {WEB}: its path is relative; bind it by an absolute one"
    )
    assert sorted(said) == sorted(expected)
    assert owner(folder / "mine") == (WEB, WEB)
    for name in ("shadow", "twice", "linked", "replaced", "moved", "theirs/file"):
        assert owner(folder / name) == (0, 0), name
    assert owner(folder / "foreign") == (1234, 1234)


@needs_root
def test_dropprivileges_lets_logs_be_opened_anew_afterwards(folder: Path) -> None:
    """Rotated in a directory of the user's, both Log's file and logging's go on, as the user's."""
    with running(
        folder,
        HOLDS,
        f"""
        os.chown("own", {WEB}, {WEB})
        logging.getLogger("engine_bridge").addHandler(logging.FileHandler("own/other.log"))
        logging.getLogger("engine_bridge").setLevel(20)
        engine.start()
        tell()
        engine.block()
        """,
    ) as process:
        process.wait_line("pid")
        wait_asleep(process.pid)  # in `block`
        own = folder / "own"
        for name in ("app", "other"):
            (own / f"{name}.log").rename(own / f"{name}.old")
        process.signal(signal.SIGUSR1)
        for name in ("app", "other"):
            wait_line(own / f"{name}.log", "Caught SIGUSR1|Engine") if name == "app" else None
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
        for name in ("app", "other"):
            assert "Engine EXITING" in (own / f"{name}.log").read_text()
            assert owner(own / f"{name}.log") == (WEB, WEB)
        assert not (own / "app.pid").exists()
    assert process.errors() == ""


@needs_root
def test_a_restart_after_the_drop_goes_on_as_the_user(folder: Path) -> None:
    """In a directory of root's the PID file, emptied meanwhile, and the log are had again."""
    with running(folder, HOLDS + "engine.start()\ntell()\nengine.block()\n") as process:
        process.wait_line('"pid"')
        pid = process.pid
        pidfile = folder / "own" / "app.pid"
        # The directory is there already when the program begins again.
        program = (folder / "program.py").read_text()
        (folder / "program.py").write_text(program.replace('os.mkdir("own", 0o755)', ""))
        process.signal(signal.SIGHUP)
        process.wait_line('"pid"', 2)
        assert pidfile.read_text() == f"{pid}\n"
        wait_asleep(pid)  # in `block`
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    first, second = facts(process.output())
    assert first["pid"] == second["pid"] == pid
    assert first["uids"] == second["uids"] == [WEB] * 3
    assert first["groups"] == second["groups"] == [WEB, MORE]
    assert pidfile.read_text() == ""
    log = (folder / "own" / "app.log").read_text()
    assert log.count("Privileges dropped: this is user web") == 1
    assert log.count("No privileges to drop: this is user web") == 1
    assert log.count("Engine EXITING") == 2


@needs_root
def test_a_daemon_that_drops_its_privileges(folder: Path) -> None:
    """Daemonizer, PIDFile, Log and DropPrivileges together: launch, SIGHUP, SIGUSR1, SIGTERM."""
    (folder / "own").mkdir()
    holds = HOLDS.replace('os.mkdir("own", 0o755)\n', "")
    source = """
    Daemonizer(engine, stdout="own/out", stderr="own/out", umask=0o027).subscribe()
    print("launched", flush=True)
    engine.start()
    tell(streams=[os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)], cwd=os.getcwd())
    engine.block()
    """
    own = folder / "own"
    with running(folder, holds, source) as process:
        assert process.wait_exit() == 0, process.report()
        assert process.output() == "launched\n"
        pid = int((own / "app.pid").read_text())
        wait_line(own / "out", '"pid"')
        wait_until(lambda: os.readlink(f"/proc/{pid}/fd/0") == "/dev/null")
        os.kill(pid, signal.SIGHUP)
        wait_line(own / "out", '"pid"', 2)
        assert (own / "app.pid").read_text() == f"{pid}\n"
        os.kill(pid, signal.SIGTERM)
        wait_gone(pid)
    assert (own / "app.pid").read_text() == ""
    for fact in facts((own / "out").read_text()):
        assert fact["pid"] == pid != process.pid
        assert fact["uids"] == [WEB] * 3
        assert fact["umask"] == 0o027
        assert fact["cwd"] == "/"
        assert fact["streams"] == ["/dev/null", f"{own}/out", f"{own}/out"]
    for name in ("out", "app.pid", "app.log"):
        assert owner(own / name) == (WEB, WEB)
    assert stat.S_IMODE((own / "out").stat().st_mode) == 0o640
    assert (own / "app.log").read_text().count("Engine EXITING") == 2


# -- the guide -------------------------------------------------------------------------------------


@needs_root
def test_the_programs_of_the_guide_do_what_they_say(folder: Path) -> None:
    """The first one becomes the user and prints it; the second one hears of `hand_over`."""
    guide = TESTS.parent / "docs/guides/privileges.md"
    programs = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    said = []
    for source in programs:
        mine = source.replace("/run/app.pid", f"{folder}/app.pid").replace("nobody", "web")
        with running(folder, mine) as process:
            assert process.wait_exit() == 0, process.report()
        said.append(process.output())
    assert said == [
        f"user {WEB} group {WEB} groups [{WEB}, {MORE}]\n",
        "the cache belongs to 65534 65534\n",
    ]
    assert (folder / "app.pid").read_text() == ""
