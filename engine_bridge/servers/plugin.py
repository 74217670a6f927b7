"""
Serve from a script: `ServerPlugin(engine, app).subscribe()`, then start and block.

The server is begun by the engine's start, at priority 75, and leaves with its drain, while requests
are still welcome: what it has accepted it answers before the engine stops. Where no drain precedes,
as when a start is rolled back, it leaves with the stop, at 25.
"""

import atexit
import sys
import threading
from importlib.util import find_spec

from engine_bridge.core import signals
from engine_bridge.core.door import served_by
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.host import current_host
from engine_bridge.core.interface import interface_of
from engine_bridge.core.plugin import Plugin

from . import ServerNotAvailable
from .application import FOR, load
from .base import Serving, nothing
from .bind import Bound, check
from .child import Child
from .serving import check_server, make_serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

IN_A_CHILD = ("gunicorn", "granian")
GRACE = 1.0  # seconds for requests in a start that is rolled back: they may wait for its end
CUT_OFF = 10.0  # seconds in which a server that is cut off must have ended


class ServerPlugin(Plugin):
    """
    Have the engine's start begin to serve, and its stop end that, as often as one likes.

    Under a server, which serves already, it does nothing.

    Args:
        engine: The engine to listen to.
        app: A WSGI or ASGI application, or `module:attribute`. gunicorn and granian import it in a
            process of their own, so they want the latter.
        server: Its name; "auto" takes the first that is installed and can serve the application.
        bind: `host:port`, `[::1]:8000` or `unix:/path`; port 0 takes one that is free.
        options: The server's own, by its own names.

    Attributes:
        address: Where it serves; None while it does not.

    Raises:
        EngineError: Something is no application, no server, or no address.
    """

    channels = ("start", "drain", "stop", "fork")

    def __init__(
        self,
        engine: Engine,
        app: "Any",
        server: str = "auto",
        bind: str = "127.0.0.1:8000",
        **options: "Any",
    ) -> None:
        super().__init__(engine)
        if not callable(app) and not isinstance(app, str):
            raise EngineError(f"ServerPlugin wants an application, or its name, got {app!r}")
        if server != "auto":
            check_server(server)
        self.app = app
        self.server = server
        self.bind = check(bind)
        self.options = options
        self.address: str | None = None
        self._run: _Run | None = None
        self._leaving: _Run | None = None  # a former one that could not be waited for

    def start(self) -> None:
        """
        Begin to serve; return once requests can be answered.

        Raises:
            EngineError: The address cannot be had, or the server does not start.
        """
        host = self.engine.host or current_host()
        if not host.owns_process:
            self.engine.log(f"ServerPlugin does nothing here: {host.server or 'a server'} serves")
            return
        if self._run is not None:
            return
        if self._leaving is not None:
            self._leaving.ended.wait()
        signals.chain(self.engine)
        app = self.app if self.server in IN_A_CHILD else load(self.app, self.server)
        server = self._choose(app)
        bound = Bound(self.bind)
        try:
            run = _Run(self.engine, server, bound, self._make(server, app, bound))
            run.begin()
        except BaseException:
            bound.remove()
            raise
        self._run, self.address = run, bound.address
        self.engine.log(f"{server} serves on {bound.address}")

    start.priority = 75.0  # type: ignore[attr-defined]  # as CherryPy sets it

    def drain(self) -> None:
        """Have the server leave when the delay is over, and the drain wait for it."""
        run = self._run
        if run is None:
            return
        let_go = nothing if run.calls_us() else self.engine.requests.hold()

        def leave() -> None:
            self.engine.pause_for_drain_delay()
            run.leave()
            run.ended.wait()
            let_go()

        threading.Thread(target=leave, name="server leaves", daemon=True).start()

    drain.priority = 90.0  # type: ignore[attr-defined]  # who tells others of it comes first

    def stop(self) -> None:
        """
        End serving.

        Raises:
            EngineError: The server had died, or does not end.
        """
        run, self._run, self.address = self._run, None, None
        if run is None:
            return
        if run.calls_us():  # it cannot end before we have returned
            run.leave()
            self._leaving = run
            atexit.register(run.ended.wait, self.engine.drain_timeout)
            return
        run.end(0.0 if self.engine.draining.is_set() else GRACE)

    stop.priority = 25.0  # type: ignore[attr-defined]  # likewise

    def fork(self) -> None:
        """Forget what serves: in a forked child it is the parent's."""
        run, self._run, self._leaving, self.address = self._run, None, None, None
        if run is not None:
            run.close()

    def _choose(self, app: "Any") -> str:
        """Return the name of the server for *app*; a child has a look at it by itself."""
        if self.server != "auto":
            return self.server
        interface = interface_of(app)
        for server in FOR[interface]:
            if find_spec(server) and (server not in IN_A_CHILD or isinstance(self.app, str)):
                return server
        raise ServerNotAvailable(
            f"no server for {interface.upper()} applications is installed: "
            f"pip install 'engine-bridge[{FOR[interface][0]}]'"
        )

    def _make(self, server: str, app: "Any", bound: Bound) -> Serving:
        sockets, drain_timeout = [bound.socket], self.engine.drain_timeout
        if server not in IN_A_CHILD:
            return make_serving(
                app, sockets, self.options, server=server, drain_timeout=drain_timeout
            )
        if not isinstance(self.app, str):
            raise EngineError(
                f"{server} runs in a process of its own, which has to import the application: "
                "give it as 'module:attribute'"
            )
        return Child(server, self.app, sockets, self.options, drain_timeout)


class _Run:
    """One time of serving, in a thread."""

    def __init__(self, engine: Engine, server: str, bound: Bound, serving: Serving) -> None:
        self.ended = threading.Event()
        self._engine = engine
        self._server = server
        self._bound = bound
        self._serving = serving
        self._news = threading.Event()
        self._ready = self._told = self._died = False
        self._error: BaseException | None = None
        serving.when_ready = self._be_ready
        serving.when_closed = bound.close
        self._thread = threading.Thread(target=self._main, name=server, daemon=True)

    def begin(self) -> None:
        """Return once it can answer; raise what keeps it from that."""
        aborting = self._engine.aborting
        told = aborting.tell(self._news.set)
        self._thread.start()
        try:
            self._news.wait()
        except BaseException:  # Ctrl-C
            self.end(0.0)
            raise
        finally:
            aborting.forget(told)
        if self.ended.is_set():
            self._thread.join()
            raise self._failure("did not start")
        if not self._ready:
            self.end(0.0)
            raise EngineError(f"{self._server} was stopped before it was ready")

    def _main(self) -> None:
        served_by.set(self._engine)
        try:
            self._serving.run()
        except BaseException as exc:
            self._error = exc
        finally:
            self._bound.remove()
            self._died = self._ready and not self._told
            self.ended.set()
            self._news.set()
            if self._died:
                self._engine.notes.put(self._engine.exit)
                self._engine.notes.wake()  # no signal has woken the thread in `block`

    def _be_ready(self) -> None:
        self._ready = True
        self._news.set()

    def _failure(self, what: str) -> EngineError:
        error = EngineError(f"{self._server} {what}" + (f": {self._error}" if self._error else ""))
        error.__cause__ = self._error
        return error

    def calls_us(self) -> bool:
        """Whether the present code is called by the server, so that it must not wait for it."""
        return served_by.get() is self._engine or _is_called_by(self._server)

    def leave(self) -> None:
        """Tell it to go, the first time."""
        if not self._told:
            self._told = True
            self._serving.stop()

    def close(self) -> None:
        """Close the socket of this process, and leave its file."""
        self._bound.close()

    def end(self, grace: float) -> None:
        """Have it gone: cut it off after *grace* seconds; raise if it had died."""
        self.leave()
        if not self.ended.wait(grace):
            self._serving.stop()
        if self.ended.wait(CUT_OFF):
            self._thread.join()
        if self._died:
            raise self._failure("has died")
        if not self.ended.is_set():
            raise EngineError(f"{self._server} did not end within {CUT_OFF:g} s")


def _is_called_by(package: str) -> bool:
    """Whether code of *package* has called the present one, in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return True
        frame = frame.f_back
    return False
