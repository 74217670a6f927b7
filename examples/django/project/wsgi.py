"""The application for gunicorn and `runserver`."""

import os

from engine_bridge.frameworks.django import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

application = get_wsgi_application()
