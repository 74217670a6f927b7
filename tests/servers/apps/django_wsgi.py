"""A Django application under test that has an engine and nothing else."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from journal import record
from servers.apps.lifecycle import hold, instrument

from engine_bridge import engine
from engine_bridge.frameworks.django import get_wsgi_application

instrument(engine)


def index(request: HttpRequest) -> HttpResponse:
    """Answer."""
    record("request")
    return HttpResponse("ok\n")


def restart(request: HttpRequest) -> HttpResponse:
    """Begin to serve with new code."""
    engine.restart()
    return HttpResponse("restarting\n")


def held(request: HttpRequest) -> HttpResponse:
    """Answer when the test allows it."""
    return HttpResponse(hold())


urlpatterns = [path("", index), path("restart", restart), path("held", held)]
application = get_wsgi_application()
