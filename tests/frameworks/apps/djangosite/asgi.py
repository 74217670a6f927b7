"""The ASGI application."""

from engine_bridge.frameworks.django import get_asgi_application

application = get_asgi_application()
