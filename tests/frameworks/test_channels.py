"""Channels: WebSockets of a Django project hear of the drain."""

import signal
from pathlib import Path

import pytest
from processes import accepts, get, publishes, run_server, start_request
from servers.launch import DAPHNE, UVICORN
from snippets import ROOT, blocks

pytest.importorskip("channels")
pytest.importorskip("daphne")
connect = pytest.importorskip("websockets.sync.client").connect

GUIDE = ROOT / "docs" / "guides" / "django.md"
RESTARTING = "4012"  # the program's code; uvicorn's own is 1012

# What the guide's program is run with: who tells what happens, and a request that takes long.
WITNESS = """
import asyncio, functools, os, pathlib
from journal import record
from app import application, engine, router, urlpatterns
from django.http import HttpResponse
from django.urls import path

for channel in ("start", "drain", "stop", "exit"):
    engine.subscribe(channel, functools.partial(record, channel))
engine.drain_delay = float(os.environ["DELAY"])

async def held(request):
    record("held")
    while not pathlib.Path("release").exists():
        await asyncio.sleep(0.01)
    record("released", in_flight=engine.in_flight)
    return HttpResponse("released")

urlpatterns.append(path("held", held))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the program of the guide."""
    [program] = [each.text for each in blocks(GUIDE, "python") if "AsyncWebsocket" in each.text]
    (tmp_path / "app.py").write_text(program)
    (tmp_path / "witness.py").write_text(WITNESS)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "delay", "status"),
    [
        pytest.param(DAPHNE, 0, 0, id="daphne"),
        # With no delay uvicorn may close it before we do; this one a second signal ends.
        pytest.param([*UVICORN, "--lifespan", "on"], 60, -signal.SIGTERM, id="uvicorn"),
    ],
)
def test_websocket_is_closed_by_the_drain(
    command: list[str], delay: int, status: int, folder: Path
) -> None:
    """A consumer closes when the engine drains, while a request is still worked on."""
    words = [*command, "witness:application"]
    ready = accepts if command is DAPHNE else publishes("start")
    with (
        run_server(words, cwd=folder, env={"DELAY": str(delay)}, ready=ready) as server,
        connect(f"ws://127.0.0.1:{server.port}/talk") as websocket,
    ):
        websocket.send("hello")
        assert websocket.recv(5) == "hello"
        held = start_request(server.port, "/held")
        server.wait_published("held")
        server.signal(signal.SIGTERM)
        with pytest.raises(Exception, match=RESTARTING):
            websocket.recv(5)
        assert not held.done
        (folder / "release").touch()
        assert held.result().ok
        if delay:
            server.signal(signal.SIGTERM)
        assert server.wait_exit() == status
        assert "Traceback" not in server.output(), server.report()
        assert "no engine runs here" not in server.output()
    (seen,) = server.published().values()
    assert seen == ["start", "held", "drain", "released", "stop", "exit"]


def test_websocket_is_in_flight(folder: Path) -> None:
    """Around the router the middleware counts WebSockets, and lets each go when it is closed."""
    (folder / "counted.py").write_text(COUNTED)
    with run_server([*UVICORN, "counted:application"], cwd=folder) as server:
        with connect(f"ws://127.0.0.1:{server.port}/talk") as websocket:
            websocket.send("hello")
            assert websocket.recv(5) == "hello"
            assert get(server.port, "/count").body == b"2"
        server.wait(lambda: get(server.port, "/count").body == b"1", 5, "it is counted no more")


COUNTED = """
from app import application, engine, urlpatterns
from django.http import HttpResponse
from django.urls import path

urlpatterns.append(path("count", lambda request: HttpResponse(engine.in_flight)))
"""
