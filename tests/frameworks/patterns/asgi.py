"""Patterns of the drain with no framework, under ASGI."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from frameworks.patterns.life import health
from frameworks.patterns.tasks import events, pieces, wait_for_news

from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def answer(scope: Message, receive: Receive, send: Send) -> None:
    """Answer, each path in its way."""
    match scope["type"], scope.get("path"):
        case "websocket", _:
            await talk(receive, send)
        case "http", "/events":
            await stream(send, engine.until_drain(events()))
        case "http", "/download":
            await stream(send, pieces())
        case "http", "/poll":
            await respond(send, 200 if await wait_for_news() else 204)
        case "http", _:
            await respond(send, 200)


async def respond(send: Send, status: int) -> None:
    """Answer with nothing but a status."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def stream(send: Send, pieces: AsyncIterator[bytes]) -> None:
    """Answer piece by piece."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def talk(receive: Receive, send: Send) -> None:
    """Echo what is said until the engine drains; 1012 tells to come again."""

    async def texts() -> AsyncIterator[str]:
        while (message := await receive())["type"] == "websocket.receive":
            yield message["text"]

    await receive()
    await send({"type": "websocket.accept"})
    async for text in engine.until_drain(texts()):
        await send({"type": "websocket.send", "text": text})
    if engine.draining.is_set():
        await send({"type": "websocket.close", "code": 1012})


app = health.asgi_before(EngineMiddleware(answer))
