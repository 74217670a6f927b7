"""Patterns of the drain with Starlette."""

from frameworks.patterns.life import health
from frameworks.patterns.tasks import events, pieces, wait_for_news
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from engine_bridge import engine
from engine_bridge.frameworks.starlette import health_routes


async def index(request: Request) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse("hello\n")


async def stream(request: Request) -> StreamingResponse:
    """Send events until the engine drains."""
    return StreamingResponse(engine.until_drain(events()), media_type="text/event-stream")


async def poll(request: Request) -> Response:
    """Wait for news, or until the engine drains."""
    return PlainTextResponse("news\n") if await wait_for_news() else Response(status_code=204)


async def download(request: Request) -> StreamingResponse:
    """Send what takes a while; the server waits for its end."""
    return StreamingResponse(pieces(), media_type="application/octet-stream")


async def talk(websocket: WebSocket) -> None:
    """Echo what is said until the engine drains; 1012 tells to come again."""
    await websocket.accept()
    async for text in engine.until_drain(websocket.iter_text()):
        await websocket.send_text(text)
    if engine.draining.is_set():
        await websocket.close(1012)


app = Starlette(
    routes=[
        Route("/", index),
        Route("/events", stream),
        Route("/poll", poll),
        Route("/download", download),
        WebSocketRoute("/talk", talk),
        *health_routes(health),
    ],
    lifespan=engine.lifespan,
)
