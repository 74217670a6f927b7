"""A Pyramid application under test."""

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from servers.apps.generic import STREAMS, answer_in_thread

from engine_bridge.frameworks.wsgi import EngineMiddleware


def stream(request: Request) -> Response:
    """Send server-sent events until the engine drains."""
    return Response(app_iter=STREAMS[request.path](), content_type="text/event-stream")


def respond(request: Request) -> Response:
    """Answer, each path in its way."""
    return Response(answer_in_thread(request.path))


def main(global_config: object, **settings: object) -> EngineMiddleware:
    """Make the application, as an ini file asks for it."""
    config = Configurator(settings=settings)
    for path, view in [("/", respond), ("/held", respond), *((path, stream) for path in STREAMS)]:
        config.add_route(path, path)
        config.add_view(view, route_name=path)
    return EngineMiddleware(config.make_wsgi_app())
