"""ServerPlugin: serving from a script, with each server that can."""

import os
import re
import signal
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loadclient import Connection
from processes import (
    Process,
    assert_once,
    attempt,
    get,
    start_request,
    start_script,
    wait_until,
)
from scripts import WHEN
from servers.launch import ASGI, LIFE, WSGI

from engine_bridge import ChannelFailures, Engine, EngineError, State
from engine_bridge.core.errors import plain_text
from engine_bridge.servers import ServerNotAvailable, ServerPlugin

KINDS = {
    "waitress": "wsgi",
    "cheroot": "wsgi",
    "werkzeug": "wsgi",
    "gunicorn": "wsgi",
    "uvicorn": "asgi",
    "hypercorn": "asgi",
    "granian": "asgi",
}
IN_A_CHILD = {"gunicorn", "granian"}
APPS = {"wsgi": WSGI, "asgi": ASGI}


@pytest.fixture(params=sorted(KINDS))
def server(request: pytest.FixtureRequest) -> str:
    """Each server that can."""
    name: str = request.param
    pytest.importorskip(name)
    return name


def source(*parts: str, handler: bool = True) -> str:
    """Return a script with a plugin; its arguments are the application and the server."""
    begin = f"""
    import os, signal, sys, threading, time
    from importlib import import_module
    from journal import record
    from servers.apps.lifecycle import instrument
    from engine_bridge import engine
    from engine_bridge.plugins import SignalHandler
    from engine_bridge.servers import ServerPlugin

    app, server = sys.argv[1:]
    if ".plain:" in app or server in {sorted(IN_A_CHILD)}:
        instrument(engine)  # else the application does it
    else:
        import_module(app.partition(":")[0])
    if {handler}:
        SignalHandler(engine).subscribe()
    plugin = ServerPlugin(engine, app, server, "127.0.0.1:0")
    plugin.subscribe()

    def tell():
        record("serving", port=int(plugin.address.rpartition(":")[2]))

    def block():
        "Block, and tell once signals find the main thread there: one before ends it with 143."
        when(lambda: engine.notes.readers, tell)
        engine.block()
    """
    return "\n".join(map(textwrap.dedent, (WHEN, begin, *parts)))


SERVE = "engine.start()\nblock()\nrecord('returned')\n"


def wait_port_of(process: Process, count: int = 1) -> int:
    """Return the port on which *process* serves."""
    return int(str(process.wait_published("serving", count)[-1].facts["port"]))


@contextmanager
def serving(text: str, folder: Path, app: str, server: str) -> Iterator[tuple[Process, int]]:
    """Run a script that serves; yield it and its port."""
    with start_script(text, app, server, cwd=folder) as process:
        yield process, wait_port_of(process)


def pids_of(process: Process, channel: str) -> set[int]:
    """Return who recorded *channel*."""
    return {entry.pid for entry in process.journal() if entry.channel == channel}


# Start and stop


def test_starts_and_stops_as_often_as_one_likes(server: str, tmp_path: Path) -> None:
    """Five times in one process it serves and is gone, and leaves no thread and no descriptor."""
    text = source(
        """
        import http.client

        def count():
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        def ask(port):
            client = http.client.HTTPConnection("127.0.0.1", port)
            client.request("GET", "/pid")
            answer = client.getresponse()
            answer.read()
            client.close()
            return answer.status

        for _ in range(5):
            engine.start()
            tell()
            port = int(plugin.address.rpartition(":")[2])
            status = ask(port)
            engine.stop()
            try:
                ask(port)
            except ConnectionRefusedError:
                record("cycle", status=status, count=count(), address=plugin.address)
        engine.exit()
        """
    )
    with start_script(text, f"servers.apps.plain:{KINDS[server]}", server, cwd=tmp_path) as process:
        assert process.wait_exit(18) == 0, process.report()
        cycles = [entry.facts for entry in process.journal() if entry.channel == "cycle"]
        assert [cycle["status"] for cycle in cycles] == [200] * 5
        assert cycles[1]["count"] == cycles[-1]["count"], cycles  # the first loads what is needed
        assert {cycle["address"] for cycle in cycles} == {None}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_answers_what_was_accepted(signum: int, server: str, tmp_path: Path) -> None:
    """Requests in flight are answered before the stop, who comes later is refused; status 0."""
    app = APPS[KINDS[server]]
    with serving(source(SERVE), tmp_path, app, server) as (process, port):
        assert get(port, "/pid").ok
        held = start_request(port, "/held")
        process.wait_published("held")
        process.signal_group(signum)  # as a terminal does it
        process.wait(lambda: attempt(port).outcome == "refused", 10, "nobody listens")
        assert not held.done
        (tmp_path / "release").touch()
        assert held.result().ok
        assert process.wait_exit() == 0, process.report()
        assert process.process.pid in process.published()
        assert "Traceback" not in process.output()
    assert_once(process, *LIFE, pids=[process.pid])
    (serves,) = pids_of(process, "held")
    assert (serves == process.pid) == (server not in IN_A_CHILD)
    assert_once(process, *LIFE, pids=[serves])


def test_sigterm_without_signal_handler_keeps_its_status(tmp_path: Path) -> None:
    """Without SignalHandler SIGTERM stops it in good order as well; the status tells of it."""
    with serving(source(SERVE, handler=False), tmp_path, WSGI, "waitress") as (process, port):
        held = start_request(port, "/held")
        process.wait_published("held")
        process.signal(signal.SIGTERM)
        process.wait_published("drain")
        (tmp_path / "release").touch()
        assert held.result().ok
        assert process.wait_exit() == -signal.SIGTERM
    assert_once(process, *LIFE, count=1)


def test_kept_connections_are_asked_to_close(tmp_path: Path) -> None:
    """A client that stays gets an answer during the drain, which asks it to close."""
    with serving(source(SERVE), tmp_path, WSGI, "waitress") as (process, port):
        client = Connection(port, 10)
        assert client.exchange("/pid", {}).ok
        process.signal(signal.SIGTERM)
        process.wait(lambda: attempt(port).outcome == "refused", 10, "nobody listens")
        answer = client.exchange("/pid", {})
        assert answer.ok
        assert answer.headers["connection"] == "close"
        client.close()
        assert process.wait_exit() == 0


def test_second_signal_cuts_off(server: str, tmp_path: Path) -> None:
    """A second signal ends the drain though a request never ends."""
    app = f"servers.apps.plain:{KINDS[server]}"
    with serving(source(SERVE), tmp_path, app, server) as (process, port):
        held = start_request(port, "/held")
        process.wait_published("held")
        process.signal(signal.SIGTERM)
        process.wait(lambda: attempt(port).outcome == "refused", 10, "nobody listens")
        process.signal(signal.SIGTERM)
        assert process.wait_exit(15) == 0, process.report()
        assert not held.result().ok
    assert_once(process, *LIFE, pids=[process.pid])


def test_drain_delay_serves_on(tmp_path: Path) -> None:
    """During `drain_delay` new connections are answered."""
    text = source("engine.drain_delay = 30.0", SERVE)
    with serving(text, tmp_path, WSGI, "waitress") as (process, port):
        process.signal(signal.SIGTERM)
        process.wait_published("drain")
        assert get(port, "/pid").ok
        process.signal(signal.SIGTERM)  # ends the drain now
        assert process.wait_exit() == 0
    assert_once(process, *LIFE, count=1)


@pytest.mark.parametrize("name", ["waitress", "cheroot", "werkzeug"])
def test_exit_asked_by_a_request_is_answered(name: str, tmp_path: Path) -> None:
    """A request may end the engine, and with it the process, and gets its answer."""
    with serving(source(SERVE), tmp_path, WSGI, name) as (process, port):
        answer = get(port, "/exit")
        assert answer.body == b"exited\n"
        assert process.wait_exit() == 0
    assert_once(process, *LIFE, count=1)


# The application


WITH_LIFESPAN = """
from engine_bridge.frameworks.asgi import EngineMiddleware

async def respond(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        record(message["type"], state=str(engine.state))
        if os.path.exists("broken"):
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

plugin.app = EngineMiddleware(respond)
"""


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn"])
def test_lifespan_of_an_app_with_the_same_engine_runs_inside(name: str, tmp_path: Path) -> None:
    """The server starts amid the engine's start, and its lifespan does not wait for the end."""
    pytest.importorskip(name)
    with serving(source(WITH_LIFESPAN, SERVE), tmp_path, ASGI, name) as (process, port):
        assert get(port).body == b"ok"
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0, process.report()
    assert_once(process, "start", "lifespan.startup", "drain", "lifespan.shutdown", "stop", "exit")
    states = {entry.channel: entry.facts.get("state") for entry in process.journal()}
    assert states["lifespan.startup"] == "STARTING"


def test_lifespan_that_fails_fails_the_start(tmp_path: Path) -> None:
    """What the application could not start is told, and the engine is STOPPED again."""
    pytest.importorskip("uvicorn")
    (tmp_path / "broken").touch()
    text = source(
        WITH_LIFESPAN,
        """
        try:
            engine.start()
        except Exception as exc:
            record("failed", state=str(engine.state), error=str(exc))
        """,
    )
    with start_script(text, ASGI, "uvicorn", cwd=tmp_path) as process:
        (entry,) = process.wait_published("failed")
        assert process.wait_exit() == 0
    assert entry.facts["state"] == "STOPPED"
    assert "uvicorn did not start" in str(entry.facts["error"])
    assert "no database" in process.output()


def test_failing_listener_rolls_it_back(tmp_path: Path) -> None:
    """A start that fails after the server has begun ends it, and a request gets no answer 200."""
    text = source(
        """
        @engine.subscribe("start", priority=80)
        def fail():
            tell()
            while not os.path.exists("go"):
                time.sleep(0.001)
            raise RuntimeError("later")

        try:
            engine.start()
        except Exception as exc:
            record("failed", state=str(engine.state), threads=threading.active_count())
        """
    )
    with start_script(text, WSGI, "waitress", cwd=tmp_path) as process:
        early = start_request(wait_port_of(process), "/pid")
        (tmp_path / "go").touch()
        (entry,) = process.wait_published("failed")
        assert entry.facts["state"] == "STOPPED"
        assert process.wait_exit() == 0
        assert not early.result().ok


def test_plugin_does_nothing_under_a_server(tmp_path: Path) -> None:
    """The script may be served by a server as well: it serves, not the plugin."""
    pytest.importorskip("gunicorn")
    (tmp_path / "shop.py").write_text(
        "from engine_bridge import engine\n"
        "from engine_bridge.servers import ServerPlugin\n"
        "from servers.apps.wsgi import app\n"
        "plugin = ServerPlugin(engine, 'shop:app', 'gunicorn', '127.0.0.1:0')\n"
        "plugin.subscribe()\n"
    )
    text = source("import shop\nplugin.unsubscribe()\nplugin = shop.plugin", SERVE)
    text = "import sys; sys.path.insert(0, '')\n" + text
    with serving(text, tmp_path, WSGI, "gunicorn") as (
        process,
        port,
    ):
        worker = int(get(port, "/pid").body)
        assert worker != process.pid
        process.signal(signal.SIGTERM)
        assert process.wait_exit() == 0, process.report()
    assert_once(process, *LIFE, pids=[worker])


# What cannot be


def fails_to_start(engine: Engine, plugin: ServerPlugin) -> str:
    """Start; return the one sentence that it fails with."""
    plugin.subscribe()
    with pytest.raises(ChannelFailures) as caught:
        engine.start()
    assert engine.state is State.STOPPED
    engine.exit()  # puts signal handlers back
    return plain_text(caught.value)


def respond(environ: object, start_response: object) -> list[bytes]:
    """Be an application."""
    return []


async def respond_async(scope: object, receive: object, send: object) -> None:
    """Be another."""


def test_address_in_use_is_told() -> None:
    """Who has the address is to be stopped, or another chosen."""
    engine = Engine()
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        text = fails_to_start(engine, ServerPlugin(engine, respond, "waitress", bind))
    assert text == (
        f"cannot serve on {bind}: another process listens there; "
        "stop that, or choose another address"
    )


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("192.0.2.1:8000", "this machine has no such address"),
        ("unix:/no/such/folder/socket", "there is no such directory"),
        ("unix:/tmp/" + "x" * 120, "AF_UNIX path too long"),
        (".:8000", "no such host (that cannot be a name of one)"),
        ("unix:/etc/hostname", "that file is no socket; remove it, or choose another path"),
    ],
)
def test_bind_failure_is_one_sentence(bind: str, reason: str) -> None:
    """It says what was asked for, and what is wrong with that."""
    engine = Engine()
    text = fails_to_start(engine, ServerPlugin(engine, respond, "waitress", bind))
    assert text == f"cannot serve on {bind}: {reason}"


@pytest.mark.parametrize(
    "bind",
    [
        "8000",
        "localhost",
        ":8000",
        "::1:8000",
        "127.0.0.1:99999",
        "[::1]:" + "9" * 5000,
        "unix:",
        8000,
    ],
)
def test_bad_address_is_refused(bind: str) -> None:
    """What is no address is refused when the plugin is made."""
    with pytest.raises(EngineError, match=r"not an address to serve on: .*; write host:port"):
        ServerPlugin(Engine(), respond, "waitress", bind)


def test_bad_arguments_are_refused() -> None:
    """So is what is no application, and a server that is unknown, or takes no socket."""
    with pytest.raises(EngineError, match="wants an application, or its name, got 3"):
        ServerPlugin(Engine(), 3)
    with pytest.raises(ServerNotAvailable, match="no server 'puma'"):
        ServerPlugin(Engine(), respond, "puma")
    with pytest.raises(
        ServerNotAvailable,
        match="daphne cannot serve on sockets that are handed in; these can: uvicorn, ",
    ):
        ServerPlugin(Engine(), respond, "daphne")


def test_application_must_suit_the_server() -> None:
    """An ASGI application is not given to waitress, nor an object to gunicorn's process."""
    engine = Engine()
    text = fails_to_start(engine, ServerPlugin(engine, respond_async, "waitress", "127.0.0.1:0"))
    assert "waitress serves WSGI applications" in text
    engine = Engine()
    text = fails_to_start(engine, ServerPlugin(engine, respond, "gunicorn", "127.0.0.1:0"))
    assert "give it as 'module:attribute'" in text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nomodule:app", "cannot import 'nomodule:app': there is no module 'nomodule'"),
        ("os.no.such:app", "cannot import 'os.no.such:app': there is no module 'os.no'"),
        ("os:nope", "cannot import 'os:nope': os has no 'nope'"),
        ("os:sep", "no application: 'os:sep' is '/', which cannot be called"),
        ("os", "not the name of an application: 'os'; write module:attribute"),
    ],
)
def test_name_of_no_application_is_one_sentence(name: str, reason: str) -> None:
    """It says what is not there."""
    engine = Engine()
    assert fails_to_start(engine, ServerPlugin(engine, name, bind="127.0.0.1:0")) == reason


@pytest.mark.parametrize("name", ["uvicorn", "hypercorn", "waitress", "cheroot"])
def test_unknown_option_is_one_sentence(name: str) -> None:
    """It names the option."""
    engine = Engine()
    app = respond if KINDS[name] == "wsgi" else respond_async
    plugin = ServerPlugin(engine, app, name, "127.0.0.1:0", nosuch=1)
    assert "'nosuch'" in fails_to_start(engine, plugin)


@pytest.mark.parametrize(
    ("name", "app", "words"),
    [
        ("granian", ASGI, "granian does not take these options: .*'nosuch'"),
        ("gunicorn", WSGI, "nosuch"),
        ("gunicorn", f"{__name__}:respond_async", "is an ASGI application, which gunicorn serves"),
        ("gunicorn", "nomodule:app", "cannot import 'nomodule:app': there is no module 'nomodule'"),
    ],
)
def test_child_that_cannot_serve_says_why(name: str, app: str, words: str, tmp_path: Path) -> None:
    """It does so on the standard error, once, and the start fails."""
    option = ", nosuch=1" if "nosuch" in words else ""
    text = f"""
    from engine_bridge import engine
    from engine_bridge.servers import ServerPlugin
    ServerPlugin(engine, {app!r}, {name!r}, "127.0.0.1:0"{option}).subscribe()
    engine.start()
    """
    with start_script(textwrap.dedent(text), cwd=tmp_path) as process:
        assert process.wait_exit() == 1
        assert len(re.findall(words, process.output())) in {1, 2}, process.output()  # and its trace
        assert re.search(rf"{name} has ended with status \d; its log says why", process.output())


def test_forked_child_serves_anew(tmp_path: Path) -> None:
    """What serves is the parent's; the child has none, and can begin its own."""
    text = source(
        """
        engine.start()
        tell()
        child = os.fork()
        if not child:
            record("forked", address=plugin.address)
            engine.start()
            block()
            sys.exit()
        while not os.path.exists("done"):
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM)
        record("ended", status=os.waitpid(child, 0)[1])
        engine.exit()
        """
    )
    app = "servers.apps.plain:wsgi"
    with start_script(text, app, "waitress", cwd=tmp_path) as process:
        parents = wait_port_of(process)
        own = wait_port_of(process, 2)
        assert get(parents, "/pid").ok
        assert get(own, "/pid").ok
        assert parents != own
        (tmp_path / "done").touch()
        assert process.wait_exit() == 0
    facts = {entry.channel: entry.facts for entry in process.journal()}
    assert facts["forked"] == {"address": None}
    assert facts["ended"] == {"status": 0}
    assert_once(process, "start", "drain", "stop", "exit", count=2)


# Unix sockets and IPv6


def test_unix_socket_is_replaced_if_stale_and_removed(tmp_path: Path) -> None:
    """The file of a process that is gone is replaced, that of a living one is not, ours goes."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    engine, second = Engine(), Engine()
    plugin = ServerPlugin(engine, respond, "waitress", f"unix:{path}")
    plugin.subscribe()
    engine.start()
    try:
        assert plugin.address == f"unix:{path}"
        text = fails_to_start(second, ServerPlugin(second, respond, "waitress", f"unix:{path}"))
        assert "another process listens there" in text
    finally:
        engine.exit()
    assert not path.exists()


def test_ipv6_address_is_told_in_brackets() -> None:
    """Port 0 becomes the real one."""
    engine = Engine()
    plugin = ServerPlugin(engine, respond, "waitress", "[::1]:0")
    plugin.subscribe()
    engine.start()
    try:
        assert re.fullmatch(r"\[::1\]:[1-9]\d*", plugin.address or "")
    finally:
        engine.exit()


def test_auto_takes_what_suits_the_application(caplog: pytest.LogCaptureFixture) -> None:
    """A WSGI application gets waitress, an ASGI one uvicorn; the log says where."""
    pytest.importorskip("uvicorn")
    no_uvloop = {"loop": "asyncio"}  # it has a pipe for the life of the process
    for app, name, options in (
        (respond, "waitress", {}),
        (respond_async, "uvicorn", no_uvloop),
    ):
        engine = Engine()
        told: list[str] = []
        engine.subscribe("log", lambda msg, level, told=told: told.append(msg))
        plugin = ServerPlugin(engine, app, bind="127.0.0.1:0", **options)
        plugin.subscribe()
        engine.start()
        address = plugin.address
        engine.exit()
        assert f"{name} serves on {address}" in told


# A server that dies


def test_server_that_dies_ends_the_engine(tmp_path: Path) -> None:
    """Cheroot ends with an application that raises SystemExit; `block()` raises that."""
    text = source(
        """
        def app(environ, start_response):
            raise SystemExit("enough")

        plugin.app = app
        engine.start()
        try:
            block()
        except Exception as exc:
            record("raised", error=str(exc))
        """
    )
    with serving(text, tmp_path, WSGI, "cheroot") as (process, port):
        attempt(port)
        (entry,) = process.wait_published("raised")
        assert "cheroot has died" in str(entry.facts["error"])
        assert "enough" in str(entry.facts["error"])
        assert process.wait_exit() == 0
    assert_once(process, *LIFE, count=1)


@pytest.mark.parametrize("name", sorted(IN_A_CHILD))
def test_child_that_is_killed_ends_the_engine(name: str, tmp_path: Path) -> None:
    """So does a child whose process is killed."""
    pytest.importorskip(name)
    app = f"servers.apps.plain:{KINDS[name]}"
    with serving(source(SERVE), tmp_path, app, name) as (process, _):
        (child,) = process.children()
        os.kill(child, signal.SIGKILL)
        assert process.wait_exit() == 1
        assert f"{name} has died" in process.output()
    assert_once(process, *LIFE, pids=[process.pid])


@pytest.mark.parametrize("name", sorted(IN_A_CHILD))
def test_child_leaves_when_the_script_is_killed(name: str, tmp_path: Path) -> None:
    """Nobody is left when the script is gone without a word."""
    pytest.importorskip(name)
    with serving(source(SERVE), tmp_path, APPS[KINDS[name]], name) as (process, port):
        assert get(port, "/pid").ok
        process.signal(signal.SIGKILL)
        process.wait_exit()
        wait_until(lambda: not process.family(), 10, "all have left")
    (serves,) = pids_of(process, "start") - {process.pid}
    assert_once(process, *LIFE, pids=[serves])
