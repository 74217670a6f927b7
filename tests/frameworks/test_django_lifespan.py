"""A Django project that was written for django-asgi-lifespan."""

import signal
import textwrap
from pathlib import Path

import pytest
from processes import get, publishes, run_server, start_process
from servers.launch import UVICORN

pytest.importorskip("django_asgi_lifespan")

THEIRS = "django_asgi_lifespan.asgi"
OURS = "engine_bridge.frameworks.django"
PROJECT = {
    "settings.py": """
        SECRET_KEY = "not one"
        ALLOWED_HOSTS = ["*"]
        INSTALLED_APPS = ["shop"]
        MIDDLEWARE = ["django_asgi_lifespan.middleware.LifespanStateMiddleware"]
        ROOT_URLCONF = "urls"
        """,
    "asgi.py": """
        import os

        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

        from django_asgi_lifespan.asgi import get_asgi_application

        django_application = get_asgi_application()

        async def application(scope, receive, send):
            if scope["type"] in {"http", "lifespan"}:
                await django_application(scope, receive, send)
            else:
                raise NotImplementedError(f"Unknown scope type {scope['type']}")
        """,
    "urls.py": """
        from django.http import HttpResponse
        from django.urls import path
        from engine_bridge import engine

        async def index(request):
            return HttpResponse(f"{request.state['client']} {engine.state}")

        urlpatterns = [path("", index)]
        """,
    "shop/__init__.py": "",
    "shop/apps.py": """
        import os
        from contextlib import asynccontextmanager
        from django.apps import AppConfig
        from django_asgi_lifespan.register import register_lifespan_manager
        from django_asgi_lifespan.signals import asgi_shutdown, asgi_startup
        from journal import record

        @asynccontextmanager
        async def client():
            if "SHOP_FAILS" in os.environ:
                raise RuntimeError("no client")
            record("entered")
            try:
                yield {"client": "a client"}
            finally:
                record("left")

        async def hear(signal, **kwargs):
            record("startup" if signal is asgi_startup else "shutdown")

        class ShopConfig(AppConfig):
            name = "shop"

            def ready(self):
                register_lifespan_manager(context_manager=client)
                asgi_startup.connect(hear)
                asgi_shutdown.connect(hear)
        """,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Write the project."""
    for name, source in PROJECT.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return tmp_path


def change_import(project: Path) -> None:
    """Take `get_asgi_application` from us."""
    path = project / "asgi.py"
    path.write_text(path.read_text().replace(THEIRS, OURS))


@pytest.mark.parametrize(
    ("imported", "answer"), [(THEIRS, b"a client STOPPED"), (OURS, b"a client STARTED")]
)
def test_one_import_is_changed(imported: str, answer: bytes, project: Path) -> None:
    """Handlers and `request.state` are what they were, and there is an engine."""
    if imported == OURS:
        change_import(project)
    command = [*UVICORN, "asgi:application", "--lifespan", "on"]
    with run_server(command, cwd=project, ready=publishes("entered")) as server:
        assert get(server.port).body == answer
        server.signal(signal.SIGTERM)
        server.wait_exit()
    (seen,) = server.published().values()
    assert sorted(seen[:2]) == ["entered", "startup"]  # at once, in no order
    assert sorted(seen[2:]) == ["left", "shutdown"]


def test_failing_handler_ends_the_server(project: Path) -> None:
    """A handler that fails on the way in ends uvicorn with its traceback."""
    change_import(project)
    command = [*UVICORN[:-1], "0", "asgi:application"]
    with start_process(command, cwd=project, env={"SHOP_FAILS": "1"}) as process:
        assert process.wait_exit() == 3
    assert "RuntimeError: no client" in process.output()


def test_settings_want_the_app(project: Path) -> None:
    """`ENGINE_BRIDGE` without the app in `INSTALLED_APPS` is an error that says so."""
    change_import(project)
    with (project / "settings.py").open("a") as file:
        file.write('ENGINE_BRIDGE = {"PLUGINS": {}}\n')
    command = [*UVICORN[:-1], "0", "asgi:application"]
    with start_process(command, cwd=project) as process:
        assert process.wait_exit() != 0
    assert f"ENGINE_BRIDGE is set; add '{OURS}' to INSTALLED_APPS" in process.output()
