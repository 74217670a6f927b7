"""The application for uvicorn."""

import os

from engine_bridge.frameworks.django import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

application = get_asgi_application()
