"""Settings of the project."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("REMINDERS_SECRET_KEY", "for development only")
DEBUG = os.environ.get("REMINDERS_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "engine_bridge.frameworks.django",
    "reminders",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("REMINDERS_DATABASE", BASE_DIR / "reminders.db"),
        # Several workers write: wait for each other from the beginning of a transaction.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

ENGINE_BRIDGE = {
    "ENGINE": {"drain_timeout": 10},
    "PLUGINS": {
        "PIDFile": {"pidfile": os.environ.get("REMINDERS_PIDFILE", BASE_DIR / "reminders.pid")},
        "SignalHandler": {},
        "Monitor": {"callback": "reminders.tasks.ring", "frequency": 1},
    },
}
