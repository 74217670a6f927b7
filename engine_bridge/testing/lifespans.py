"""
The lifespan of an ASGI application, without a server.

asgiref's `ApplicationCommunicator` was weighed: it waits for an answer until its time is up, also
when the application has died meanwhile.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager

from engine_bridge.core.errors import EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine_bridge.frameworks.asgi import InnerLifespan

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Served:
    """
    An application between its startup and its shutdown; itself an ASGI application.

    Each request gets a copy of the lifespan state, as from a server: give this, not the application
    itself, to a client such as `httpx.ASGITransport`.

    Attributes:
        app: The application.
        state: The lifespan state.
    """

    def __init__(self, app: "Any") -> None:
        self.app = app
        self.state: dict[str, Any] = {}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, with the state."""
        await self.app({**scope, "state": {**self.state, **scope.get("state", {})}}, receive, send)


@asynccontextmanager
async def lifespan(app: "Any", *, timeout: float | None = 60.0) -> AsyncIterator[Served]:
    """
    Take *app* through its startup and, whatever happens inside, its shutdown.

    Needs asyncio's loop and nothing else: `asyncio.run`, pytest-asyncio and anyio's plugin will do.

    Args:
        app: An ASGI application.
        timeout: Seconds that each of the two may take; None sets no limit.

    Raises:
        EngineError: The application does not know lifespans, has not answered in time, or has
            failed; what it raised is the cause.
    """
    # Late, so that importing `engine_bridge.testing` costs next to nothing.
    from asgiref.compatibility import guarantee_single_callable

    from engine_bridge.frameworks.asgi import InnerLifespan

    if not callable(app):
        raise EngineError(f"lifespan(…) wants an ASGI application, got {app!r}")
    served = Served(guarantee_single_callable(app))  # type: ignore[no-untyped-call]  # asgiref
    scope = {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": served.state,
    }
    life = InnerLifespan(served.app, scope)
    try:
        await _in_time(life, life.start(), "startup", timeout)
        if not life.supported:
            raise EngineError(
                f"{app!r} does not know lifespans, so there is none to test; "
                "engine_bridge.frameworks.asgi.EngineMiddleware gives it one"
            )
        try:
            yield served
        finally:
            await _in_time(life, life.stop(), "shutdown", timeout)
    finally:
        await life.cancel()


async def _in_time(
    life: "InnerLifespan", half: "Awaitable[None]", name: str, timeout: float | None
) -> None:
    import asyncio

    try:
        async with asyncio.timeout(timeout):
            await half  # which raises no TimeoutError of its own
    except TimeoutError:
        raise EngineError(
            f"the application has not completed its lifespan {name} within {timeout:g} s; "
            f"it stands here:\n{life.stack()}"
        ) from None
