"""Patterns of the drain with Django, under ASGI."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from frameworks.patterns.life import health
from frameworks.patterns.tasks import events, pieces, wait_for_news

from engine_bridge import engine
from engine_bridge.frameworks.django import get_asgi_application, health_urls

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["engine_bridge.frameworks.django"],
    ROOT_URLCONF=__name__,
)


async def index(request: HttpRequest) -> HttpResponse:
    """Answer."""
    return HttpResponse("hello\n")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send events until the engine drains."""
    return StreamingHttpResponse(engine.until_drain(events()), content_type="text/event-stream")


async def poll(request: HttpRequest) -> HttpResponse:
    """Wait for news, or until the engine drains."""
    return HttpResponse("news\n") if await wait_for_news() else HttpResponse(status=204)


async def download(request: HttpRequest) -> StreamingHttpResponse:
    """Send what takes a while; a drain waits for its end."""
    return StreamingHttpResponse(pieces(), content_type="application/octet-stream")


urlpatterns = [
    path("", index),
    path("events", stream),
    path("poll", poll),
    path("download", download),
    *health_urls(health),
]
app = get_asgi_application()
