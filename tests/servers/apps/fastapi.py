"""A FastAPI application under test: several lifespans in one, and another application mounted."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from journal import record
from servers.apps.starlette import ROUTES
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from engine_bridge import engine
from engine_bridge.frameworks.starlette import EngineDep, compose, mounted_lifespans


@asynccontextmanager
async def shop_lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    """Stand for what the mounted application opens."""
    if os.environ.get("APP_SHOP_FAILS"):
        raise RuntimeError("the shop is closed")
    record("shop opened")
    yield {"shop": "a shop"}
    record("shop closed")


async def show_shop(request: Request) -> PlainTextResponse:
    """Tell what both lifespans have yielded."""
    return PlainTextResponse(f"{request.state.shop}, {request.state.connection}")


app = FastAPI(lifespan=compose(engine.lifespan, mounted_lifespans))
app.mount("/shop", Starlette(routes=[Route("/", show_shop)], lifespan=shop_lifespan))


@app.get("/engine")
async def show_engine(engine: EngineDep) -> str:
    """Tell the state of the engine."""
    return str(engine.state)


app.routes.extend(ROUTES)
