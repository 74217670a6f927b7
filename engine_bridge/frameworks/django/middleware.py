"""`request.state`: what resources of the engine have yielded, and lifespan handlers."""

from collections.abc import Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from engine_bridge.frameworks.django import conf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LifespanStateMiddleware:
    """
    Give each request the lifespan state, as `request.state`.

    For `MIDDLEWARE`, under ASGI and WSGI alike.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: "Callable[[Any], Any]") -> None:
        self.get_response = get_response
        self._engine = conf.find_instance(conf.read())
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: "Any") -> "Any":
        """Return the response, or under ASGI what gives it when awaited."""
        state = getattr(request, "scope", {}).get("state")
        request.state = self._engine.lifespan_state if state is None else state
        return self.get_response(request)
