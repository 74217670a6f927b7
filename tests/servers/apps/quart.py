"""A Quart application under test; its own `while_serving` tells when it runs."""

from collections.abc import AsyncGenerator, AsyncIterator

from journal import record
from quart import Quart, Response, request, websocket
from servers.apps.generic import answer, events

from engine_bridge import engine
from engine_bridge.frameworks.asgi import EngineMiddleware

app = Quart(__name__)
app.asgi_app = EngineMiddleware(app.asgi_app)  # type: ignore[method-assign]  # Quart's own way


@app.while_serving
async def serve() -> AsyncGenerator[None, None]:
    """Stand for what the application itself opens and closes."""
    record("serving")
    yield
    record("served")


@app.get("/events")
@app.get("/silence")
async def stream() -> Response:
    """Send server-sent events until the engine drains."""
    response = Response(events(request.path), mimetype="text/event-stream")
    response.timeout = None
    return response


@app.get("/", defaults={"path": ""})
@app.get("/<path:path>")
async def respond(path: str) -> bytes:
    """Answer, each path in its way."""
    return await answer(f"/{path}")


async def messages() -> AsyncIterator[str | bytes]:
    """Yield what the client says."""
    while True:
        yield await websocket.receive()


@app.websocket("/talk")
async def talk() -> None:
    """Echo what is said until the engine drains."""
    async for text in engine.until_drain(messages()):
        await websocket.send(text)
    await websocket.close(1012)  # service restart
