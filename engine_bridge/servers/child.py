"""
A server in a process of its own, for those that want the main thread or fork: gunicorn, granian.

The new process is spawned, gets the listening sockets, and imports the application by its name. Its
standard input is a socket to the parent. A byte there says that it is to go, a second one that it
is to hurry, and the end of file that the parent is gone. Nothing else tells it: Ctrl-C and the
signals of a service manager reach the parent, who knows what to do.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from engine_bridge.core.errors import EngineError, plain_text

from .base import Serving, nothing
from .worker import Leaving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

COMMAND = "from engine_bridge.servers.child import main; main()"
READY, CLOSED = b"r", b"c"
PATIENCE = 5.0  # seconds to leave, once it was told to hurry


class Child:
    """The parent's side: a `Serving` whose work a child does."""

    def __init__(
        self,
        server: str,
        app: str,
        sockets: Sequence[socket.socket],
        options: "Mapping[str, Any]",
        drain_timeout: float,
    ) -> None:
        self._server = server
        self._sockets = sockets
        self.when_ready: Callable[[], object] = nothing
        self.when_closed: Callable[[], object] = nothing
        self._plan = {
            "server": server,
            "app": app,
            "options": dict(options),
            "drain_timeout": drain_timeout,
            "path": [os.path.abspath(entry) for entry in sys.path],
        }
        try:
            json.dumps(self._plan)
        except TypeError as exc:
            raise EngineError(
                f"{server} runs in a process of its own, so its options must be plain values: {exc}"
            ) from None
        self._ours, self._theirs = socket.socketpair()
        self._leaving = Leaving(float("inf"))  # the child minds the time

    def stop(self) -> None:
        """As of `Serving`."""
        self._leaving.tell()
        with suppress(OSError):  # it is gone
            self._ours.send(b"!")

    def run(self) -> None:
        """As of `Serving`; the child's descendants are waited for as well."""
        reader, writer = os.pipe()
        with self._leaving, self._ours, open(reader, "rb", buffering=0) as words:
            try:
                process = self._spawn(writer)
            finally:
                os.close(writer)
                self._theirs.close()
            while word := self._next_word(words.fileno(), process):
                self.when_ready() if word == READY else self.when_closed()
            status = process.wait()
        if status and not self._leaving.is_told:
            raise EngineError(f"{self._server} has ended with status {status}; its log says why")

    def _spawn(self, writer: int) -> "subprocess.Popen[bytes]":
        descriptors = [each.fileno() for each in self._sockets]
        plan = json.dumps({**self._plan, "sockets": descriptors, "words": writer})
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=self._theirs.fileno(),
            pass_fds=[*descriptors, writer],
            process_group=0,
        )
        with suppress(OSError):
            self._ours.sendall(plan.encode() + b"\n")
        return process

    def _next_word(self, words: int, process: "subprocess.Popen[bytes]") -> bytes:
        """Return what the child says next; nothing once all who could speak are gone."""
        patience = float("inf")
        while not self._leaving.wait([words], patience):
            if patience == PATIENCE:
                process.kill()
            if self._leaving.is_cut_off:
                patience = PATIENCE
        return os.read(words, 1)


# -- the child's side ------------------------------------------------------------------------------


def main() -> None:
    """Serve as the parent says."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _take_no_notice)  # not SIG_IGN, which grandchildren would inherit
    parent = socket.socket(fileno=0)
    plan = json.loads(parent.makefile("rb", buffering=0).readline())
    sys.path[:] = plan["path"]
    try:
        serving = _serving(plan)
        threading.Thread(target=_obey, args=(parent, serving), daemon=True).start()
        serving.run()
    except EngineError as exc:
        sys.exit(plain_text(exc) or f"{type(exc).__name__}: {exc}")


def _serving(plan: "dict[str, Any]") -> Serving:
    from .serving import make_serving

    words = plan["words"]
    sockets = [socket.socket(fileno=each) for each in plan["sockets"]]
    serving = make_serving(
        plan["app"],
        sockets,
        plan["options"],
        server=plan["server"],
        drain_timeout=plan["drain_timeout"],
    )

    def say(word: bytes) -> None:
        with suppress(BrokenPipeError):  # the parent is gone
            os.write(words, word)

    def closed() -> None:
        for each in sockets:
            each.close()
        say(CLOSED)

    serving.when_ready = lambda: say(READY)
    serving.when_closed = closed
    return serving


def _obey(parent: socket.socket, serving: Serving) -> None:
    """Pass on what the parent says; if it is gone that says to go as well."""
    is_there = True
    while is_there:
        is_there = bool(parent.recv(1))
        serving.stop()


def _take_no_notice(signum: int, frame: object) -> None:
    """Leave it to the parent."""
