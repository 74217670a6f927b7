"""No framework, under ASGI."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from frameworks.apps.lifecycle import hold_async, use
from journal import record
from released import PAUSE

from engine_bridge.frameworks.asgi import EngineMiddleware

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def tick(receive: Receive, send: Send) -> None:
    """Send something for as long as somebody listens."""

    async def wait_for_the_end() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    record("streams")
    await send({"type": "http.response.start", "status": 200})
    gone = asyncio.create_task(wait_for_the_end())
    while not gone.done():
        await send({"type": "http.response.body", "body": b"tick\n", "more_body": True})
        await asyncio.sleep(PAUSE)
    record("parted")


async def respond(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer."""
    if scope["type"] != "http":
        raise ValueError(f"no scope for me: {scope['type']}")
    if scope["path"] == "/ticks":
        await tick(receive, send)
        return
    text = await hold_async() if scope["path"] == "/held" else use()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": text.encode()})


app = EngineMiddleware(respond)
