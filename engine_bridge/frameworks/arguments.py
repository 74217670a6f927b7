"""What `EngineMiddleware` of WSGI and that of ASGI refuse alike, each in a sentence."""

from collections.abc import Callable
from inspect import signature

from engine_bridge import engine as default_engine
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def engine_for(app: "Any", engine: object, middleware: type) -> Engine:
    """
    Return the engine that *app* is to have.

    Args:
        app: What is to be wrapped.
        engine: What was given; None means the default engine.
        middleware: The class that wraps.

    Raises:
        EngineError: *engine* is none, or *app* has another one.
    """
    if engine is None:
        engine = default_engine
    if not isinstance(engine, Engine):
        raise EngineError(
            f"EngineMiddleware wants an Engine second, got {engine!r}: "
            "EngineMiddleware(app, Engine())"
        )
    for each in (app, getattr(app, "wsgi_app", None)):  # the second is Flask's
        if isinstance(each, middleware) and vars(each)["engine"] is not engine:
            raise EngineError(
                f"{app!r} has an engine already, {vars(each)['engine']!r}; one is all it can have: "
                "leave one EngineMiddleware out, or give both the same engine"
            )
    return engine


def refuse_factory(app: "Callable[..., Any]") -> None:
    """
    Refuse a function that makes the application.

    Raises:
        EngineError: It is one, as far as it says.
    """
    if takes(app, 0) and not takes(app, 1):
        name = getattr(app, "__name__", "create_app")
        raise EngineError(
            f"{app!r} is no application, but takes no arguments as factories of one do; "
            f"call it: EngineMiddleware({name}())"
        )


def takes(app: "Callable[..., Any]", number: int) -> bool:
    """Whether *app* can be called with *number* arguments, as far as it says."""
    try:
        # Not what it wraps: `werkzeug.Request.application` takes more than the function it wraps.
        signature(app, follow_wrapped=False).bind(*range(number))
    except (TypeError, ValueError):
        return False
    return True
