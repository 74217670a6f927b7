"""The WSGI application."""

from engine_bridge.frameworks.django import get_wsgi_application

application = get_wsgi_application()
