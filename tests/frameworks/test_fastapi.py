"""FastAPI: the engine as a dependency, included routers, mounted applications."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from starlette.testclient import TestClient

from engine_bridge import Engine, EngineError, State
from engine_bridge.frameworks import starlette
from engine_bridge.frameworks.asgi import EngineMiddleware
from engine_bridge.frameworks.starlette import (
    EngineDep,
    compose,
    get_engine,
    health_routes,
    mounted_lifespans,
)
from engine_bridge.plugins import Health

pytest.importorskip("fastapi")
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket

router = APIRouter()


@router.get("/async")
async def tell(engine: EngineDep) -> str:
    """Tell which engine serves the request."""
    return str(engine.state)


@router.get("/sync")
def tell_in_thread(engine: EngineDep) -> str:
    """Tell it from a thread."""
    return str(engine.state)


@router.get("/depends")
async def tell_by_depends(engine: Annotated[Engine, Depends(get_engine)]) -> str:
    """Tell it, written at length."""
    return str(engine.state)


@router.get("/state")
async def tell_state(request: Request) -> dict[str, Any]:
    """Tell the lifespan state that the request got."""
    return dict(request.state._state)


@router.websocket("/websocket")
async def tell_websocket(websocket: WebSocket, engine: EngineDep) -> None:
    """Tell it to a WebSocket."""
    await websocket.accept()
    await websocket.send_text(str(engine.state))
    await websocket.close()


def yielding(**state: object) -> Any:
    """Return a lifespan that yields *state*."""

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[dict[str, object]]:
        yield state

    return lifespan


@pytest.mark.parametrize("way", ["lifespan", "compose", "add_middleware", "around", "mounted"])
def test_dependency_is_the_engine_of_the_application(engine: Engine, way: str) -> None:
    """Whatever brings the engine, every kind of endpoint gets it; a router is included."""
    app: Any = FastAPI(
        lifespan={"lifespan": engine.lifespan, "compose": compose(engine.lifespan)}.get(way)
    )
    app.include_router(router, prefix="/api")
    if way == "add_middleware":
        app.add_middleware(EngineMiddleware, engine=engine)
    elif way == "around":
        app = EngineMiddleware(app, engine)
    elif way == "mounted":
        outermost = FastAPI(lifespan=engine.lifespan)
        outermost.mount("", app)
        app = outermost
    with Engine():
        for _ in range(2):
            with TestClient(app) as client:
                assert engine.wait(State.STARTED, 0)
                for path in ("async", "sync", "depends"):
                    assert client.get(f"/api/{path}").json() == "STARTED"
                with client.websocket_connect("/api/websocket") as websocket:
                    assert websocket.receive_text() == "STARTED"
            assert engine.wait(State.EXITING, 0)


def test_dependency_tells_engines_apart() -> None:
    """Each of two applications gets its own engine, and neither that of a script."""
    seen: list[Engine] = []
    engines = [Engine(), Engine()]
    with Engine():
        for engine in engines:
            app = FastAPI(lifespan=engine.lifespan)
            app.include_router(router)

            @app.get("/")
            async def note(engine: EngineDep) -> None:
                seen.append(engine)

            with TestClient(app) as client:
                client.get("/")
    assert seen == engines


def test_dependency_can_be_overridden_in_tests() -> None:
    """FastAPI's own way for tests works: `dependency_overrides[get_engine]`."""
    app = FastAPI()
    app.include_router(router)
    app.dependency_overrides[get_engine] = Engine
    assert TestClient(app).get("/async").json() == "STOPPED"


def test_dependency_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FastAPI the sentence names the extra, and all else here works; a fault is a fault."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(EngineError, match=r"pip install 'engine-bridge\[fastapi\]'"):
        _ = starlette.EngineDep
    monkeypatch.setattr(sys, "modules", {**sys.modules, "fastapi": FaultyModule()})
    with pytest.raises(ModuleNotFoundError, match="pydantic"):
        _ = starlette.EngineDep
    with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
        _ = starlette.Engin  # type: ignore[attr-defined]  # that is what is wrong


class FaultyModule:
    """Stands for a FastAPI whose own import fails."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> object:
        raise ModuleNotFoundError(f"no module {name}: pydantic", name="pydantic")


def test_state_of_included_routers_and_mounted_applications(engine: Engine) -> None:
    """FastAPI merges the lifespans of included routers; the mounted ones are run by us."""
    sub = FastAPI(lifespan=yielding(name="sub", sub=1))
    sub.include_router(router)
    included = APIRouter(lifespan=yielding(name="router", router=1))
    included.mount("/mounted", sub)
    app = FastAPI(lifespan=compose(engine.lifespan, yielding(name="app"), mounted_lifespans))
    app.include_router(included, prefix="/v1")
    app.include_router(router)
    app.mount("/sub", sub)
    around = {"name": "app", "router": 1}
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/state").json() == around
            for path in ("/sub/state", "/v1/mounted/state"):
                assert client.get(path).json() == around | {"name": "sub", "sub": 1}


def test_mounted_application_runs_its_event_handlers(engine: Engine) -> None:
    """FastAPI's older `on_startup` and `on_shutdown` of a mounted application are run too."""
    notes: list[str] = []
    sub = FastAPI(
        on_startup=[lambda: notes.append("startup")], on_shutdown=[lambda: notes.append("shutdown")]
    )
    app = FastAPI(lifespan=mounted_lifespans)
    app.mount("/sub", sub)
    with TestClient(app):
        assert notes == ["startup"]
    assert notes == ["startup", "shutdown"]


@pytest.mark.parametrize("way", ["routes", "extend", "mount"])
def test_health_routes_are_no_part_of_the_api(way: str, engine: Engine) -> None:
    """The probes are answered, and OpenAPI does not show them."""
    routes = health_routes(Health(engine))
    app = FastAPI(routes=routes if way == "routes" else None)
    app.include_router(router)
    if way == "extend":
        app.routes.extend(routes)
    elif way == "mount":
        app.mount("/health", FastAPI(routes=routes))
    prefix = "/health" if way == "mount" else ""
    client = TestClient(app)
    for name in ("livez", "readyz", "startupz"):
        status = 200 if name == "livez" else 503  # nothing has started
        assert client.get(f"{prefix}/{name}").status_code == status
    assert "/async" in client.get("/openapi.json").json()["paths"]
    assert "livez" not in client.get("/openapi.json").text
