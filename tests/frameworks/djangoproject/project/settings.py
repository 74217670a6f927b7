"""Settings; what differs from test to test comes from the environment, as JSON."""

import json
import os
from pathlib import Path

from django.utils.autoreload import StatReloader

StatReloader.SLEEP_TIME = 0.2  # a second by default: tests have no time for that

BASE_DIR = Path(__file__).parents[1]
SECRET_KEY = "not one"
DEBUG = os.environ.get("PROJECT_DEBUG") == "1"
ALLOWED_HOSTS = ["*"]
INSTALLED_APPS = ["engine_bridge.frameworks.django", "shop"]
MIDDLEWARE = ["engine_bridge.frameworks.django.middleware.LifespanStateMiddleware"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "shop.db",
        # Else tests have it in memory, where Django never closes a connection.
        "TEST": {"NAME": BASE_DIR / "test.db"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

ENGINE_BRIDGE = json.loads(os.environ.get("PROJECT_ENGINE", "{}"))
