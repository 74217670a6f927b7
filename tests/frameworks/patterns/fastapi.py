"""Patterns of the drain with FastAPI."""

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from frameworks.patterns.life import health
from frameworks.patterns.tasks import events, pieces, wait_for_news

from engine_bridge import engine
from engine_bridge.frameworks.starlette import EngineDep, health_routes

app = FastAPI(lifespan=engine.lifespan)
app.routes.extend(health_routes(health))


@app.get("/")
async def index() -> str:
    """Answer."""
    return "hello"


@app.get("/events")
async def stream(engine: EngineDep) -> StreamingResponse:
    """Send events until the engine drains."""
    return StreamingResponse(engine.until_drain(events()), media_type="text/event-stream")


@app.get("/poll")
async def poll() -> Response:
    """Wait for news, or until the engine drains."""
    return PlainTextResponse("news\n") if await wait_for_news() else Response(status_code=204)


@app.get("/download")
async def download() -> StreamingResponse:
    """Send what takes a while; the server waits for its end."""
    return StreamingResponse(pieces(), media_type="application/octet-stream")


@app.websocket("/talk")
async def talk(websocket: WebSocket, engine: EngineDep) -> None:
    """Echo what is said until the engine drains; 1012 tells to come again."""
    await websocket.accept()
    async for text in engine.until_drain(websocket.iter_text()):
        await websocket.send_text(text)
    if engine.draining.is_set():
        await websocket.close(1012)
