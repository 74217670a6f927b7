"""The settings."""

SECRET_KEY = "not one"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["engine_bridge.frameworks.django", "frameworks.apps.djangosite"]
ROOT_URLCONF = "frameworks.apps.djangosite.urls"
WSGI_APPLICATION = "frameworks.apps.djangosite.wsgi.application"
