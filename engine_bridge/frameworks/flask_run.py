"""
Eager start under the development server: `flask run`, `flask run --debug`, `app.run()`.

werkzeug has no hook for it. But all three make their server by `werkzeug.serving.make_server`, so
that is wrapped: the engines of what the server is to serve start once it has its port and before it
serves.

With the reloader there are two processes, both of which import the application and make a server.
Only the child serves, in a thread; there the engines start in the main thread, as elsewhere. If
that fails the child stays, so that the next save is another try; until then requests get 503.

The reloader's parent does not kill its child when it is told to go itself, but waits for it:
`reloader.py` tells why.

Source:
    werkzeug 3.1, `serving.run_simple` and `_reloader.run_with_reloader`; Flask 3.1, `cli.py`.
"""

import sys
import threading
from collections.abc import Iterator
from functools import wraps
from types import SimpleNamespace

import click
import flask.cli
from werkzeug import serving

from engine_bridge.core import signals
from engine_bridge.core.door import Door, Gate
from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError
from engine_bridge.core.host import Host, current_host
from engine_bridge.frameworks import reloader
from engine_bridge.frameworks.wsgi import EngineMiddleware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def prepare(engine: Engine) -> None:
    """Have the development server, should there be one, start *engine* before it serves."""
    role = _role()
    if role:
        engine.host = Host(role)
    if not hasattr(serving.make_server, "starts_engines"):
        vars(serving)["make_server"] = _starting_engines(serving.make_server)


def _role() -> str:
    """Return the role of a process of `flask run`; nothing for what else there is."""
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "run" or "reload" not in context.params:
        return ""
    if context.find_object(flask.cli.ScriptInfo) is None:
        return ""  # another program that has a `run`
    reloads = context.params["reload"]
    if reloads is None:
        reloads = flask.helpers.get_debug_flag()
    return "reloader" if reloads and not serving.is_running_from_reloader() else "worker"


def _starting_engines(make_server: "Any") -> "Any":
    """Return *make_server*, whose servers start the engines of what they serve."""

    @wraps(make_server)
    def make(*args: "Any", **kwargs: "Any") -> serving.BaseWSGIServer:
        server: serving.BaseWSGIServer = make_server(*args, **kwargs)
        gates = list(_gates(server.app))
        if serving.is_running_from_reloader():
            for gate in gates:
                gate.engine.host = current_host("wsgi")
                gate.admit()
            reloader.ignore_signals_while_leaving()
            return server
        _have_the_reloader_wait()
        if gates and not server.multiprocess:  # which forks for each request
            _start_on_serving(server, gates)
        return server

    make.starts_engines = True  # type: ignore[attr-defined]  # so that it is wrapped once
    return make


def _gates(app: object) -> Iterator[Gate]:
    """Find the engines' middlewares in what is served; one may be around several applications."""
    todo, seen = [app], set()
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, EngineMiddleware):
            yield each.gate
        todo += [getattr(each, "app", None), getattr(each, "wsgi_app", None)]
        mounts = getattr(each, "mounts", None)  # werkzeug's DispatcherMiddleware
        todo += mounts.values() if isinstance(mounts, dict) else ()


def _start_on_serving(server: serving.BaseWSGIServer, gates: list[Gate]) -> None:
    """Have *server* start engines when it begins to serve, as a reloader's parent never does."""
    serve_forever = server.serve_forever

    def start_and_serve(poll_interval: float = 0.5) -> None:
        try:
            for gate in gates:
                gate.engine.host = current_host("wsgi")
                signals.chain(gate.engine)
                Door(gate.engine, "wsgi").open()
        except BaseException as exc:
            server.server_close()
            in_main_thread = threading.current_thread() is threading.main_thread()
            if isinstance(exc, EngineError) and in_main_thread:
                reason = exc.message if isinstance(exc, ChannelFailures) else exc
                sys.exit(f"The engine did not start: {reason}")  # the trace is in the log
            raise
        serve_forever(poll_interval)

    server.serve_forever = start_and_serve  # type: ignore[method-assign]  # of this one only


def _have_the_reloader_wait() -> None:
    """Have a reloader's parent, should this be one, wait for its child instead of killing it."""
    from werkzeug import _reloader

    vars(_reloader)["subprocess"] = SimpleNamespace(call=_call)  # all it uses of it


def _call(argv: list[str], **options: "Any") -> int:
    return reloader.run_and_wait(argv, **options).returncode
