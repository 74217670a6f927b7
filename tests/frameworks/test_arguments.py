"""What is refused when an application is wrapped: one sentence, which says what to write."""

import sys
from pathlib import Path
from typing import Any

import flask
import pytest
from processes import start_process
from servers.launch import CONFIG, GUNICORN, UVICORN, WAITRESS

from engine_bridge import Engine, EngineError
from engine_bridge.core import signals
from engine_bridge.frameworks import asgi, wsgi
from engine_bridge.frameworks.flask import EngineBridge
from engine_bridge.frameworks.starlette import compose


def wsgi_app(environ: dict[str, Any], start_response: object) -> list[bytes]:
    """Be a WSGI application."""
    return []


async def asgi_app(scope: dict[str, Any], receive: object, send: object) -> None:
    """Be an ASGI application."""


def create_app() -> object:
    """Be an application factory."""
    return wsgi_app


async def create_app_async() -> object:
    """Be one that has to be awaited."""
    return asgi_app


MIDDLEWARES = pytest.mark.parametrize(
    ("middleware", "app"),
    [
        pytest.param(wsgi.EngineMiddleware, wsgi_app, id="wsgi"),
        pytest.param(asgi.EngineMiddleware, asgi_app, id="asgi"),
    ],
)


@MIDDLEWARES
@pytest.mark.parametrize("engine", ["engine", 7, Engine], ids=str)
def test_what_is_no_engine_is_refused(middleware: Any, app: Any, engine: object) -> None:
    """The second argument is an engine, not its name, nor its class."""
    with pytest.raises(EngineError) as caught:
        middleware(app, engine)
    assert str(caught.value) == (
        f"EngineMiddleware wants an Engine second, got {engine!r}: EngineMiddleware(app, Engine())"
    )


@MIDDLEWARES
@pytest.mark.parametrize("factory", [create_app, create_app_async])
def test_factory_is_to_be_called(middleware: Any, app: Any, factory: Any) -> None:
    """A factory that was handed over uncalled is told apart from an application."""
    with pytest.raises(EngineError) as caught:
        middleware(factory)
    assert str(caught.value) == (
        f"{factory!r} is no application, but takes no arguments as factories of one do; "
        f"call it: EngineMiddleware({factory.__name__}())"
    )


@MIDDLEWARES
def test_second_engine_is_refused(middleware: Any, app: Any, engine: Engine) -> None:
    """An application that is wrapped already keeps its engine; the same one may come twice."""
    wrapped = middleware(app, engine)
    middleware(wrapped, engine)
    for other in (Engine(), None):
        with pytest.raises(EngineError) as caught:
            middleware(wrapped, other)
        assert str(caught.value) == (
            f"{wrapped!r} has an engine already, {engine!r}; one is all it can have: "
            "leave one EngineMiddleware out, or give both the same engine"
        )


def test_second_engine_is_refused_for_flask(engine: Engine) -> None:
    """A Flask application that `EngineBridge` gave an engine gets no second one around it."""
    app = flask.Flask("shop")
    EngineBridge(app, engine)
    with pytest.raises(EngineError, match=r"^<Flask 'shop'> has an engine already, <Engine "):
        wsgi.EngineMiddleware(app, Engine())


def test_second_engine_is_refused_by_compose(engine: Engine) -> None:
    """Of several lifespans one may be an engine's; the same one may come twice."""
    other = Engine()
    compose(engine.lifespan, compose(engine.lifespan))
    with pytest.raises(EngineError) as caught:
        compose(engine.lifespan, compose(other.lifespan))
    assert str(caught.value) == (
        "compose(…) wants the lifespan of one engine, since one is all that an application can "
        f"have; got those of {engine!r}, {other!r}: leave out all but one"
    )
    signals.unwatch(other)


FACTORY = """
from functools import partial
from journal import record
from engine_bridge import engine

for channel in ("start", "stop", "exit"):
    engine.subscribe(channel, partial(record, channel))

def create_app():
    raise KeyError("DATABASE")
"""
FACTORIES = {
    "flask": ([sys.executable, "-m", "flask", "run", "--port", "0"], {1}),
    "gunicorn": ([*GUNICORN[:-1], "127.0.0.1:0", *CONFIG, "app:create_app()"], {3}),
    "uvicorn": ([*UVICORN[:-1], "0", "--factory", "app:create_app"], {1, 3}),
    "waitress": ([*WAITRESS[:-1], "127.0.0.1:0", "--call", "app:create_app"], {1}),
}


@pytest.mark.parametrize(("command", "statuses"), FACTORIES.values(), ids=FACTORIES)
def test_factory_that_raises_starts_nothing(
    command: list[str], statuses: set[int], tmp_path: Path
) -> None:
    """The server tells it by function and error, and leaves; no engine has started by then."""
    (tmp_path / "app.py").write_text(FACTORY)
    with start_process(command, cwd=tmp_path) as process:
        assert process.wait_exit() in statuses
    output = process.output()
    assert "create_app" in output
    assert "KeyError: 'DATABASE'" in output
    assert not process.journal()
