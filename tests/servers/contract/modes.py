"""The servers of the contract, each in the ways in which it is run."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from servers import launch
from servers.contract.events import (
    AGAIN,
    EXITS,
    IGNORED,
    NOTICED,
    ORPHANS,
    REFUSES,
    ROLLS,
    WAITS,
)

ROOT = Path(__file__).resolve().parents[3]
OURS = {"wsgi": launch.WSGI, "asgi": launch.ASGI}
ALONE = {"wsgi": "servers.apps.alone:wsgi", "asgi": "servers.apps.alone:asgi"}

# What follows where one process does everything, and where workers have a main process.
SINGLE = {
    **dict.fromkeys(["start", "term", "int", "hup", "quit", "main-kill"], EXITS),
    "failing-start": EXITS,
    "restart": AGAIN,
}
WORKERS = {
    **dict.fromkeys(["start", "term", "int", "failing-start"], EXITS),
    **dict.fromkeys(["hup", "worker-term", "worker-kill", "restart"], ROLLS),
    "main-kill": ORPHANS,
}
LIMIT = "30"  # requests; a new worker, too, may have had them before the end of its cell
RECYCLED = {"max-requests": ROLLS}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """
    One row of the table.

    Attributes:
        family: The server.
        name: Its mode; with the family it names the row.
        kind: `wsgi` or `asgi`.
        command: With `{app}` for the application and `{port}` for the port.
        follows: What follows each event; one that is missing cannot happen.
        workers: How many there are; 0 if the process that is started serves itself.
        options: By event, options that only its cell needs.
        config: Options for the cells with the engine only.
        eager: Whether the engine starts before the first request.
        starts: The same of the server alone: by `lifespan`, or at `import`.
        apps: The application with and without the engine, if these are not the usual ones.
        env: By application, variables of the environment.
        needs: Packages and programs.
        asks_version: The command that prints its version, if that is not a package's.
        ends_by: The signal that ends the server, sent to the main process.
        quick: The events that `make test` has.
        ready: What the output says of each worker that can be told to go, if that is not when it
            answers.
        hands_on: Whether its main thread hands each request on to another. A KeyboardInterrupt amid
            that closes the connection; when it answers the next request it is through.
        settles: Whether it matters that a worker is busy for a moment after its answer.
        replaces_one: Whether `restart()` replaces no worker but the one that asks.
        deaf: Whether orphans ignore SIGTERM, so that they must be killed.
        reports_failure: What the output says when a start failed that the main process outlives.
        prepare: Makes the files that the server wants, in its working directory.
    """

    family: str
    name: str
    kind: str
    command: list[str]
    follows: dict[str, str]
    workers: int = 0
    options: dict[str, list[str]] = field(default_factory=dict)
    config: list[str] = field(default_factory=list)
    eager: bool = False
    starts: str = "import"
    apps: dict[str, str] = field(default_factory=dict)
    env: dict[str, dict[str, str]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    asks_version: tuple[str, ...] = ()
    ends_by: int = signal.SIGTERM
    quick: tuple[str, ...] = ()
    ready: str = ""
    hands_on: bool = False
    settles: bool = False
    replaces_one: bool = False
    deaf: bool = False
    reports_failure: str = ""
    prepare: "Callable[[Path, str], None] | None" = None

    @property
    def id(self) -> str:
        """What tests and records call it."""
        return "-".join([self.family, *self.name.replace("--", "").split()]).lower()

    @property
    def alone_id(self) -> str:
        """What the server alone is called in records."""
        return self.id.removesuffix("-config")

    def app(self, alone: bool) -> str:
        """Return the application to be served."""
        return (
            self.apps["alone" if alone else "ours"]
            if self.apps
            else (ALONE if alone else OURS)[self.kind]
        )

    def argv(self, event: str, alone: bool) -> list[str]:
        """Return the command for the cell of *event*."""
        words = [word.replace("{app}", self.app(alone)) for word in self.command]
        options = [*self.options.get(event, []), *([] if alone else self.config)]
        at = words.index("{options}") if "{options}" in words else len(words)
        return [*words[:at], *options, *words[at + 1 :]]

    def environment(self, event: str, alone: bool) -> dict[str, str]:
        """Return what the cell of *event* adds to the environment."""
        env = dict(self.env.get("alone" if alone else "ours", {}))
        if event == "failing-start":
            env["APP_FAILS_UNTIL"] = "never"
        if alone and self.starts == "lifespan":
            env["APP_HAS_LIFESPAN"] = "yes"
        return env

    def missing(self) -> str:
        """Return what is not installed here; nothing if all is."""
        for need in self.needs:
            if not (os.path.exists(need) or shutil.which(need) or is_package(need)):
                return need
        return ""

    def version(self) -> str:
        """Return the version of the server."""
        if self.asks_version:
            done = subprocess.run(self.asks_version, capture_output=True, text=True, check=True)
            return done.stdout.strip()
        return version(self.family)


def is_package(name: str) -> bool:
    """Whether *name* can be imported."""
    return importlib.util.find_spec(name) is not None if "/" not in name else False


# -- uvicorn -------------------------------------------------------------------------------------

UVICORN = [*launch.UVICORN, "{options}"]
ASGI_CHEAP = ("start", "term", "failing-start")


def uvicorn(name: str, *words: str, **facts: object) -> Mode:
    """Return a mode of uvicorn's."""
    given: dict[str, object] = {
        "kind": "asgi",
        "follows": SINGLE | {"max-requests": EXITS},
        "eager": True,
        "starts": "lifespan",
        "needs": ("uvicorn",),
        "options": {"max-requests": ["--limit-max-requests", LIMIT]},
        "command": [*UVICORN, *words, "{app}"],
        **facts,
    }
    return Mode(family="uvicorn", name=name, **given)  # type: ignore[arg-type]  # as above


# Its parent knows SIGHUP, and ignores what its workers are told.
UVICORN_WORKERS = WORKERS | RECYCLED | {"quit": IGNORED}
# This one knows nothing but SIGTERM and SIGINT, and waits for a change of the code.
UVICORN_RELOADS = {
    **dict.fromkeys(["start", "term", "int"], EXITS),
    **dict.fromkeys(["hup", "quit", "main-kill"], ORPHANS),
    **dict.fromkeys(["worker-term", "worker-kill", "failing-start"], WAITS),
    "restart": REFUSES,
}

UVICORNS = [
    uvicorn("alone", quick=(*ASGI_CHEAP, "int", "hup")),
    uvicorn("--workers 2", "--workers", "2", workers=2, follows=UVICORN_WORKERS, quick=("term",)),
    uvicorn(
        "--reload",
        "--reload",
        workers=1,
        follows=UVICORN_RELOADS,
        reports_failure="Application startup failed",
    ),
    uvicorn(
        "--lifespan off",
        *("--lifespan", "off"),
        eager=False,
        starts="import",
        quick=("term",),
    ),
    uvicorn(
        "--interface wsgi",
        *("--interface", "wsgi"),
        kind="wsgi",
        eager=False,
        starts="import",
        quick=("term",),
    ),
    uvicorn(
        "--interface wsgi --workers 2",
        *("--interface", "wsgi", "--workers", "2"),
        kind="wsgi",
        workers=2,
        follows=UVICORN_WORKERS,
        eager=False,
        starts="import",
    ),
]

# -- gunicorn ------------------------------------------------------------------------------------

GUNICORN = [*launch.GUNICORN, "-w", "2", "--graceful-timeout", "5", "{options}"]
CONFIG = ["-c", "python:engine_bridge.servers.gunicorn"]
UVICORN_WORKER = "uvicorn_worker.UvicornWorker"


def gunicorn(worker: str, *words: str, config: bool = False, **facts: object) -> Mode:
    """Return a mode of gunicorn's."""
    kind = "asgi" if worker in {"asgi", UVICORN_WORKER} else "wsgi"
    short = "uvicorn-worker" if worker == UVICORN_WORKER else worker
    # A worker of uvicorn's is a uvicorn, which does not look after its parent.
    notices = ORPHANS if worker == UVICORN_WORKER else NOTICED
    needs = {"gevent": ("gevent",), UVICORN_WORKER: ("uvicorn_worker",)}.get(worker, ())
    given: dict[str, object] = {
        "kind": kind,
        "follows": WORKERS | RECYCLED | {"quit": EXITS, "main-kill": notices},
        "workers": 2,
        "eager": config or kind == "asgi",
        "starts": "lifespan" if kind == "asgi" else "import",
        "config": CONFIG if config else [],
        "needs": ("gunicorn", *needs),
        "options": {
            "max-requests": ["--max-requests", LIMIT],
            "main-kill": ["--timeout", "6"],  # an idle sync worker looks for its parent in half
        },
        "command": [*GUNICORN, "-k", worker, *words, "{app}"],
        **facts,
    }
    name = " ".join([short, *words, *(["config"] if config else [])])
    return Mode(family="gunicorn", name=name, **given)  # type: ignore[arg-type]  # as above


GUNICORNS = [
    gunicorn("sync", quick=("term",)),
    gunicorn("sync", config=True, quick=("start", "term", "failing-start")),
    gunicorn("sync", "--preload"),
    gunicorn("sync", "--preload", config=True),
    gunicorn("gthread", quick=("term",)),
    gunicorn("gthread", config=True),
    gunicorn("gthread", "--preload"),
    gunicorn("gthread", "--preload", config=True, quick=("term",)),
    gunicorn("gevent"),
    gunicorn("gevent", config=True, quick=("term",)),
    gunicorn("asgi", quick=("term",)),
    gunicorn("asgi", config=True),
    gunicorn("asgi", "--preload"),
    gunicorn(UVICORN_WORKER, quick=("term",)),
    gunicorn(UVICORN_WORKER, config=True),
    gunicorn(UVICORN_WORKER, "--preload"),
]

# -- hypercorn -----------------------------------------------------------------------------------

HYPERCORN = [*launch.HYPERCORN, "--graceful-timeout", "5", "{options}"]
# The main process knows SIGTERM, SIGINT and SIGHUP, and leaves with the first worker that does.
HYPERCORN_WORKERS = (
    WORKERS | RECYCLED | {"quit": ORPHANS, "worker-term": EXITS, "worker-kill": EXITS}
)


def hypercorn(workers: int, kind: str, **facts: object) -> Mode:
    """Return a mode of hypercorn's."""
    app = "{app}" if kind == "asgi" else "wsgi:{app}"
    given: dict[str, object] = {
        "kind": kind,
        "follows": HYPERCORN_WORKERS if workers else SINGLE | {"max-requests": EXITS},
        "workers": workers,
        "eager": kind == "asgi",
        "starts": "lifespan" if kind == "asgi" else "import",
        "needs": ("hypercorn",),
        "options": {"max-requests": ["--max-requests", LIMIT]},
        "command": [*HYPERCORN, "-w", str(workers), app],
        **facts,
    }
    name = f"{kind} -w {workers}"
    return Mode(family="hypercorn", name=name, **given)  # type: ignore[arg-type]  # as above


HYPERCORNS = [
    hypercorn(0, "asgi", quick=("term",)),
    hypercorn(1, "asgi"),
    hypercorn(2, "asgi", quick=("term",)),
    hypercorn(0, "wsgi"),
    hypercorn(1, "wsgi"),
    hypercorn(2, "wsgi", quick=("term",)),
]

# -- granian -------------------------------------------------------------------------------------

GRANIAN = [*launch.GRANIAN, "--respawn-interval", "0.2", "{options}"]
RESPAWNS = ["--respawn-failed-workers"]  # without it the server leaves with the first one


def granian(interface: str, workers: int, **facts: object) -> Mode:
    """Return a mode of granian's."""
    given: dict[str, object] = {
        "kind": "wsgi" if interface == "wsgi" else "asgi",
        "follows": WORKERS | {"quit": ORPHANS},
        "workers": workers,
        "eager": interface == "asgi",
        "starts": "lifespan" if interface == "asgi" else "import",
        "needs": ("granian",),
        "ready": "Started worker-",  # before that SIGTERM is lost on it
        "options": dict.fromkeys(["worker-term", "worker-kill"], RESPAWNS),
        "command": [*GRANIAN, "--interface", interface, "--workers", str(workers), "{app}"],
        **facts,
    }
    name = f"{interface} --workers {workers}"
    return Mode(family="granian", name=name, **given)  # type: ignore[arg-type]  # as above


GRANIANS = [
    granian("asgi", 1, quick=("term",)),
    granian("asgi", 2),
    granian("asginl", 1),
    granian("wsgi", 1, quick=("term",)),
    granian("wsgi", 2),
]

# -- servers for scripts, and daphne -------------------------------------------------------------

VERSION = (sys.executable, "-c", "import platform; print(platform.python_version())")
SERVE = [sys.executable, "-m", "servers.apps.scripted"]


def script(family: str, name: str = "", **facts: object) -> Mode:
    """Return a server that is called from a script."""
    given: dict[str, object] = {
        "kind": "wsgi",
        "follows": SINGLE,
        "needs": (family,) if family != "wsgiref" else (),
        "hands_on": family in {"werkzeug", "flask", "django"},
        "quick": ("term",),
        "command": [*SERVE, family, "{app}", "{port}"],
        **facts,
    }
    return Mode(family=family, name=name, **given)  # type: ignore[arg-type]  # as above


# The parent of a reloader waits for its child, and leaves when that does.
RELOADER = {
    **dict.fromkeys(["start", "term", "int", "worker-term", "worker-kill"], EXITS),
    **dict.fromkeys(["hup", "quit", "main-kill"], ORPHANS),
    "failing-start": EXITS,
    "restart": AGAIN,
}
FLASK = [sys.executable, "-m", "flask", "--app", "{app}"]
FLASK_APPS = {"ours": "servers.apps.flask_plain:app", "alone": "servers.apps.flask_alone:app"}
DJANGO = [
    *(sys.executable, "-m", "django", "runserver", "127.0.0.1:{port}"),
    *("--settings", "servers.apps.django_settings"),
]
DJANGO_APPS = {
    "ours": {"APP_WSGI": "servers.apps.django_wsgi.application"},
    "alone": {"APP_WSGI": "servers.apps.alone.wsgi"},
}

SCRIPTS = [
    script("waitress", quick=("start", "term", "int", "hup", "failing-start")),
    script("cheroot"),
    script("wsgiref", follows=SINGLE | {"int": IGNORED, "restart": REFUSES}, asks_version=VERSION),
    script("werkzeug", "run_simple"),
    script(
        "werkzeug",
        "run_simple reloader",
        command=[*SERVE, "werkzeug_reloader", "{app}", "{port}"],
        workers=1,
        follows=RELOADER,
        quick=(),
    ),
    script(
        "flask",
        "run",
        command=[*FLASK, "run", "--port", "{port}"],
        apps=FLASK_APPS,
        eager=True,
    ),
    script(
        "flask",
        "run --debug",
        command=[*FLASK, "--debug", "run", "--port", "{port}"],
        apps=FLASK_APPS,
        workers=1,
        follows=RELOADER,
        eager=True,
        quick=(),
    ),
    script(
        "django",
        "runserver",
        command=DJANGO,
        env=DJANGO_APPS,
        workers=1,
        follows=RELOADER,
        eager=True,
        quick=(),
    ),
    script(
        "django",
        "runserver --noreload",
        command=[*DJANGO, "--noreload"],
        env=DJANGO_APPS,
        eager=True,
    ),
    script(
        "daphne",
        kind="asgi",
        command=[*(sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", "{port}"), "{app}"],
    ),
]

# -- uWSGI and mod_wsgi, as Debian has them ------------------------------------------------------

MAJOR, MINOR = sys.version_info[:2]
PATHS = {"PYTHONPATH": str(ROOT)}  # they have an interpreter of their own: that of the system
UWSGI = [
    *("uwsgi", "--plugin", "python3", "--http-socket", "127.0.0.1:{port}", "--enable-threads"),
    *("--wsgi", "{app}", "{options}"),
]
# Workers that leave early are held back for two seconds; told to go meanwhile, uWSGI never leaves.
UWSGI_RECYCLES = ["--max-requests", LIMIT, "--min-worker-lifetime", "1", "--forkbomb-delay", "0"]
# With `--die-on-term` SIGQUIT is what SIGTERM was: a reload that waits for nobody.
UWSGI_WORKERS = WORKERS | RECYCLED | {"quit": ROLLS, "main-kill": NOTICED}


def uwsgi(name: str, *words: str, **facts: object) -> Mode:
    """Return a mode of uWSGI's."""
    given: dict[str, object] = {
        "follows": UWSGI_WORKERS,
        "workers": 2,
        "options": {"max-requests": UWSGI_RECYCLES},
        "settles": True,
        "command": [*UWSGI, *words],
        **facts,
    }
    return Mode(
        family="uWSGI",
        name=name,
        kind="wsgi",
        env={"ours": PATHS, "alone": PATHS},
        needs=("uwsgi", f"/usr/lib/uwsgi/plugins/python{MAJOR}{MINOR}_plugin.so"),
        asks_version=("uwsgi", "--version"),
        **given,  # type: ignore[arg-type]  # as above
    )


MASTER = ("--master", "-p", "2")
GRACEFUL = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")
UWSGIS = [
    uwsgi("without master", workers=0, follows=SINGLE | {"restart": REFUSES}),
    uwsgi("--master", *MASTER, "--die-on-term"),
    uwsgi(
        "--master --lazy-apps",
        *(*MASTER, "--die-on-term", "--lazy-apps"),
        ready="WSGI app 0 .* ready in",  # told to go before, uWSGI waits for it for ever
    ),
    uwsgi(
        "--master gracefully",
        *(*MASTER, *GRACEFUL),
        follows=UWSGI_WORKERS | {"quit": EXITS},
        quick=("term",),
    ),
]

APACHE = [
    *(
        "apache2",
        "-D",
        "FOREGROUND",
        "-d",
        ".",
        "-f",
        "httpd.conf",
        "-C",
        "Listen 127.0.0.1:{port}",
    ),
    "{options}",
]
if os.getuid() == 0:  # as which neither would serve; but the journal is ours
    APACHE = [
        *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
        *("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"),
        *APACHE,
    ]
MODULES = "/usr/lib/apache2/modules"
APACHE_CONFIG = """\
ServerName localhost
ServerRoot {folder}
PidFile {folder}/httpd.pid
ErrorLog {folder}/error.log
Mutex posixsem
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
StartServers 1
ServerLimit 1
ThreadsPerChild 10
MaxRequestWorkers 10
WSGISocketPrefix {folder}/wsgi
WSGIScriptAlias / {folder}/app.wsgi
<Directory {folder}>
Require all granted
</Directory>
{rest}
"""
DAEMON = """\
<IfDefine !MAX_REQUESTS>
Define MAX_REQUESTS 0
</IfDefine>
WSGIDaemonProcess app processes=2 threads=3 home={folder} maximum-requests=${{MAX_REQUESTS}}
WSGIProcessGroup app
"""
GLOBAL = "WSGIApplicationGroup %{{GLOBAL}}\n"  # the main interpreter rather than another one


def mod_wsgi(name: str, rest: str, **facts: object) -> Mode:
    """Return a mode of Apache's with mod_wsgi."""

    def prepare(folder: Path, app: str) -> None:
        module, _, attribute = app.partition(":")
        (folder / "app.wsgi").write_text(f"from {module} import {attribute} as application\n")
        text = rest.format(folder=folder)
        config = APACHE_CONFIG.format(folder=folder, modules=MODULES, rest=text)
        (folder / "httpd.conf").write_text(config)

    given: dict[str, object] = {
        "follows": WORKERS | RECYCLED,
        "workers": 2,
        "options": {"max-requests": ["-C", f"Define MAX_REQUESTS {LIMIT}"]},
        "replaces_one": True,
        "deaf": True,
        **facts,
    }
    return Mode(
        family="mod_wsgi",
        name=name,
        kind="wsgi",
        command=APACHE,
        env={"ours": PATHS, "alone": PATHS},
        needs=("apache2", f"{MODULES}/mod_wsgi.so-{MAJOR}.{MINOR}"),
        asks_version=("dpkg-query", "-W", "-f", "${Version}", "libapache2-mod-wsgi-py3"),
        prepare=prepare,
        **given,  # type: ignore[arg-type]  # as above
    )


MOD_WSGIS = [
    mod_wsgi("daemon", DAEMON + GLOBAL, quick=("term",)),
    mod_wsgi("daemon sub-interpreter", DAEMON),
    mod_wsgi(
        "embedded",
        GLOBAL,
        workers=1,
        follows=WORKERS | {"worker-term": IGNORED, "restart": REFUSES},
        settles=True,  # told to go while a thread of it closes a connection, it may crash
    ),
]

MODES = [*UVICORNS, *GUNICORNS, *HYPERCORNS, *GRANIANS, *SCRIPTS, *UWSGIS, *MOD_WSGIS]
BY_ID = {mode.id: mode for mode in MODES}
