"""
What `serve()` does with every server: one worker on a socket handed in, and no connection lost.

`make handover` hands over more often, under more requests.
"""

import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from loadclient import Connection
from processes import (
    Answer,
    Server,
    assert_once,
    attempt,
    background_load,
    get,
    run_server,
    wait_until,
)
from servers.apps.plain import asgi
from servers.launch import (
    ASGI,
    LIFE,
    WSGI,
    assert_answered_before_stop,
    hold_request,
    release,
)

from engine_bridge import EngineError
from engine_bridge.servers import ServerNotAvailable
from engine_bridge.servers.serving import make_serving

HAND_OVERS = int(os.environ.get("HAND_OVERS", "2"))
REQUESTS = int(os.environ.get("REQUESTS", "1000"))  # of each kind of client
HEADERS = {"Connection": "keep-alive"}


class Case(NamedTuple):
    """A server, and what it is given."""

    server: str
    kind: str  # of the application
    options: dict[str, object]
    tls: dict[str, str]  # its names of {cert} and {key}
    keeps_alive: bool = True
    cuts_off: bool = True  # Python waits for threads that are no daemons

    @property
    def app(self) -> str:
        """An application with an engine."""
        return ASGI if self.kind == "asgi" else WSGI

    @property
    def plain(self) -> str:
        """One without."""
        return f"servers.apps.plain:{self.kind}"


CASES = [
    Case(
        "uvicorn",
        "asgi",
        {"access_log": False},
        {"ssl_certfile": "{cert}", "ssl_keyfile": "{key}"},
    ),
    Case(
        "uvicorn",
        "wsgi",
        {"access_log": False},
        {"ssl_certfile": "{cert}", "ssl_keyfile": "{key}"},
        cuts_off=False,
    ),
    Case("hypercorn", "asgi", {}, {"certfile": "{cert}", "keyfile": "{key}"}),
    Case("hypercorn", "wsgi", {}, {"certfile": "{cert}", "keyfile": "{key}"}, cuts_off=False),
    Case("granian", "asgi", {}, {"ssl_cert": "{cert}", "ssl_key": "{key}"}),
    Case(
        "granian",
        "wsgi",
        {},
        {"ssl_cert": "{cert}", "ssl_key": "{key}"},
        cuts_off=False,
    ),
    Case("gunicorn", "wsgi", {}, {"certfile": "{cert}", "keyfile": "{key}"}),
    Case("waitress", "wsgi", {}, {}),
    Case("cheroot", "wsgi", {}, {"ssl_certificate": "{cert}", "ssl_private_key": "{key}"}),
    Case("werkzeug", "wsgi", {}, {"certfile": "{cert}", "keyfile": "{key}"}, keeps_alive=False),
]


@pytest.fixture(params=[pytest.param(case, id=f"{case.server}-{case.kind}") for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """Each server that can."""
    found: Case = request.param
    pytest.importorskip(found.server)
    return found


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket that this process keeps open."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def run_worker(
    case: Case,
    sock: socket.socket,
    folder: Path,
    app: str = "",
    others: Sequence[socket.socket] = (),
    **options: object,
) -> AbstractContextManager[Server]:
    """Run one worker on *sock*, and *others*; it has answered when this is entered."""
    descriptors = [each.fileno() for each in (sock, *others)]
    words = [*(sys.executable, "-m", "servers.apps.serve"), case.server, app or case.app]
    settings = json.dumps({**case.options, **options})
    address = sock.getsockname()
    port = address[1] if isinstance(address, tuple) else 0
    return run_server(
        [*words, ",".join(map(str, descriptors)), settings],
        cwd=folder,
        port=port,
        ready=_answers if sock.family == socket.AF_INET and not options else lambda server: True,
        pass_fds=descriptors,
    )


def _answers(server: Server) -> bool:
    """Whether it is this very worker, of those that share the socket, that answers."""
    family = {server.pid, *server.workers()}
    body = attempt(server.port, "/pid").body
    return body.strip().isdigit() and int(body) in family


def fetch(sock: socket.socket, path: str = "/pid") -> HTTPResponse:
    """Ask over a connection of any kind; return the answer, read to its end."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = HTTPResponse(sock)
    answer.begin()
    answer.read()
    return answer


# One socket, many workers


@pytest.mark.timeout(20 + 20 * HAND_OVERS)
def test_no_request_is_lost_when_a_worker_gives_way(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """Workers follow each other on one socket, and no client notices, be it one that stays."""
    port = listening.getsockname()[1]
    share = REQUESTS // HAND_OVERS
    with ExitStack() as workers:
        worker = workers.enter_context(run_worker(case, listening, tmp_path, case.plain))
        with (
            background_load(port, clients=3, path="/pid", keep_alive=True, limit=600) as kept,
            background_load(port, clients=3, path="/pid", limit=600) as single,
        ):
            for _ in range(HAND_OVERS):
                kept.wait_ok(share, 60)
                single.wait_ok(share, 60)
                successor = run_worker(case, listening, tmp_path, case.plain)
                former, worker = worker, workers.enter_context(successor)
                former.signal(signal.SIGTERM)
                assert former.wait_exit(30) == 0, former.report()
    print(f"{case.server}-{case.kind}: keep-alive: {kept}; one-request: {single}")
    assert not kept.failures, kept
    assert not single.failures, single


def test_worker_starts_and_stops_once(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """A request in flight is answered, then the engine stops, once, and the status is 0."""
    with run_worker(case, listening, tmp_path) as worker:
        held = hold_request(worker)
        worker.signal(signal.SIGTERM)
        worker.wait_published("drain")
        assert not held.done
        release(tmp_path)
        assert held.result().ok
        assert worker.wait_exit() == 0
    (serving,) = (e.pid for e in worker.journal() if e.channel == "start")
    assert_once(worker, *LIFE, pids=[serving])
    assert_answered_before_stop(worker)
    assert [e.pid for e in worker.journal() if e.channel == "returned"] == [worker.pid]


def test_failing_start_ends_gunicorn(listening: socket.socket, tmp_path: Path) -> None:
    """The main process sees that a worker could not start, and tries no further."""
    words = [sys.executable, "-m", "servers.apps.serve", "gunicorn", WSGI]
    with run_server(
        [*words, str(listening.fileno()), "{}"],
        cwd=tmp_path,
        env={"APP_FAILS_UNTIL": "never"},
        ready=lambda server: True,
        pass_fds=[listening.fileno()],
    ) as worker:
        assert worker.wait_exit() == 1
    assert worker.output().count("Booting worker") == 1
    assert "EngineError: gunicorn has ended with status 3; its log says why" in worker.output()


def test_second_signal_cuts_off(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """Told twice, it leaves while a request is still in flight, and stops its engine once."""
    if not case.cuts_off:
        pytest.skip(f"{case.server} has threads that nothing can cut off")
    with run_worker(case, listening, tmp_path) as worker:
        held = hold_request(worker)
        worker.signal(signal.SIGTERM)
        worker.wait_published("drain")
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        assert not held.result().ok
    assert_once(worker, *LIFE, pids=[e.pid for e in worker.journal() if e.channel == "start"])


def test_threads_that_nothing_cuts_off_are_waited_for(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """Told twice, it leaves when they are done, in good order."""
    if case.cuts_off:
        pytest.skip(f"{case.server} is cut off")
    with run_worker(case, listening, tmp_path) as worker:
        hold_request(worker)
        worker.signal(signal.SIGTERM)
        worker.wait_published("drain")
        worker.signal(signal.SIGTERM)
        release(tmp_path)
        assert worker.wait_exit() == 0
    assert_once(worker, *LIFE, pids=[e.pid for e in worker.journal() if e.channel == "start"])


def test_signal_that_another_thread_takes_is_heard(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """The main thread, where Python handles it, leaves its sleep for it."""
    options = {"told_in_thread": True}
    with run_worker(case, listening, tmp_path, case.plain, (), **options) as worker:
        assert get(worker.port, "/pid").ok
        release(tmp_path)
        assert worker.wait_exit() == 0
    assert "returned" in worker.published()[worker.pid]


def test_drain_timeout_bounds_the_wait(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """A request that never ends keeps it no longer than `drain_timeout`."""
    if not case.cuts_off:
        pytest.skip(f"{case.server} has threads that nothing can cut off")
    with run_worker(case, listening, tmp_path, case.plain, drain_timeout=0.2) as worker:
        held = hold_request(worker)
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        assert not held.result().ok


def test_restart_gives_a_new_worker(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """The script runs its command line again, on the same socket; gunicorn replaces its worker."""
    with run_worker(case, listening, tmp_path) as worker:
        assert get(worker.port, "/restart").ok
        worker.wait_published("exit")
        worker.wait(lambda: attempt(worker.port).ok, 10, "it serves again")
        worker.wait_published("started", 2)
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
    pids = [entry.pid for entry in worker.journal() if entry.channel == "start"]
    assert (pids[0] == pids[1]) == (case.server != "gunicorn")
    lives = [e.channel for pid in dict.fromkeys(pids) for e in worker.journal() if e.pid == pid]
    assert [channel for channel in lives if channel in LIFE] == [*LIFE, *LIFE]


# What was accepted is answered


def test_accepted_connections_are_answered(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """Idle clients get an answer after the stop, which asks them to close; so does a silent one."""
    with run_worker(case, listening, tmp_path, case.plain) as worker, ExitStack() as clients:
        port = listening.getsockname()[1]
        idle = Connection(port, 10) if case.keeps_alive else None
        silent = _accepted(worker, clients)
        if idle is not None:
            clients.callback(idle.close)
            assert idle.exchange("/pid", HEADERS).ok
        held = hold_request(worker)
        worker.signal(signal.SIGTERM)
        if idle is not None:
            last = wait_until(lambda: _asked_to_close(idle), what="asked to close")
            assert last.ok
            assert idle.socket.recv(1) == b""
        assert silent.exchange("/pid", HEADERS).ok
        assert silent.socket.recv(1) == b""
        release(tmp_path)
        assert held.result().ok
        assert worker.wait_exit() == 0


def _accepted(worker: Server, clients: ExitStack) -> Connection:
    """Open a connection; return it when the worker has accepted it."""
    connection = Connection(worker.port, 10)
    clients.callback(connection.close)
    client = connection.socket.getsockname()[1]
    worker.wait(lambda: _is_accepted(worker.port, client), 10, "the connection is accepted")
    return connection


def _is_accepted(port: int, client: int) -> bool:
    """Say whether a connection was accepted: its socket has an inode, see proc(5)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if (local[-4:], remote[-4:]) == (f"{port:04X}", f"{client:04X}"):
            return inode != "0"
    return False


def _asked_to_close(connection: Connection) -> Answer | None:
    """Ask over *connection*; return the answer if it is the last, or there is none."""
    answer = connection.exchange("/pid", HEADERS)
    return None if answer.ok and connection.reusable else answer


# Threads, families, TLS


def test_runs_in_a_thread(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """It needs neither the main thread nor signals."""
    with run_worker(case, listening, tmp_path, case.plain, in_thread=True) as worker:
        held = hold_request(worker)
        worker.signal(signal.SIGTERM)
        release(tmp_path)
        assert held.result().ok
        assert worker.wait_exit() == 0
    assert "returned" in worker.published()[worker.pid]


def test_restart_is_refused_in_a_thread(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """Only the script knows how to begin again; the sentence says so, and nothing was stopped."""
    with run_worker(case, listening, tmp_path, in_thread=True) as worker:
        assert get(worker.port, "/restart").status == 500
        worker.wait_line("RestartRefused: the server runs in a thread of a script")
        assert get(worker.port).ok
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
    (serving,) = (e.pid for e in worker.journal() if e.channel == "start")
    assert_once(worker, *LIFE, pids=[serving])


@pytest.mark.parametrize("family", ["ipv6", "unix"])
def test_serves_on_any_socket(case: Case, family: str, tmp_path: Path) -> None:
    """It serves over IPv6 and over a Unix socket, whose file it leaves alone."""
    path = tmp_path / "socket"
    with _bound(family, path) as sock, run_worker(case, sock, tmp_path, case.plain) as worker:
        with socket.socket(sock.family) as client:
            client.settimeout(10)
            client.connect(sock.getsockname())
            assert fetch(client).status == 200
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        assert path.exists() == (family == "unix")


def test_serves_on_several_sockets(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """Each of them is served, and the worker leaves them all."""
    if case.server == "granian":
        pytest.skip("granian serves on one socket")
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        run_worker(case, listening, tmp_path, case.plain, [other]) as worker,
    ):
        assert get(listening.getsockname()[1]).ok
        assert get(other.getsockname()[1]).ok
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0


def _bound(family: str, path: Path) -> socket.socket:
    if family == "ipv6":
        return socket.create_server(("::1", 0), family=socket.AF_INET6)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_serves_over_tls(case: Case, listening: socket.socket, tmp_path: Path) -> None:
    """The server's own options for TLS are passed on."""
    if not case.tls:
        pytest.skip(f"{case.server} knows no TLS")
    authority = trustme.CA()
    files = _certificate(authority, tmp_path)
    options = {name: file.format(**files) for name, file in case.tls.items()}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with run_worker(case, listening, tmp_path, case.plain, (), **options) as worker:
        with (
            socket.create_connection(("127.0.0.1", worker.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            assert fetch(client).status == 200
            worker.signal(signal.SIGTERM)
            if case.keeps_alive:
                wait_until(lambda: fetch(client).getheader("connection") == "close")
        assert worker.wait_exit() == 0


def test_client_without_handshake_keeps_nobody(
    case: Case, listening: socket.socket, tmp_path: Path
) -> None:
    """It connects and says nothing; the worker leaves all the same when its time is over."""
    if not case.tls:
        pytest.skip(f"{case.server} knows no TLS")
    files = _certificate(trustme.CA(), tmp_path)
    options: dict[str, object] = {name: text.format(**files) for name, text in case.tls.items()}
    options["drain_timeout"] = 0.2
    if case.server == "cheroot":
        options["timeout"] = 1
    with (
        run_worker(case, listening, tmp_path, case.plain, (), **options) as worker,
        ExitStack() as s,
    ):
        _accepted(worker, s)
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0


def _certificate(authority: trustme.CA, folder: Path) -> dict[str, str]:
    certificate = authority.issue_cert("localhost")
    files = {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}
    certificate.private_key_pem.write_to_path(files["key"])
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(files["cert"], append=number > 0)
    return files


# What cannot be served


def test_what_can_not_be_served_is_named(listening: socket.socket) -> None:
    """Neither what is no application nor what is no listening socket."""

    def app() -> None:
        """Serve nothing."""

    with pytest.raises(EngineError, match="wants an application, or its name, got None"):
        make_serving(None, [listening], server="waitress")
    for nothing in ((), listening):
        with pytest.raises(EngineError, match="wants a list of one socket at least"):
            make_serving(app, nothing, server="waitress")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="cannot import 'nowhere:app': there is no module"):
        make_serving("nowhere:app", [listening], server="uvicorn")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for wrong in (sock, 3):
            with pytest.raises(EngineError, match="cannot serve on "):
                make_serving(app, [wrong], server="waitress")  # type: ignore[list-item]


@pytest.mark.parametrize("server", ["waitress", "cheroot", "werkzeug"])
@pytest.mark.parametrize("app", ["servers.apps.plain:asgi", asgi], ids=["name", "application"])
def test_wrong_interface_is_named(server: str, app: object, listening: socket.socket) -> None:
    """What serves WSGI only refuses an ASGI application, and says who takes it."""
    pytest.importorskip(server)
    sentence = f"{server} serves WSGI applications, and .* is an ASGI one; choose one of uvicorn"
    with pytest.raises(EngineError, match=sentence):
        make_serving(app, [listening], server=server)


def test_unknown_server_is_named() -> None:
    """The error names the servers that are known."""
    with pytest.raises(ServerNotAvailable, match=r"no server 'puma'; known: .*uvicorn"):
        make_serving(None, [], server="puma")


def test_server_that_cannot_is_named() -> None:
    """The error names a server that takes no socket."""
    with pytest.raises(ServerNotAvailable, match="daphne cannot serve on sockets"):
        make_serving(None, [], server="daphne")
