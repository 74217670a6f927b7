"""Which view answers what."""

from django.urls import path
from shop import views
from shop.engine import probes

from engine_bridge.frameworks.django import health_urls

urlpatterns = [
    path("", views.index),
    path("restart", views.restart),
    path("held", views.held),
    path("state", views.state),
    path("sale", views.sale),
    path("events", views.events),
    path("events/async", views.events_async),
    path("poll", views.poll),
    path("poll/async", views.poll_async),
    path("download", views.download),
    *health_urls(probes),
]
