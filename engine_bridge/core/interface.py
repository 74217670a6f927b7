"""Which interface an application is written for, by what it can be called with."""

from .bus import is_async

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def interface_of(app: "Callable[..., Any]") -> str:
    """
    Return "asgi" or "wsgi".

    Source:
        PEP 3333, whose applications take two arguments by place; ASGI, whose take three, or one.
    """
    from inspect import signature

    if is_async(app):
        return "asgi"
    try:
        # Not what it wraps: `werkzeug.Request.application` takes more than the function it wraps.
        signature(app, follow_wrapped=False).bind("environ", "start_response")
    except ValueError:
        return "wsgi"  # made in C: it does not say what it takes
    except TypeError:
        return "asgi"
    return "wsgi"
