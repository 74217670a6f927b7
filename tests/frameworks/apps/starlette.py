"""Starlette, whose lifespan is the engine's."""

from frameworks.apps.lifecycle import hold_async, use
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from engine_bridge import engine


async def index(request: Request) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse(use())


async def held(request: Request) -> PlainTextResponse:
    """Answer when the test says so."""
    return PlainTextResponse(await hold_async())


app = Starlette(routes=[Route("/", index), Route("/held", held)], lifespan=engine.lifespan)
