"""A Litestar application under test; a lifespan of its own tells when it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from journal import record
from litestar import Litestar, Request, WebSocket, get, websocket
from litestar.response import Stream
from servers.apps.generic import answer, events

from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware


@asynccontextmanager
async def serve(app: Litestar) -> AsyncIterator[None]:
    """Stand for what the application itself opens and closes."""
    record("serving")
    yield
    record("served")


@get(["/events", "/silence"])
async def stream(request: Request[Any, Any, Any]) -> Stream:
    """Send server-sent events until the engine drains."""
    return Stream(events(request.url.path), media_type="text/event-stream")


@get(["/", "/held"])
async def respond(request: Request[Any, Any, Any]) -> bytes:
    """Answer, each path in its way."""
    return await answer(request.url.path)


@websocket("/talk")
async def talk(socket: WebSocket[Any, Any, Any]) -> None:
    """Echo what is said until the engine drains."""
    await socket.accept()
    async for text in engine.until_drain(socket.iter_data("text")):
        await socket.send_text(text)
    await socket.close(1012)  # service restart


app = Litestar(
    [respond, stream, talk],
    lifespan=[engine.lifespan, serve],
    middleware=[EngineMiddleware],
)
