"""Patterns of the drain with Django, under WSGI."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from frameworks.patterns.life import health
from frameworks.patterns.threads import events, pieces, wait_for_news

from engine_bridge.frameworks.django import get_wsgi_application, health_urls

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["engine_bridge.frameworks.django"],
    ROOT_URLCONF=__name__,
)


def index(request: HttpRequest) -> HttpResponse:
    """Answer."""
    return HttpResponse("hello\n")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send events until the engine drains."""
    return StreamingHttpResponse(events(), content_type="text/event-stream")


def poll(request: HttpRequest) -> HttpResponse:
    """Wait for news, or until the engine drains."""
    return HttpResponse("news\n") if wait_for_news() else HttpResponse(status=204)


def download(request: HttpRequest) -> StreamingHttpResponse:
    """Send what takes a while; a drain waits for its end."""
    return StreamingHttpResponse(pieces(), content_type="application/octet-stream")


urlpatterns = [
    path("", index),
    path("events", stream),
    path("poll", poll),
    path("download", download),
    *health_urls(health),
]
app = get_wsgi_application()
