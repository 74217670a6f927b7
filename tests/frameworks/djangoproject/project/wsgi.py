"""The WSGI application."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

from engine_bridge.frameworks.django import get_wsgi_application

application = get_wsgi_application()
