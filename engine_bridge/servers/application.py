"""The application to serve: imported by its name, and of an interface that the server has."""

from operator import attrgetter

from engine_bridge.core.errors import EngineError
from engine_bridge.core.interface import interface_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOR = {
    "asgi": ("uvicorn", "hypercorn", "granian"),
    "wsgi": ("waitress", "cheroot", "gunicorn", "werkzeug"),
}  # the servers for each interface, in the order in which "auto" tries them
WSGI_ONLY = ("waitress", "cheroot", "werkzeug")


def load(app: "Any", server: str = "") -> "Any":
    """
    Return the application, imported if it is given as `module:attribute`.

    Args:
        app: The application, or its name.
        server: Who is to serve it, if that is known.

    Raises:
        EngineError: There is none of that name, it is none, or *server* cannot serve it.
    """
    found = _import(app) if isinstance(app, str) else app
    if not callable(found):
        raise EngineError(f"no application: {app!r} is {found!r}, which cannot be called")
    if server in WSGI_ONLY and interface_of(found) == "asgi":
        raise EngineError(
            f"{server} serves WSGI applications, and {found!r} is an ASGI one; "
            f"choose one of {', '.join(FOR['asgi'])}"
        )
    return found


def _import(name: str) -> "Any":
    from importlib import import_module

    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise EngineError(f"not the name of an application: {name!r}; write module:attribute")
    try:
        imported = import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise  # what it imports is at fault
        raise EngineError(f"cannot import {name!r}: there is no module {exc.name!r}") from None
    try:
        return attrgetter(attribute)(imported)
    except AttributeError:
        raise EngineError(f"cannot import {name!r}: {module} has no {attribute!r}") from None
