"""A Django project of one file, `django_wsgi.py` or `alone.py`, for `manage.py runserver`."""

import os

from django.utils.autoreload import StatReloader

StatReloader.SLEEP_TIME = 0.2  # a second by default: tests have no time for that

SECRET_KEY = "not one"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "servers.apps.django_wsgi"
WSGI_APPLICATION = os.environ["APP_WSGI"]
INSTALLED_APPS = ["engine_bridge.frameworks.django"] if "django" in WSGI_APPLICATION else []
