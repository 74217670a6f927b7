"""
The engine for Starlette and FastAPI: `Starlette(lifespan=engine.lifespan)`.

That line is all that most applications need. Here is what joins several lifespans into one, runs
those of mounted applications, answers health probes, and finds the engine of a request.

Source:
    Starlette, `routing.py`: a router runs its own lifespan, and none of those mounted in it.
"""

import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator, asynccontextmanager
from contextvars import ContextVar
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature

from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute, Host, Mount, Route, Router

from engine_bridge.core import nets
from engine_bridge.core import requests as in_flight
from engine_bridge.core.bus import describe
from engine_bridge.core.door import Door, applications, engine_of
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.states import State
from engine_bridge.frameworks.asgi import InnerLifespan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Annotated, Any, Protocol, TypeAlias

    Context = AbstractAsyncContextManager[Any]
    Lifespan = Callable[[Any], Context]
    Generating = Callable[[Any], AsyncIterator[Any]]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

    EngineDep: TypeAlias = Annotated[Engine, "Depends(get_engine)"]

    class HealthPlugin(Protocol):
        """What answers the probes: `engine_bridge.plugins.Health`."""

        async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Answer one of the probes."""


PROBES = ("livez", "readyz", "startupz")


if not TYPE_CHECKING:  # pragma: no branch -- who reads types shall miss what is not here

    def __getattr__(name):
        """Make `EngineDep` when somebody asks for it: it needs FastAPI, nothing else here does."""
        if name != "EngineDep":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from typing import Annotated

        try:
            from fastapi import Depends
        except ModuleNotFoundError as exc:
            if exc.name != "fastapi":
                raise
            raise EngineError(
                "EngineDep wants FastAPI, which is not installed: "
                "pip install 'engine-bridge[fastapi]'"
            ) from exc
        return Annotated[Engine, Depends(get_engine)]


# -- several lifespans as one --------------------------------------------------------------------


def compose(*lifespans: "Lifespan | Generating") -> "Lifespan":
    """
    Join several lifespans into one: entered in order, left in reverse.

    All that were entered are left, whatever fails, and each as on an ordinary shutdown, so what
    follows its `yield` runs; all failures are told. What they yield is merged into one state, of
    two equal names the later lifespan's wins, as in `{**first, **second}`.

    Args:
        lifespans: What `Starlette(lifespan=…)` takes: functions of the application that return an
            async context manager, such as `engine.lifespan`, or async generator functions.

    Raises:
        EngineError: One of them is no lifespan, or they are those of two engines.
    """
    found: list[Lifespan] = []
    for lifespan in lifespans:
        if isinstance(lifespan, _Composed):
            found += lifespan.lifespans
        else:
            found.append(_as_lifespan(lifespan))
    _refuse_two_engines(found)
    return _Composed(found)


def _refuse_two_engines(lifespans: "list[Lifespan]") -> None:
    owners = [getattr(lifespan, "__self__", None) for lifespan in lifespans]
    engines = [owner for owner in owners if isinstance(owner, Engine)]
    if any(engine is not engines[0] for engine in engines):
        raise EngineError(
            "compose(…) wants the lifespan of one engine, since one is all that an application can "
            f"have; got those of {', '.join(map(repr, engines))}: leave out all but one"
        )


class _Composed:
    def __init__(self, lifespans: "list[Lifespan]") -> None:
        self.lifespans = lifespans

    def __call__(self, app: object) -> "_OpenComposed":
        return _OpenComposed(self.lifespans, app)


class _OpenComposed:
    def __init__(self, lifespans: "list[Lifespan]", app: object) -> None:
        self._lifespans = lifespans
        self._app = app
        self._stack = _Stack()
        self._doors: list[Door] = []

    async def __aenter__(self) -> "dict[str, Any] | None":
        state: dict[str, Any] = {}
        try:
            for lifespan in self._lifespans:
                name = describe(lifespan)
                context = _opened(name, lifespan(self._app))
                if isinstance(context, Door):
                    self._doors.append(context)
                state.update(_as_state(name, await self._stack.enter(name, context)))
        except BaseException as exc:
            await self._leave(exc)
            raise
        return state or None  # not every server has a state to put even an empty one into

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        # What was started within the engine's lifespan, and ends before it, may wait for the drain.
        failures: list[Exception] = []
        for door in self._doors:
            try:
                await door.drain_async()
            except Exception as exc:
                failures.append(exc)
            except BaseException as exc:  # as in `_Stack.leave`
                error = exc
        await self._stack.leave(error, failures)


class _Stack:
    """Contexts that were entered, to be left in reverse whatever fails."""

    def __init__(self) -> None:
        self._entered: list[tuple[str, Context]] = []

    async def enter(self, name: str, context: "Context") -> object:
        """Enter *context*; return what it yields."""
        try:
            value = await context.__aenter__()
        except (RuntimeError, SystemExit) as exc:
            raise _told(name, exc)  # noqa: B904  # it is the very error, or has its cause
        self._entered.append((name, context))
        return value

    async def leave(
        self, error: BaseException | None, failures: "Sequence[Exception]" = ()
    ) -> None:
        """
        Leave what was entered; raise what fails, with *failures*, and *error* that led here.

        None of them is told of *error*: it is not theirs, and thrown at their `yield` it would have
        those that do without `try … finally` leave open what they opened.
        """
        failures = list(failures)
        while self._entered:
            name, context = self._entered.pop()
            try:
                await context.__aexit__(None, None, None)
            except (Exception, SystemExit) as exc:
                failures.append(_told(name, exc))
            except BaseException as exc:  # cancelled: what is left is due all the more
                error = exc
        _raise_all(error, failures)


def _raise_all(error: BaseException | None, failures: list[Exception]) -> None:
    """Raise what failed; return if that is *error* alone, which is on its way already."""
    if isinstance(error, Exception):
        if failures:
            raise ExceptionGroup("several lifespans failed", [error, *failures])
    elif error is not None:
        if failures:
            group = ExceptionGroup("lifespans failed to end", failures)
            logging.getLogger("engine_bridge").error("%s", group, exc_info=group)
        raise error
    elif len(failures) == 1:
        raise failures[0]
    elif failures:
        raise ExceptionGroup("lifespans failed to end", failures)


def _told(name: str, error: Exception | SystemExit) -> Exception:
    """Return *error*, or what says it better."""
    if isinstance(error, SystemExit):  # let loose in a task it would end the loop
        told = EngineError(f"the lifespan {name} asked to exit with {error.code!r}")
    elif isinstance(error, RuntimeError) and str(error) in (
        "generator didn't yield",
        "generator didn't stop",
    ):
        what = "did not yield" if "yield" in str(error) else "yielded twice"
        told = EngineError(f"the lifespan {name} {what}; it must yield exactly once")
    else:
        return error
    told.__cause__ = error
    return told


def _as_lifespan(lifespan: "Any") -> "Lifespan":
    """Return *lifespan* as a function of the application; refuse what is none."""
    if isasyncgenfunction(lifespan):
        return asynccontextmanager(lifespan)
    wrong = ""
    if isinstance(lifespan, Engine):
        wrong = "give its method engine.lifespan"
    elif isinstance(lifespan, AsyncContextDecorator):  # what @asynccontextmanager makes is callable
        wrong = "give the function itself, not what it returns"
    elif not callable(lifespan):
        wrong = "it is no function"
    elif iscoroutinefunction(lifespan):
        wrong = "it is an async function that never yields; have it yield once, between what is to "
        wrong += "be done before the first request and after the last"
    elif isgeneratorfunction(lifespan):
        wrong = "it is a generator function; write `async def`"
    elif not _takes_application(lifespan):
        wrong = "it must take one argument, the application"
    if wrong:
        raise EngineError(f"compose(…) wants lifespans, got {lifespan!r}: {wrong}")
    checked: Lifespan = lifespan
    return checked


def _takes_application(lifespan: "Callable[..., Any]") -> bool:
    try:
        signature(lifespan).bind("app")
    except TypeError:
        return False
    except ValueError:
        return True  # made in C: it does not say
    return True


def _opened(name: str, context: "Any") -> "Context":
    if not hasattr(context, "__aenter__") or not hasattr(context, "__aexit__"):
        raise EngineError(
            f"the lifespan {name} returned {context!r}, which is no async context manager; "
            "decorate it with contextlib.asynccontextmanager"
        )
    opened: Context = context
    return opened


def _as_state(name: str, value: object) -> "Mapping[str, Any]":
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EngineError(
            f"the lifespan {name} yielded {value!r}; it must yield a mapping, which becomes "
            "request.state, or nothing"
        )
    return value


# -- mounted applications ------------------------------------------------------------------------


def mounted_lifespans(app: object = None, *, skip: "Iterable[Any]" = ()) -> "MountedLifespans":
    """
    Run the lifespans of all applications that are mounted in *app*, at any depth, each once.

    It is itself a lifespan, and the application may come later: `lifespan=mounted_lifespans` and
    `compose(engine.lifespan, mounted_lifespans)` are as good as `mounted_lifespans(app)`. They are
    looked for in the routes when the lifespan begins, and started in the order of the routes, an
    application before those mounted in it. What one yields is in `request.state` of its own
    requests, over what the applications around it yielded, and is not seen outside of it.

    Args:
        app: The application in whose routes to look.
        skip: Mounted applications to leave alone, with all that is mounted in them.

    Raises:
        EngineError: *app* is nothing with routes, or *skip* no collection of applications.
    """
    return MountedLifespans(app, skip)


# What was started so far, from the outermost application on, with the state that it yielded: a
# mounted application may run `mounted_lifespans` itself.
_started: "ContextVar[dict[int, tuple[object, dict[str, Any]]] | None]" = ContextVar(
    "_started", default=None
)


class MountedLifespans:
    """The lifespans of mounted applications, as one; `mounted_lifespans` makes it."""

    def __init__(self, app: object, skip: "Any") -> None:
        if app is not None and not _has_routes(app):
            raise EngineError(
                f"mounted_lifespans(…) wants a Starlette or FastAPI application, got {app!r}"
            )
        if not isinstance(skip, Iterable) or isinstance(skip, str):
            raise EngineError(
                f"mounted_lifespans(skip=…) wants a list of applications, got {skip!r}"
            )
        self._app = app
        self._skip = tuple(skip)
        self._stack = _Stack()
        self._overlaid: list[tuple[_StateOverlay, dict[str, Any]]] = []

    def __call__(self, app: object) -> "MountedLifespans":
        """Be a lifespan of *app*."""
        return MountedLifespans(app if self._app is None else self._app, self._skip)

    async def __aenter__(self) -> None:
        if self._app is None:
            raise EngineError("mounted_lifespans() has no application: mounted_lifespans(app)")
        started = _started.get()
        if started is None:
            started = {}
        token = _started.set(started)
        for own in (self._app, getattr(self._app, "router", None)):
            started.setdefault(id(own), (own, {}))
        try:
            await self._enter_below(self._app, "", started)
        except BaseException as exc:
            await self._leave(exc)
            raise
        finally:
            _started.reset(token)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        try:
            await self._stack.leave(error)
        finally:
            while self._overlaid:
                overlay, state = self._overlaid.pop()
                overlay.forget(state)

    async def _enter_below(
        self, app: object, path: str, started: "dict[int, tuple[object, dict[str, Any]]]"
    ) -> None:
        """Start what is mounted in *app*, then what is mounted in that."""
        for route in _mounts(app):
            layers = list(_layers(route.app))
            if any(layer is skipped for layer in layers for skipped in self._skip):
                continue
            inner = layers[-1]
            where = path + (route.path if isinstance(route, Mount) else f"//{route.host}")
            is_new = id(inner) not in started
            if is_new:
                mounted = _MountedApplication(layers, where, self._app)
                started[id(inner)] = inner, mounted.state
                await self._stack.enter(where, mounted)
            state = started[id(inner)][1]
            if state:
                overlay = _StateOverlay.on(route)
                overlay.states.append(state)
                self._overlaid.append((overlay, state))
            if is_new:
                await self._enter_below(inner, where, started)


class _MountedApplication:
    """
    The lifespan of one mounted application.

    It is asked as by a server, so that an application of any framework will do, wrapped or not.

    Attributes:
        state: What it has yielded.
    """

    def __init__(self, layers: "list[Any]", where: str, outermost: object) -> None:
        self.state: dict[str, Any] = {}
        self._where = where or "/"
        self._outermost = outermost
        self._is_router = isinstance(layers[-1], Router)
        self._inner: InnerLifespan | None = None
        # A middleware that was never meant to see a lifespan may fail on it: then without it.
        self._ways_in = layers[:1]
        if len(layers) > 1 and _has_routes(layers[-1]):
            self._ways_in.append(layers[-1])

    async def __aenter__(self) -> None:
        for app in self._ways_in:
            inner = InnerLifespan(app, self._scope())
            try:
                await inner.start()
            except BaseException as exc:
                await inner.cancel()
                if isinstance(exc, EngineError):
                    raise self._failed("start up", exc) from exc.__cause__
                raise
            if inner.supported:
                self._inner = inner
                return

    async def __aexit__(self, *error: object) -> None:
        if self._inner is None:
            return
        try:
            await self._inner.stop()
        except EngineError as exc:
            raise self._failed("shut down", exc) from exc.__cause__
        except BaseException:
            await self._inner.cancel()
            raise

    def _scope(self) -> "dict[str, Any]":
        self.state.clear()
        scope: dict[str, Any] = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        if self._is_router:  # an application puts itself there
            scope["app"] = self._outermost
        return scope

    def _failed(self, what: str, error: EngineError) -> EngineError:
        text = f"the application mounted at {self._where} failed to {what}"
        if error.__cause__ is None:  # its words are all there is
            text += f": {error}"
        return EngineError(text)


class _StateOverlay:
    """
    Puts what a mounted application has yielded into the state of its requests.

    It takes the place of the application in the route, for good, and does nothing while the
    application has no lifespan open. The state is changed in place: what middleware around the
    mount has from `request.state` is the same one.
    """

    def __init__(self, app: "Application") -> None:
        self.app = app
        self.states: list[dict[str, Any]] = []

    @staticmethod
    def on(route: Mount | Host) -> "_StateOverlay":
        """Return the overlay of *route*, a new one if it has none."""
        if not isinstance(route.app, _StateOverlay):
            route.app = _StateOverlay(route.app)
        return route.app

    def forget(self, state: "dict[str, Any]") -> None:
        """Put *state* into no more requests."""
        self.states = [known for known in self.states if known is not state]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if self.states and scope["type"] != "lifespan":
            scope.setdefault("state", {}).update(self.states[-1])
        await self.app(scope, receive, send)


def _has_routes(app: object) -> bool:
    return isinstance(getattr(app, "routes", None), list | tuple)


def _mounts(app: "Any") -> Iterator[Mount | Host]:
    """Yield the mounts among the routes of *app*, those of included routers too."""
    if not _has_routes(app):
        return
    for route in list(app.routes):
        if isinstance(route, Mount | Host):
            yield route
        # FastAPI keeps an included router as one route. It has merged its lifespan into that of
        # the router that includes it, but not what is mounted there.
        yield from _mounts(getattr(route, "original_router", None))


def _layers(app: "Any") -> Iterator[object]:
    """Yield *app* and, as far as middleware tells it, what it wraps; the innermost comes last."""
    seen: list[object] = []
    while callable(app) and all(app is not known for known in seen):
        seen.append(app)
        if not isinstance(app, _StateOverlay):
            yield app
        if _has_routes(app):
            return
        app = getattr(app, "app", None)


# -- health --------------------------------------------------------------------------------------


def health_routes(health: "HealthPlugin") -> list[BaseRoute]:
    """
    Return routes for `/livez`, `/readyz` and `/startupz` that *health* answers.

    For a prefix, mount them: `Mount("/health", routes=health_routes(health))`.

    Args:
        health: An `engine_bridge.plugins.Health`.

    Raises:
        EngineError: It is none.
    """
    if not callable(getattr(health, "asgi", None)) or isinstance(health, type):
        raise EngineError(
            f"health_routes(…) wants a Health plugin, got {health!r}: "
            "health_routes(Health(engine)), with engine_bridge.plugins.Health"
        )
    endpoint = _Endpoint(health.asgi)
    return [Route(f"/{name}", endpoint, name=name) for name in PROBES]


class _Endpoint:
    """An ASGI application that is no function, so that Starlette takes it for one."""

    def __init__(self, app: "Application") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        await self.app(scope, receive, send)


# -- the engine of a request ---------------------------------------------------------------------


def current_engine(connection: HTTPConnection) -> Engine:
    """
    Return the engine that serves a request or WebSocket.

    That of the application's own lifespan, else that of the `EngineMiddleware` around it, else that
    of the outermost application's lifespan, else the only one in the process that is STARTED.

    Raises:
        EngineError: There is none.
    """
    app = connection.scope.get("app")
    engine = (
        engine_of(app)
        or _engine_of_middleware()
        or _engine_of_outermost(connection.scope.get("router"))
        or _engine_of_planned_lifespan(app)
        or _only_started()
    )
    if engine is None:
        raise EngineError(
            f"no engine serves {connection.url.path}: give its application "
            "lifespan=engine.lifespan, which with a TestClient runs only inside `with`, "
            "or the middleware engine_bridge.frameworks.asgi.EngineMiddleware"
        )
    return engine


async def get_engine(connection: HTTPConnection) -> Engine:
    """Be a dependency of FastAPI: `engine: Annotated[Engine, Depends(get_engine)]`."""
    return current_engine(connection)  # async, so that FastAPI needs no thread for it


def _engine_of_middleware() -> Engine | None:
    token = in_flight.current.get()
    return next((engine for engine in nets.engines() if token in engine.requests.open), None)


def _engine_of_outermost(router: object) -> Engine | None:
    for app in applications():
        if router is not None and getattr(app, "router", None) is router:
            return engine_of(app)
    return None


def _engine_of_planned_lifespan(app: object) -> Engine | None:
    """Return the engine of a lifespan that does not run, as in a `TestClient` without `with`."""
    planned = getattr(getattr(app, "router", None), "lifespan_context", None)
    lifespans = planned.lifespans if isinstance(planned, _Composed) else [planned]
    for lifespan in lifespans:
        owner = getattr(lifespan, "__self__", None)
        if isinstance(owner, Engine):
            return owner
    return None


def _only_started() -> Engine | None:
    started = [engine for engine in nets.engines() if engine.state is State.STARTED]
    return started[0] if len(started) == 1 else None
