"""A Starlette application under test, whose lifespan is the engine's; it has no middleware."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from journal import record
from servers.apps.answers import STREAMS, answer, silence
from servers.apps.lifecycle import instrument
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from engine_bridge import engine
from engine_bridge.frameworks.starlette import current_engine

instrument(engine)


@engine.resource
async def connection() -> AsyncIterator[dict[str, str]]:
    """Stand for a connection to a database."""
    record("opened")
    yield {"connection": "a connection"}
    record("closed")


async def show_state(request: Request) -> PlainTextResponse:
    """Tell what the resource has yielded."""
    return PlainTextResponse(request.state.connection)


async def respond(request: Request) -> PlainTextResponse:
    """Answer, each path in its way."""
    return PlainTextResponse(await answer(request.url.path))


async def events(request: Request) -> StreamingResponse:
    """Send server-sent events until the engine drains."""
    stream = current_engine(request).until_drain(STREAMS[request.url.path]())
    return StreamingResponse(stream, media_type="text/event-stream")


async def poll(request: Request) -> PlainTextResponse:
    """Answer with the second event, which never comes, or that there was none."""
    news = silence()
    await anext(news)
    record("polling")
    async with aclosing(current_engine(request).until_drain(news)) as events:
        async for event in events:
            return PlainTextResponse(event)
    return PlainTextResponse("nothing new")


async def talk(websocket: WebSocket) -> None:
    """Echo what is said until the engine drains."""
    engine = current_engine(websocket)
    await websocket.accept()
    async for text in engine.until_drain(websocket.iter_text()):
        await websocket.send_text(text)
    if engine.draining.is_set():
        await websocket.close(1012)  # service restart


ROUTES = [
    Route("/state", show_state),
    *(Route(path, events) for path in STREAMS),
    Route("/poll", poll),
    WebSocketRoute("/talk", talk),
    Route("/{path:path}", respond),
]

app = Starlette(routes=ROUTES, lifespan=engine.lifespan)
