"""Which view answers what."""

from django.urls import path
from reminders import views

urlpatterns = [
    path("", views.index),
    path("events", views.events),
]
