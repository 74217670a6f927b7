"""A Starlette application under test, whose lifespan is the engine's; it has no middleware."""

from collections.abc import AsyncIterator

from journal import record
from servers.apps.answers import answer
from servers.apps.lifecycle import instrument
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from engine_bridge import engine

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


app = Starlette(
    routes=[Route("/state", show_state), Route("/{path:path}", respond)],
    lifespan=engine.lifespan,
)
