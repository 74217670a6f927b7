"""Two Falcon applications under test, one of WSGI and one of ASGI."""

from collections.abc import AsyncIterator

import falcon
import falcon.asgi
from journal import record
from servers.apps.generic import STREAMS, answer, answer_in_thread, events

from engine_bridge import engine
from engine_bridge.frameworks import asgi, wsgi


class Answer:
    """Answers, each path in its way."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.data = answer_in_thread(request.path)


class Events:
    """Sends server-sent events until the engine drains."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "text/event-stream"
        response.stream = STREAMS[request.path]()


class AsyncAnswer:
    """Likewise, on a loop."""

    async def on_get(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.data = await answer(request.path)


class AsyncEvents:
    """Likewise."""

    async def on_get(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.content_type = "text/event-stream"
        response.stream = events(request.path)


class Talk:
    """Echoes what is said until the engine drains."""

    async def on_websocket(
        self, request: falcon.asgi.Request, socket: falcon.asgi.WebSocket
    ) -> None:
        await socket.accept()
        async for text in engine.until_drain(messages(socket)):
            await socket.send_text(text)
        await socket.close(1012)  # service restart


async def messages(socket: falcon.asgi.WebSocket) -> AsyncIterator[str]:
    """Yield what the client says."""
    while True:
        yield await socket.receive_text()


class Serve:
    """Stands for what the application itself opens and closes."""

    async def process_startup(self, scope: object, event: object) -> None:
        record("serving")

    async def process_shutdown(self, scope: object, event: object) -> None:
        record("served")


threaded = falcon.App()
for path in ("/", "/held"):
    threaded.add_route(path, Answer())
for path in STREAMS:
    threaded.add_route(path, Events())
app = wsgi.EngineMiddleware(threaded)

looped = falcon.asgi.App(middleware=[Serve()])
for path in ("/", "/held"):
    looped.add_route(path, AsyncAnswer())
for path in STREAMS:
    looped.add_route(path, AsyncEvents())
looped.add_route("/talk", Talk())
asgi_app = asgi.EngineMiddleware(looped)
