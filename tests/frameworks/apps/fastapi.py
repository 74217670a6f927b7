"""FastAPI, whose lifespan is the engine's."""

from fastapi import FastAPI
from frameworks.apps.lifecycle import hold_async, use

from engine_bridge import engine

app = FastAPI(lifespan=engine.lifespan)
app.get("/")(use)
app.get("/held")(hold_async)
