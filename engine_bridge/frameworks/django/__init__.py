"""
The engine for Django: `"engine_bridge.frameworks.django"` in `INSTALLED_APPS`.

`asgi.py` and `wsgi.py` of the project take `get_asgi_application` and `get_wsgi_application` from
here. The module `engine` of each installed app is imported; there its listeners subscribe. What the
engine is and which plugins it has stands in the setting `ENGINE_BRIDGE`, see `conf.py`.

Only a process that serves has a running engine. That of `manage.py engine_run` serves nobody, but
runs what is on the engine.

Source:
    Django 5.2: `AppConfig.ready()` runs in every process that uses Django, commands included.
"""

from engine_bridge.core.errors import EngineError
from engine_bridge.frameworks import asgi, wsgi

try:
    import django as _django  # noqa: F401  # asked for here, since all else is imported late
except ModuleNotFoundError as exc:
    if exc.name != "django":
        raise  # a fault inside Django is not «not installed»
    raise EngineError("Django is not installed: pip install 'engine-bridge[django]'") from exc

from engine_bridge.frameworks.django import process
from engine_bridge.frameworks.django.conf import get_engine
from engine_bridge.frameworks.django.database import uses_database
from engine_bridge.frameworks.django.health import health_urls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from engine_bridge.frameworks.asgi import Application

__all__ = [
    "get_asgi_application",
    "get_engine",
    "get_wsgi_application",
    "health_urls",
    "uses_database",
]


def get_asgi_application() -> "Application":
    """
    Return Django's ASGI application, with an engine that starts and exits with the lifespan.

    Handlers of the package django-asgi-lifespan are called as well, if the project has any.

    Raises:
        SettingError: `ENGINE_BRIDGE`, or `INSTALLED_APPS`, is not what it should be.
    """
    from django.core.asgi import get_asgi_application

    application: Application = get_asgi_application()
    if process.is_command():
        return application
    return asgi.EngineMiddleware(process.with_lifespan(application), get_engine())


def get_wsgi_application() -> "WSGIApplication":
    """
    Return Django's WSGI application, with an engine that starts before the first request.

    Raises:
        SettingError: `ENGINE_BRIDGE`, or `INSTALLED_APPS`, is not what it should be.
    """
    from django.core.wsgi import get_wsgi_application

    application: WSGIApplication = get_wsgi_application()
    if process.is_command():
        return application
    process.start_when_runserver_serves()
    return wsgi.EngineMiddleware(application, get_engine())
