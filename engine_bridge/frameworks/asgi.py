"""
The engine for any ASGI application: `app = EngineMiddleware(app)`.

The engine starts and exits with the lifespan; where the server gives none, it starts with the first
request and ends with the process. The application's own lifespan runs inside.

Source:
    ASGI specification, versions 2 and 3, and its lifespan protocol 2.0.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from math import ceil

from asgiref.compatibility import guarantee_single_callable

from engine_bridge.core.bus import is_async
from engine_bridge.core.door import Door, Gate, engine_of
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError, plain_text
from engine_bridge.core.records import WARNING
from engine_bridge.core.requests import new_token, set_current
from engine_bridge.core.stacks import coroutine_stack
from engine_bridge.core.states import State
from engine_bridge.frameworks.arguments import engine_for, refuse_factory, takes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]


SLOW_AFTER = 5.0  # seconds without an answer to the lifespan, after which the log says so


class EngineMiddleware:
    """
    Wrap an ASGI application so that its process has an engine.

    Args:
        app: The application, of ASGI 3 or 2.
        engine: The engine; the default one of the package if none is given.

    Raises:
        EngineError: *app* is not an ASGI application, or has another engine; *engine* is none.
    """

    def __init__(self, app: "Any", engine: Engine | None = None) -> None:
        self.app = _single_callable(app)
        self.engine = engine_for(app, engine, EngineMiddleware)
        self._gate = Gate(self.engine, "asgi")
        self._state: dict[str, Any] = {}  # for servers without lifespan, or lifespan state

    # Each framework has types of its own for the arguments, which no other's are compatible with.
    async def __call__(self, scope: "Any", receive: "Any", send: "Any") -> None:
        """Answer the lifespan; answer requests while the engine is STARTED, else with 503."""
        engine = self.engine
        if scope["type"] == "lifespan":
            await _Lifespan(self, scope, receive, send).run()
            return
        requests = engine.requests
        in_flight = requests.open
        token = new_token()
        in_flight[token] = None  # before the look at `serves`: who still passes is waited for
        set_current(token)
        try:
            if engine.only_serves and not self._state:
                await self.app(scope, receive, send)
            else:
                await self._attend(scope, receive, send)
        finally:
            del in_flight[token]  # as `requests.end` does it
            if requests.quiet is not None:
                requests.check()

    async def _attend(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Do all that a request may need, while `__call__` does what each one needs."""
        engine = self.engine
        if not engine.serves:
            retry_after = await self._gate.admit_async()
            if retry_after is not None:
                await _unavailable(scope, receive, send, retry_after)
                return
            self._state = engine.lifespan_state
        if engine.drains:
            send = partial(_send_and_ask_to_close, scope, send)
        if engine.hears_requests or self._state:
            await self._call_with_channels(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _call_with_channels(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if self._state:  # a copy: whoever is around us does not see what we add
            scope = {**scope, "state": {**self._state, **(scope.get("state") or {})}}
        try:
            await self.engine.publish_async("before_request")
            await self.app(scope, receive, send)
        finally:
            await self.engine.publish_async("after_request")

    def keep_state(self, state: "dict[str, Any]") -> None:
        """Hand *state* to each request ourselves: the server does not."""
        self._state = state


def _send_and_ask_to_close(scope: "Scope", send: "Send", message: "Message") -> Awaitable[None]:
    """
    Pass *message* on; ask for the connection to be closed after the answer.

    For requests that arrive during the drain. Those that it finds in flight need no such word: the
    server that was told to go closes their connections, and wrapping every `send` just in case
    would cost as much as all the rest of the middleware.

    Source:
        RFC 9113, 8.2.2: HTTP/2 has no such header, and an answer with it is malformed.
    """
    if message["type"] == "http.response.start" and _is_http_1(scope):
        headers = [*message.get("headers", ()), (b"connection", b"close")]
        message = {**message, "headers": headers}
    return send(message)


def _is_http_1(scope: "Scope") -> bool:
    version: str = scope.get("http_version", "1.1")
    return version.startswith("1")


class _Lifespan:
    """One lifespan conversation: with the server for the engine, with the application inside."""

    def __init__(
        self, middleware: EngineMiddleware, scope: "Scope", receive: "Receive", send: "Send"
    ) -> None:
        self._middleware = middleware
        self._engine = middleware.engine
        self._scope = scope
        self._receive = receive
        self._send = send
        self._door = Door(self._engine, "lifespan")
        self._inner: InnerLifespan | None = None

    async def run(self) -> None:
        """Take the server through startup and shutdown."""
        await self._hear("startup")
        failure = await _failure_of(self._start())
        if failure is not None:
            await self._send({"type": "lifespan.startup.failed", "message": _told(failure)})
            raise failure  # as Starlette does: its TestClient waits for that
        try:
            await self._send({"type": "lifespan.startup.complete"})
            await self._hear("shutdown")
        except BaseException:
            await self._stop()  # the server gave up on us, or the loop ends: no message is due
            raise
        failure = await _failure_of(self._stop())
        if failure is not None:
            await self._send({"type": "lifespan.shutdown.failed", "message": _told(failure)})
            raise failure
        await self._send({"type": "lifespan.shutdown.complete"})

    async def _hear(self, kind: str) -> None:
        """
        Wait until the server says *kind*; ignore what else it says.

        Source:
            Falcon 4.4, testing/helpers.py: it sends an event that nobody knows, after the startup.
        """
        while (await self._receive())["type"] != f"lifespan.{kind}":
            pass

    async def _start(self) -> None:
        await self._door.open_async()
        if not self._door.is_open:
            return  # the server was told to go meanwhile
        state = self._scope.get("state")
        if state is None:
            state = {}
            self._middleware.keep_state(state)
        state.update(self._engine.lifespan_state)  # before the application's own, which wins
        self._inner = InnerLifespan(self._middleware.app, {**self._scope, "state": state})
        try:
            await self._inner.start()
        except BaseException:
            await self._inner.cancel()
            await self._door.close_async()
            raise
        self._warn_of_another_engine()

    def _warn_of_another_engine(self) -> None:
        """Say so if the application brings an engine of its own: few can have meant that."""
        for app in (self._middleware.app, self._scope.get("app")):  # Starlette is around us, or in
            other = engine_of(app)
            if other is not None and other is not self._engine and other.state is State.STARTED:
                text = (
                    f"two engines for {app!r}: requests count for that of EngineMiddleware only; "
                    "give it that of the application's lifespan: EngineMiddleware(app, engine)"
                )
                self._engine.log(text, WARNING)

    async def _stop(self) -> None:
        """Drain, have the application shut down, then exit: reverse of the start."""
        failures: list[Exception] = []
        interrupt: BaseException | None = None
        for step in (self._door.drain_async, self._stop_inner, self._door.close_async):
            try:
                await step()
            except Exception as exc:
                failures.append(exc)
            except BaseException as exc:  # cancelled: what is left is due all the more
                interrupt = exc
        if interrupt is not None:
            raise interrupt
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("the shutdown failed", failures)

    async def _stop_inner(self) -> None:
        if self._inner is not None:
            await self._inner.stop()


async def _failure_of(step: "Awaitable[None]") -> Exception | None:
    """
    Take *step* and return how it failed.

    The server is told outside of `except`: hypercorn raises when it hears of a failure, and would
    have that traceback tell ours once more.
    """
    try:
        await step
    except Exception as exc:
        return exc
    return None


def _told(failure: Exception) -> str:
    """Return what the server is told of *failure*."""
    return plain_text(failure) or "".join(traceback.format_exception(failure))


class InnerLifespan:
    """
    The application's own lifespan, if it has one.

    One that raises before it has asked for a message does not know lifespans, as Django does not;
    nor does one that answers as if to a request. One that raises later has failed.

    Attributes:
        supported: Whether it has started up, so that it is to shut down too.
    """

    def __init__(self, app: "Application", scope: "Scope") -> None:
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message | None] = asyncio.Queue()  # None: nothing will follow
        self._asked = False
        self.supported = False
        self._last_word = False
        self._error: BaseException | None = None
        self._task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: "Application", scope: "Scope") -> None:
        try:
            await app(scope, self._receive, self._hear)
        except (Exception, SystemExit, asyncio.CancelledError) as exc:
            self._error = exc  # a SystemExit that left the task would end the loop
        finally:
            self._from_app.put_nowait(None)

    async def _receive(self) -> "Message":
        self._asked = True
        if self._last_word:
            self._from_app.put_nowait(None)
        return await self._to_app.get()

    async def _hear(self, message: "Message") -> None:
        self._last_word = message["type"] != "lifespan.startup.complete"
        self._from_app.put_nowait(message)

    async def start(self) -> None:
        """Have the application start up; raise what keeps it from doing so."""
        answer = await self._ask("startup")
        if answer is None:
            if self._asked and self._error is not None:
                raise EngineError("the application raised in its lifespan startup") from self._error
        elif answer["type"] == "lifespan.startup.complete":
            self.supported = True
        elif answer["type"] != "lifespan.startup.failed":
            await self.cancel()
        else:
            text = answer.get("message") or "no reason was given"
            error = await self._end()
            raise EngineError(f"the application's startup failed: {text}") from error

    async def stop(self) -> None:
        """Have the application shut down; raise what failed."""
        if not self.supported:
            return
        answer = await self._ask("shutdown")
        error = self._error if answer is None else await self._end()
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            text = answer.get("message") or "no reason was given"
            raise EngineError(f"the application's shutdown failed: {text}") from error
        if error is not None and not isinstance(error, asyncio.CancelledError):
            raise EngineError("the application raised in its lifespan shutdown") from error

    async def _ask(self, kind: str) -> "Message | None":
        """Have the application do *kind*; return what it says to it, None if it says nothing."""
        self._to_app.put_nowait({"type": f"lifespan.{kind}"})
        late = asyncio.get_running_loop().call_later(SLOW_AFTER, self._say_where, kind)
        try:
            return await self._from_app.get()
        finally:
            late.cancel()

    def _say_where(self, kind: str) -> None:
        """Name in the log what the server waits for."""
        logging.getLogger("engine_bridge").warning(
            "the application has not answered its lifespan %s for %g s:\n%s",
            kind,
            SLOW_AFTER,
            self.stack(),
        )

    def stack(self) -> str:
        """Return where the application stands."""
        return "".join(coroutine_stack(self._task.get_coro()))

    async def _end(self) -> BaseException | None:
        """Wait until the application has returned, or asks for what will never come."""
        await self._from_app.get()
        error = self._error
        await self.cancel()
        return error

    async def cancel(self) -> None:
        """End the conversation without more words."""
        self._task.cancel()
        await asyncio.wait({self._task})


async def _unavailable(
    scope: "Scope", receive: "Receive", send: "Send", retry_after: float
) -> None:
    """Answer that the engine is not STARTED."""
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        kind = "websocket.http.response"
        if kind not in (scope.get("extensions") or ()):
            await send({"type": "websocket.close", "code": 1013})  # try again later
            return
    body = b"The application is not available; try again later.\n"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(ceil(retry_after)).encode()),
    ]
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


def _single_callable(app: "Any") -> "Application":
    """Return *app* as an application of ASGI 3; refuse what is none."""
    if not callable(app):
        raise EngineError(
            f"EngineMiddleware wants an ASGI application, which is callable; got {app!r}"
        )
    refuse_factory(app)
    if is_async(app) or (takes(app, 3) and not takes(app, 1)):
        single: Application = app  # of the second kind are those that return another's awaitable
        return single
    if takes(app, 2) and not takes(app, 1):
        raise EngineError(
            f"{app!r} is no ASGI application, but takes two arguments as WSGI ones do; "
            "those want engine_bridge.frameworks.wsgi.EngineMiddleware"
        )
    return guarantee_single_callable(app)  # type: ignore[no-untyped-call,no-any-return]  # asgiref
