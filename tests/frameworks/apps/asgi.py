"""No framework, under ASGI."""

from collections.abc import Awaitable, Callable
from typing import Any

from frameworks.apps.lifecycle import hold_async, use

from engine_bridge.frameworks.asgi import EngineMiddleware


async def respond(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer."""
    if scope["type"] != "http":
        raise ValueError(f"no scope for me: {scope['type']}")
    text = await hold_async() if scope["path"] == "/held" else use()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": text.encode()})


app = EngineMiddleware(respond)
