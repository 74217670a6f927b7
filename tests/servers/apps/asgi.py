"""An ASGI application under test, wrapped in the engine's middleware."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from servers.apps.answers import STREAMS, answer
from servers.apps.lifecycle import instrument

from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

instrument(engine)


async def respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer requests; it does not know lifespans, as Django does not."""
    if scope["type"] != "http":
        raise ValueError(f"no scope for me: {scope['type']}")
    if scope["path"] in STREAMS:
        await stream(send, engine.until_drain(STREAMS[scope["path"]]()))
        return
    body = await answer(scope["path"])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Send, events: AsyncIterator[bytes]) -> None:
    """Send server-sent events."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


app = EngineMiddleware(respond)
