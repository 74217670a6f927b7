"""
The engine for Flask: `EngineBridge(app)`, or `init_app` in an application factory.

The application's engine starts before its first request and ends with the process, whatever serves
it. `current_engine` is the engine of the application at hand, `flask engine` tells of it.
"""

import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from difflib import get_close_matches
from functools import wraps
from inspect import isasyncgenfunction

from engine_bridge import engine as default_engine
from engine_bridge.core.bus import Bus, is_async
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError
from engine_bridge.core.resources import make_resource
from engine_bridge.frameworks.wsgi import EngineMiddleware

try:
    import flask
except ModuleNotFoundError as exc:
    if exc.name != "flask":
        raise  # a fault inside Flask is not «not installed»
    raise EngineError("Flask is not installed: pip install 'engine-bridge[flask]'") from exc

from click import ClickException
from werkzeug.local import LocalProxy

from engine_bridge.frameworks import flask_cli, flask_run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, TypeVar, overload

    Function = TypeVar("Function", bound=Callable[..., Any])

    class Probes(Protocol):
        """What answers probes: the plugin `Health`."""

        def probe(
            self, name: str, *, verbose: bool = False
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            """Return status, headers and body."""
            ...

else:

    def overload(function: "Any") -> "Any":  # noqa: D103  # typing's, without its import
        return function


SECONDS = {
    "ENGINE_SLOW_AFTER": "slow_after",
    "ENGINE_START_TIMEOUT": "start_timeout",
    "ENGINE_STOP_TIMEOUT": "stop_timeout",
    "ENGINE_DRAIN_DELAY": "drain_delay",
    "ENGINE_DRAIN_TIMEOUT": "drain_timeout",
}
KNOWN = (*SECONDS, flask_cli.PIDFILE)
PROBES = ("livez", "readyz", "startupz")


class SettingError(EngineError, ClickException):
    """What the application's configuration says cannot be; `flask` prints it without a trace."""


class NoEngineError(EngineError, RuntimeError):
    """`current_engine` was used where no application is at hand, or one without an engine."""


def _find_engine() -> Engine:
    if not flask.has_app_context():
        raise NoEngineError(
            "current_engine wants an application at hand, as in a view or a command; "
            "elsewhere use `with app.app_context():`, or keep the engine in a variable"
        )
    engine = flask.current_app.extensions.get("engine")
    if not isinstance(engine, Engine):
        raise NoEngineError(
            f"the application {flask.current_app.name!r} has no engine; "
            "give it one: EngineBridge(app)"
        )
    return engine


current_engine: Engine = LocalProxy(_find_engine)  # type: ignore[assignment]  # it stands for one
"""The engine of the application that handles the present request, or whose context is pushed."""


class EngineBridge:
    """
    Give Flask applications an engine.

    Configuration keys are `ENGINE_` and a parameter of `Engine` in capitals, in seconds, such as
    `ENGINE_DRAIN_TIMEOUT`; and `ENGINE_PIDFILE`, where `flask engine` finds the main process. They
    are read by `init_app`. Applications that share an engine share its parameters: the last word
    counts.

    Args:
        app: The application; without one, hand it to `init_app` later.
        engine: Its engine, as for `init_app`.

    Raises:
        EngineError: What `init_app` says.
    """

    def __init__(self, app: flask.Flask | None = None, engine: Engine | None = None) -> None:
        self._apps: weakref.WeakSet[flask.Flask] = weakref.WeakSet()
        self._attachments: list[Callable[[flask.Flask, Engine], object]] = []
        if app is not None:
            self.init_app(app, engine)

    def init_app(self, app: flask.Flask, engine: Engine | None = None) -> None:
        """
        Give *app* its engine; twice is as good as once.

        Args:
            app: The application.
            engine: Its engine; without one the engine that it has, else the package's default one.

        Raises:
            EngineError: *app* is no Flask application or has another engine already, or *engine* is
                none.
            SettingError: A configuration key that begins with `ENGINE_` is unknown, or its value
                not what it should be.
        """
        if engine is None:
            engine = getattr(app, "extensions", {}).get("engine", default_engine)
        _check(app, engine)
        settings = _settings(app)
        for name, value in settings.items():
            setattr(engine, name, value)
        if "engine" not in app.extensions:
            _install(app, engine)
        if app not in self._apps:
            self._apps.add(app)
            for attach in self._attachments:
                attach(app, engine)

    @overload
    def subscribe(  # noqa: D102  # ruff does not see that overload is typing's
        self, channel: str, listener: None = None, priority: float | None = None
    ) -> "Callable[[Function], Function]": ...
    @overload
    def subscribe(  # noqa: D102, F811  # ruff does not see that overload is typing's
        self, channel: str, listener: "Function", priority: float | None = None
    ) -> "Function": ...
    def subscribe(  # noqa: F811  # as above
        self,
        channel: str,
        listener: "Function | None" = None,
        priority: float | None = None,
    ) -> "Function | Callable[[Function], Function]":
        """
        Call *listener* whenever *channel* is published, within the application context.

        It is `Engine.subscribe` for listeners that need `current_app`, and may come before there
        is an application: the listener is called for each one that `init_app` was given.

        Raises:
            ListenerError: *listener* is not callable, or *channel* is not a name.
        """
        if listener is None and isinstance(channel, str):
            return lambda function: self.subscribe(channel, function, priority)
        Bus().subscribe(channel, listener, priority)  # refuses what is no channel or listener

        def attach(app: flask.Flask, engine: Engine) -> None:
            assert listener is not None
            call = _in_context(listener, app)
            engine.subscribe(channel, call, priority)
            weakref.finalize(app, engine.unsubscribe, channel, call).atexit = False

        self._attach(attach)
        assert listener is not None
        return listener

    def resource(self, function: "Function") -> "Function":
        """
        Have what precedes `yield` in *function* run on `start`, the rest on `stop`.

        It is `Engine.resource` with the application context pushed while *function* runs.

        Raises:
            ListenerError: *function* is neither a generator nor an async generator function.
        """
        make_resource(function, lambda: None)  # type: ignore[arg-type,return-value]  # only to refuse
        self._attach(lambda app, engine: engine.resource(_steps_in_context(function, app)))
        return function

    def _attach(self, attach: Callable[[flask.Flask, Engine], object]) -> None:
        """Do *attach* for each application, those to come included."""
        self._attachments.append(attach)
        for app in tuple(self._apps):
            attach(app, app.extensions["engine"])


def health_blueprint(health: "Probes", name: str = "health") -> flask.Blueprint:
    """
    Return a blueprint with `/livez`, `/readyz` and `/startupz`.

    They are views like all others: `before_request` functions see them, and while the engine is not
    STARTED they get its 503. `app.wsgi_app = health.wsgi_before(app.wsgi_app)` is for probes that
    must be answered always.

    Args:
        health: The plugin `Health`.
        name: The blueprint's name.
    """
    if not callable(getattr(health, "probe", None)):
        raise EngineError(
            f"health_blueprint wants the plugin Health, got {health!r}: "
            "health_blueprint(Health(engine))"
        )
    blueprint = flask.Blueprint(name, __name__)

    def view(probe: str) -> flask.Response:
        status, headers, body = health.probe(probe, verbose="verbose" in flask.request.args)
        return flask.Response(body, status, headers)

    for probe in PROBES:
        blueprint.add_url_rule(f"/{probe}", probe, view, defaults={"probe": probe})
    return blueprint


def _install(app: flask.Flask, engine: Engine) -> None:
    app.extensions["engine"] = engine
    if not isinstance(app.wsgi_app, EngineMiddleware):
        app.wsgi_app = EngineMiddleware(app.wsgi_app, engine)  # type: ignore[method-assign]  # Flask's way
    app.cli.add_command(flask_cli.commands)
    flask_run.prepare(engine)


# -- bad input -----------------------------------------------------------------------------------


def _check(app: object, engine: object) -> None:
    if not isinstance(app, flask.Flask):
        raise EngineError(
            f"EngineBridge wants a Flask application first, got {app!r}: EngineBridge(app)"
        )
    if not isinstance(engine, Engine):
        raise EngineError(
            f"EngineBridge wants an Engine second, got {engine!r}: EngineBridge(app, Engine())"
        )
    middleware = app.wsgi_app if isinstance(app.wsgi_app, EngineMiddleware) else None
    present = app.extensions.get("engine", middleware.engine if middleware else None)
    if present is not None and present is not engine:
        raise EngineError(
            f"the application {app.name!r} has an engine already, {present!r}; "
            "one is all it can have: give EngineBridge that one, or call it once"
        )


def _settings(app: flask.Flask) -> dict[str, float]:
    """Return what the configuration says for parameters of the engine."""
    for key in app.config:
        if key.startswith("ENGINE_") and key not in KNOWN:
            meant = get_close_matches(key, KNOWN, n=1, cutoff=0.8)
            hint = f"did you mean {meant[0]}?" if meant else f"known: {', '.join(KNOWN)}"
            raise SettingError(f"no setting {key} in app.config; {hint}")
    if not isinstance(app.config.get(flask_cli.PIDFILE), str | os.PathLike | None):
        raise SettingError(
            f"app.config[{flask_cli.PIDFILE!r}] wants the path of a file; "
            f"got {app.config[flask_cli.PIDFILE]!r}"
        )
    found = {}
    for key, name in SECONDS.items():
        if key in app.config:
            found[name] = app.config[key]
            try:
                Engine(**{name: app.config[key]})  # it knows what its parameters must be
            except EngineError:
                raise SettingError(
                    f"app.config[{key!r}] wants seconds, 0 or more; got {app.config[key]!r}"
                ) from None
    return found


# -- within the application context --------------------------------------------------------------


def _in_context(listener: "Callable[..., Any]", app: flask.Flask) -> "Callable[..., Any]":
    """Return *listener* as it is called with the context of *app*, for as long as there is one."""
    reference = weakref.ref(app)

    @wraps(listener)
    def call(*args: "Any", **kwargs: "Any") -> "Any":
        application = reference()
        if application is None:
            return None  # it went in the midst of a publish
        with application.app_context():
            return listener(*args, **kwargs)

    @wraps(listener)
    async def call_async(*args: "Any", **kwargs: "Any") -> "Any":
        application = reference()
        if application is None:
            return None
        with application.app_context():
            return await listener(*args, **kwargs)

    return call_async if is_async(listener) else call


def _steps_in_context(
    function: "Callable[[], Any]", app: flask.Flask
) -> "Callable[[], Iterator[Any]] | Callable[[], AsyncIterator[Any]]":
    """Return the generator *function* with each of its steps taken in the context of *app*."""
    reference = weakref.ref(app)

    @wraps(function)
    def steps() -> "Iterator[Any]":
        application = reference()
        if application is None:
            yield  # nobody is left to open anything for
            return
        generator = function()
        while True:
            with application.app_context():
                try:
                    value = next(generator)
                except StopIteration:
                    return
            yield value

    @wraps(function)
    async def steps_async() -> "AsyncIterator[Any]":
        application = reference()
        if application is None:
            yield
            return
        generator = function()
        while True:
            with application.app_context():
                try:
                    value = await anext(generator)
                except StopAsyncIteration:
                    return
            yield value

    return steps_async if isasyncgenfunction(function) else steps
