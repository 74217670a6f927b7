"""Which view answers what."""

from django.http import HttpRequest, HttpResponse
from django.urls import path
from frameworks.apps.lifecycle import hold, use


def index(request: HttpRequest) -> HttpResponse:
    """Answer."""
    return HttpResponse(use())


def held(request: HttpRequest) -> HttpResponse:
    """Answer when the test says so."""
    return HttpResponse(hold())


urlpatterns = [path("", index), path("held", held)]
