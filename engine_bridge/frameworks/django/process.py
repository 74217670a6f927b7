"""
What this process is to Django: a server, `manage.py runserver`, its reloader, another command.

`runserver` with the reloader is two processes, both of which set Django up. The child serves, in a
thread beside the reloader; there the engine starts once the port is bound, and ends on the way out,
by which the child leaves when a file has changed. If the start fails the child stays, as it does
for any fault in the project's code, and requests get 503 until a start succeeds.

The parent waits for its child when it is told to go, see `reloader.py`.

Source:
    Django 5.2, `django/core/management/__init__.py`, `management/commands/runserver.py` and
    `utils/autoreload.py`.
"""

import os
import sys
import threading
from functools import wraps
from types import SimpleNamespace

from engine_bridge.core import nets, signals
from engine_bridge.core.door import Door
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError
from engine_bridge.core.host import Host
from engine_bridge.core.records import WARNING
from engine_bridge.frameworks import reloader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from engine_bridge.frameworks.asgi import Application

OWN = "engine_bridge.frameworks.django"
SERVE = ("runserver", "testserver")  # of Django's own commands
RUN = "engine_run"


def command() -> str:
    """Return which command of `manage.py` or `django-admin` runs; nothing if none does."""
    management: Any = sys.modules.get("django.core.management")
    if management is None:
        return ""
    code = management.ManagementUtility.execute.__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            argv: list[str] = frame.f_locals["self"].argv
            return argv[1] if len(argv) > 1 else "help"
        frame = frame.f_back  # type: ignore[assignment]  # None ends it
    return ""


def is_command() -> bool:
    """Whether a command of Django's runs that serves nobody, such as `migrate` or `test`."""
    return _role == "command"


def is_runserver() -> bool:
    """Whether this is the process of `runserver` that serves."""
    return _role == "" and command() == "runserver"


def tell_role(engine: Engine) -> None:
    """Have *engine* know whether this process is one of a command, or of the reloader."""
    global _role  # noqa: PLW0603  # a process has one
    _role = _find_role()
    if _role:
        engine.host = Host(_role)
    if _role == "reloader":
        _have_the_reloader_wait()


_role = ""


def _find_role() -> str:
    name = command()
    if not name:
        return ""
    from django.core.management import get_commands
    from django.utils import autoreload

    if name == "runserver":
        child = os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"
        return "" if child or "--noreload" in sys.argv else "reloader"
    owner = get_commands().get(name, "")
    package = owner if isinstance(owner, str) else owner.__module__
    is_djangos = package.partition(".")[0] == "django" and name not in SERVE
    return "command" if is_djangos or (package == OWN and name != RUN) else ""


# -- runserver -----------------------------------------------------------------------------------


def start_when_runserver_serves() -> None:
    """Have `runserver`, should this be it, start the engines once it has its port."""
    runserver: Any = sys.modules.get("django.core.management.commands.runserver")
    if runserver is None or hasattr(runserver.Command.on_bind, "starts_engines"):
        return
    on_bind = runserver.Command.on_bind

    @wraps(on_bind)
    def start_and_tell(self: "Any", server_port: int) -> None:
        _start()
        on_bind(self, server_port)

    start_and_tell.starts_engines = True  # type: ignore[attr-defined]  # so that it is wrapped once
    runserver.Command.on_bind = start_and_tell


def _start() -> None:
    """Start the engines of what is to be served."""
    from django.core.management import CommandError

    has_reloader = threading.current_thread() is not threading.main_thread()
    for gate in nets.gates("wsgi"):
        if has_reloader:
            gate.admit()  # it says what fails, and requests try again
            continue
        signals.chain(gate.engine)
        try:
            Door(gate.engine, "wsgi").open()
        except EngineError as exc:
            reason = exc.message if isinstance(exc, ChannelFailures) else exc
            raise CommandError(f"the engine did not start: {reason}") from exc
    if has_reloader:
        reloader.ignore_signals_while_leaving()


def _have_the_reloader_wait() -> None:
    """Have this parent of the reloader wait for its child instead of killing it."""
    from django.utils import autoreload

    autoreload.subprocess = SimpleNamespace(run=reloader.run_and_wait)  # all it uses of it


# -- what was forgotten --------------------------------------------------------------------------


def warn_if_bare(engine: Engine) -> None:
    """Have the first request tell that no engine runs, if that is so."""
    from django.core.signals import request_started

    def look(sender: type, **kwargs: "Any") -> None:
        request_started.disconnect(look)
        is_test = sender.__module__.startswith("django.test.")
        if _role or is_test or nets.gates("wsgi") or nets.gates("asgi"):
            return
        engine.log(
            "no engine runs here: the application is Django's own; in wsgi.py and asgi.py import "
            f"get_wsgi_application and get_asgi_application from {OWN}",
            WARNING,
        )

    request_started.connect(look, weak=False)


# -- lifespan ------------------------------------------------------------------------------------


def with_lifespan(application: "Any") -> "Application":
    """
    Return *application*, or one that calls the lifespan handlers of django-asgi-lifespan as well.

    Whoever has handlers has imported that package by now; its application is Django's but for that.
    """
    if "django_asgi_lifespan.signals" not in sys.modules:
        found: Application = application
        return found
    from django_asgi_lifespan.handler import LifespanASGIHandler

    handler: Application = LifespanASGIHandler()
    return handler
