"""
Ask a server over raw sockets, and say for every request what became of it.

| outcome | what happened |
|---|---|
| `ok` | a whole answer with a 2xx status |
| `status:503` | a whole answer with that status |
| `refused` | nobody listens |
| `reset` | the connection was reset before any byte of the answer |
| `empty` | the connection was closed before any byte of the answer |
| `partial` | the connection ended within the answer |
| `timeout` | connecting, or the next byte, took too long |
| `malformed` | what came is not HTTP |
| `other:EHOSTUNREACH` | any other error of the operating system |

Two more are counted apart and are no failures, for any keep-alive client meets them and any asks
again, on a new connection (RFC 9112 §9.3.1 and §9.5):

| `stale` | an idle connection was seen to be closed before the request was sent |
| `race` | an idle connection was closed while the request was on its way; nobody has read it |

That nobody has read it is told by TCP: data that reaches a closed socket, or is unread when the
socket is closed, is answered by a reset. A server that read the request and then hung up sends an
ordinary end: `empty`, a lost request.
"""

import errno
import io
import itertools
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
REOPENED = ("stale", "race")  # no failures
EXAMPLES = 20
ROUND_TRIP = 0.05  # generous, for a loopback
NOTHING_BUT_ERRORS = 0  # POLLERR and POLLHUP are told unasked
PAUSE = 0.01  # of a client after a failure: a port that refuses would be asked 20000 times a second


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What became of one request.

    Attributes:
        outcome: See the table above.
        status: Of the answer, or 0.
        headers: Of the answer; names in lower case.
        body: Of the answer, as far as it came.
        seconds: From connecting to the last byte.
        error: What was raised, if anything was.
        reopened: `stale` or `race` if the idle connection was gone and another one was opened.
    """

    outcome: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    error: str = ""
    reopened: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a whole answer with a 2xx status came."""
        return self.outcome == "ok"


# One answer, as RFC 9112 frames it


def _line(stream: io.BufferedReader) -> bytes:
    line = stream.readline(65537)
    if not line.endswith(b"\n"):
        raise EOFError("the connection was closed within a line")
    return line.strip()


def _head(stream: io.BufferedReader) -> tuple[int, dict[str, str]]:
    """Read status and headers."""
    version, _, rest = _line(stream).partition(b" ")
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"no HTTP version: {version!r}")
    headers = {"connection": "close"} if version == b"HTTP/1.0" else {}
    while line := _line(stream):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(rest[:3]), headers


def _is_framed(status: int, headers: Mapping[str, str]) -> bool:
    """Say whether the body tells its end, other than by the end of the connection."""
    return status in {204, 304} or not headers.keys().isdisjoint(
        {"transfer-encoding", "content-length"}
    )


def _pieces(stream: io.BufferedReader, status: int, headers: Mapping[str, str]) -> Iterator[bytes]:
    """Read the body as it comes."""
    if not _is_framed(status, headers):
        yield from iter(lambda: stream.read1(65536), b"")
    elif "transfer-encoding" in headers:
        yield from _chunks(stream)
    else:
        yield from _counted(stream, int(headers.get("content-length", 0)))


def _counted(stream: io.BufferedReader, size: int) -> Iterator[bytes]:
    while size:
        piece = stream.read1(min(size, 65536))
        if not piece:
            raise EOFError(f"the connection was closed {size} bytes before the end of the body")
        size -= len(piece)
        yield piece


def _chunks(stream: io.BufferedReader) -> Iterator[bytes]:
    while size := int(_line(stream).partition(b";")[0], 16):
        yield from _counted(stream, size)
        _line(stream)
    while _line(stream):  # trailers
        pass


# One connection


class Connection:
    """A connection to the server. `exchange` raises nothing: what goes wrong is an outcome."""

    def __init__(self, port: int, timeout: float) -> None:
        self.socket = socket.create_connection((HOST, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")
        self.used = False  # an answer came over it
        self.reusable = False  # another one may
        self._begun = False

    def close(self) -> None:
        """Close it."""
        self.stream.close()
        self.socket.close()

    def closed_while_idle(self) -> bool:
        """Say whether the server has closed it. Some say 408 before they do."""
        return _poll(self.socket, select.POLLIN, 0.0)

    def send(self, path: str, headers: Mapping[str, str]) -> None:
        """Send a request."""
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {HOST}",
            *(f"{k}: {v}" for k, v in headers.items()),
        ]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def receive(self, each: Callable[[bytes], object] = len) -> Answer:
        """Read one answer; *each* is called with each piece of the body as it comes."""
        status, body = 0, []
        headers: dict[str, str] = {}
        self._begun = self.reusable = False
        try:
            self._await_first_byte()
            status, headers = _head(self.stream)
            for piece in _pieces(self.stream, status, headers):
                body.append(piece)
                each(piece)
        except (OSError, EOFError, ValueError) as exc:
            return Answer(self._outcome(exc), status, headers, b"".join(body), error=repr(exc))
        self.used = True
        self.reusable = (
            _is_framed(status, headers) and headers.get("connection", "").lower() != "close"
        )
        outcome = "ok" if 200 <= status < 300 else f"status:{status}"
        return Answer(outcome, status, headers, b"".join(body))

    def exchange(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Send a request and read the answer."""
        self._begun = False
        try:
            self.send(path, headers)
        except OSError as exc:
            return Answer(self._outcome(exc), error=repr(exc))
        return self.receive()

    def _await_first_byte(self) -> None:
        if not self.socket.recv(1, socket.MSG_PEEK):
            raise EOFError("the connection was closed without an answer")
        self._begun = True

    def _outcome(self, exc: Exception) -> str:
        if not isinstance(exc, EOFError | ConnectionResetError | BrokenPipeError):
            return outcome_of(exc)
        if self._begun:
            return "partial"
        if self.used and self._is_unread(exc):
            return "race"
        return "empty" if isinstance(exc, EOFError) else "reset"

    def _is_unread(self, exc: Exception) -> bool:
        """Say whether a reset came. Behind an ordinary end it shows as an error, or soon will."""
        return not isinstance(exc, EOFError) or _poll(self.socket, NOTHING_BUT_ERRORS, ROUND_TRIP)


def _poll(sock: socket.socket, events: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(seconds * 1000))


def outcome_of(exc: Exception) -> str:
    """Name what is wrong with an answer, or with connecting."""
    match exc:
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError():
            return "reset"
        case OSError():
            return f"other:{errno.errorcode.get(exc.errno or 0, exc.errno)}"
        case _:
            return "malformed"


class Client:
    """
    One client, with at most one connection at a time.

    Args:
        port: Where the server listens.
        keep_alive: Whether to use a connection for more than one request.
        timeout: Seconds to wait for the connection, and for each next byte.
    """

    def __init__(self, port: int, *, keep_alive: bool = True, timeout: float = 10.0) -> None:
        self._port = port
        self._timeout = timeout
        self._headers = {"Connection": "keep-alive" if keep_alive else "close"}
        self._keep_alive = keep_alive
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def is_stale(self) -> bool:
        """Say whether it has a connection that the server closed."""
        return self._connection is not None and self._connection.closed_while_idle()

    def fetch(self, path: str = "/", headers: Mapping[str, str] | None = None) -> Answer:
        """Ask for *path*; once more, on a new connection, if the idle one turns out to be gone."""
        begun = time.monotonic()
        reopened: tuple[str, ...] = ()
        if self.is_stale():
            self.close()
            reopened += ("stale",)
        answer = self._exchange(path, headers or {})
        if answer.outcome == "race":
            reopened += ("race",)
            answer = self._exchange(path, headers or {})
        return replace(answer, seconds=time.monotonic() - begun, reopened=reopened)

    def _exchange(self, path: str, headers: Mapping[str, str]) -> Answer:
        try:
            if not self._connection:
                self._connection = Connection(self._port, self._timeout)
        except OSError as exc:
            return Answer(outcome_of(exc), error=repr(exc))
        answer = self._connection.exchange(path, {**self._headers, **headers})
        if not (self._keep_alive and self._connection.reusable):
            self.close()
        return answer


# One request


def attempt(
    port: int, path: str = "/", timeout: float = 5.0, headers: Mapping[str, str] | None = None
) -> Answer:
    """Ask once, on a connection of its own, and say what became of it; raises nothing."""
    with Client(port, keep_alive=False, timeout=timeout) as client:
        return client.fetch(path, headers)


def get(
    port: int, path: str = "/", timeout: float = 5.0, headers: Mapping[str, str] | None = None
) -> Answer:
    """
    Ask once and return the answer, whatever its status.

    Raises:
        AssertionError: No whole answer came.
    """
    answer = attempt(port, path, timeout, headers)
    if answer.ok or answer.outcome.startswith("status:"):
        return answer
    raise AssertionError(f"GET {path} on port {port}: {answer.outcome} {answer.error}")


class InFlight:
    """A request that was sent and whose answer a thread awaits."""

    def __init__(self, port: int, path: str, timeout: float, headers: Mapping[str, str]) -> None:
        self._path = path
        self._news = threading.Condition()
        self._answer: Answer | None = None
        self._pieces: list[bytes] = []
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._begun = time.monotonic()
        try:
            self._connection = Connection(port, timeout)
            self._connection.send(path, {"Connection": "close", **headers})
        except OSError as exc:
            self._finish(Answer(outcome_of(exc), error=repr(exc)))
        else:
            self._thread = threading.Thread(target=self._read, args=[self._connection], daemon=True)
            self._thread.start()

    def _read(self, connection: Connection) -> None:
        self._finish(connection.receive(self._note))

    def _note(self, piece: bytes) -> None:
        with self._news:
            self._pieces.append(piece)
            self._news.notify_all()

    def _finish(self, answer: Answer) -> None:
        if self._connection:
            self._connection.close()
        with self._news:
            self._answer = replace(answer, seconds=time.monotonic() - self._begun)
            self._news.notify_all()

    @property
    def done(self) -> bool:
        """Whether it has come to an end, good or bad."""
        return self._answer is not None

    def result(self, limit: float = 10.0) -> Answer:
        """Wait until the whole answer is there, or will never be."""
        with self._news:
            self._news.wait_for(lambda: self._answer, limit)
        if self._answer is None:
            raise AssertionError(f"GET {self._path}: no end of the answer within {limit} s")
        if self._thread:
            self._thread.join()
        return self._answer


class Stream(InFlight):
    """A long answer, such as server-sent events. A context manager that hangs up."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pieces(self) -> list[bytes]:
        """What of the body has come so far, as it came."""
        with self._news:
            return list(self._pieces)

    def wait_first(self, limit: float = 10.0) -> bytes:
        """Wait for the first piece of the body."""
        with self._news:
            self._news.wait_for(lambda: self._pieces or self._answer, limit)
        if not self._pieces:
            raise AssertionError(f"GET {self._path}: no body within {limit} s: {self._answer}")
        return self._pieces[0]

    def wait_end(self, limit: float = 10.0) -> Answer:
        """Wait for its end: `ok` if the server ended it in good order, `partial` if not."""
        return self.result(limit)

    def close(self) -> None:
        """Hang up, if it has not ended."""
        if self._connection and self._thread:
            with suppress(OSError):  # it has ended by itself
                self._connection.socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()


def start_request(
    port: int, path: str = "/", timeout: float = 30.0, headers: Mapping[str, str] | None = None
) -> InFlight:
    """
    Send a request, and leave the answer to a thread.

    When this returns the request has been sent; that the application has begun to work on it, only
    its journal can tell.
    """
    return InFlight(port, path, timeout, headers or {})


def open_stream(port: int, path: str = "/", timeout: float = 30.0) -> Stream:
    """Send a request for server-sent events and read them until they end."""
    return Stream(port, path, timeout, {"Accept": "text/event-stream"})


# Many requests


class Load:
    """
    What became of many requests. Can be read while the clients are at work.

    Attributes:
        counts: How often each outcome came, `stale` and `race` included.
        longest: Seconds of the slowest request, whatever became of it.
        examples: The first failures, in words.
    """

    def __init__(self, requests: int | None, until: threading.Event, limit: float) -> None:
        self.counts: Counter[str] = Counter()
        self.longest = 0.0
        self.examples: list[str] = []
        self._requests = requests
        self._tickets = itertools.count()  # next() is atomic
        self._until = until
        self._begun = time.monotonic()
        self._limit = limit
        self._news = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __str__(self) -> str:
        counts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.counts.items()))
        return "\n  ".join(
            [f"{counts or 'no requests'}; longest {self.longest:.3f} s", *self.examples]
        )

    @property
    def total(self) -> int:
        """How many requests have come to an end."""
        return sum(self.counts.values()) - sum(self.counts[outcome] for outcome in REOPENED)

    @property
    def failures(self) -> dict[str, int]:
        """How often each outcome came that is a failure."""
        return {o: n for o, n in self.counts.items() if o != "ok" and o not in REOPENED}

    def wait_ok(self, count: int, limit: float = 10.0) -> None:
        """Wait until *count* more requests, from now on, were answered well."""
        with self._news:
            aim = self.counts["ok"] + count
            if not self._news.wait_for(lambda: self.counts["ok"] >= aim, limit):
                raise AssertionError(f"not within {limit} s: {count} more good answers; {self}")

    def _start(self, clients: int, port: int, path: str, keep_alive: bool, timeout: float) -> None:
        def work() -> None:
            with Client(port, keep_alive=keep_alive, timeout=timeout) as client:
                while self._wants_more():
                    self._add(client.fetch(path))

        self._threads = [
            threading.Thread(target=work, name=f"load client {number}", daemon=True)
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def _wants_more(self) -> bool:
        if self._until.is_set() or time.monotonic() - self._begun > self._limit:
            return False
        return self._requests is None or next(self._tickets) < self._requests

    def _add(self, answer: Answer) -> None:
        with self._news:
            self.counts.update([answer.outcome, *answer.reopened])
            self.longest = max(self.longest, answer.seconds)
            if not answer.ok and len(self.examples) < EXAMPLES:
                when = time.monotonic() - self._begun
                self.examples.append(f"after {when:.3f} s: {answer.outcome} {answer.error}")
            self._news.notify_all()
        if not answer.ok:
            self._until.wait(PAUSE)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


def run_load(
    port: int,
    *,
    clients: int = 4,
    requests: int | None = None,
    until: threading.Event | None = None,
    keep_alive: bool = False,
    path: str = "/",
    timeout: float = 10.0,
    limit: float = 15.0,
) -> Load:
    """
    Ask as fast as *clients* threads can.

    Args:
        port: Where the server listens.
        clients: How many ask at the same time.
        requests: How many requests in all; without it and *until*: as many as fit into *limit*.
        until: Ends it when set.
        keep_alive: Whether a client uses a connection for more than one request.
        path: What to ask for.
        timeout: As in `Client`.
        limit: Seconds after which no request is begun.

    Raises:
        AssertionError: There were fewer than *requests*, or *until* was not set, when the time was
            up.
    """
    load = Load(requests, until or threading.Event(), limit)
    load._start(clients, port, path, keep_alive, timeout)
    load._join()
    if (until and not until.is_set()) or load.total < (requests or 0):
        raise AssertionError(f"not done within {limit} s: {load}")
    return load


@contextmanager
def background_load(
    port: int,
    *,
    clients: int = 4,
    keep_alive: bool = False,
    path: str = "/",
    timeout: float = 10.0,
    limit: float = 60.0,
) -> Iterator[Load]:
    """Ask while the `with` block runs. Arguments as in `run_load`, which see."""
    until = threading.Event()
    load = Load(None, until, limit)
    load._start(clients, port, path, keep_alive, timeout)
    try:
        yield load
    finally:
        until.set()
        load._join()
