"""
Serve an application with a server that is made for scripts.

    python -m servers.apps.scripted waitress servers.apps.wsgi:app 8000
"""

import sys

from werkzeug.utils import import_string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

HOST = "127.0.0.1"


def cheroot(app: "WSGIApplication", port: int) -> None:
    """Serve with cheroot, CherryPy's server."""
    from cheroot.wsgi import Server

    server = Server((HOST, port), app)
    try:
        server.start()
    finally:
        server.stop()


def waitress(app: "WSGIApplication", port: int) -> None:
    """Serve with waitress."""
    from waitress import serve

    serve(app, host=HOST, port=port)


def werkzeug(app: "WSGIApplication", port: int) -> None:
    """Serve with werkzeug's development server."""
    from werkzeug.serving import run_simple

    run_simple(HOST, port, app, threaded=True)


def werkzeug_reloader(app: "WSGIApplication", port: int) -> None:
    """Serve with the same, which restarts when a file has changed."""
    from werkzeug.serving import run_simple

    run_simple(HOST, port, app, threaded=True, use_reloader=True, reloader_type="stat")


def wsgiref(app: "WSGIApplication", port: int) -> None:
    """Serve with the server of the standard library, one request at a time."""
    from wsgiref.simple_server import make_server

    with make_server(HOST, port, app) as server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    _, server, name, port = sys.argv
    globals()[server](import_string(name), int(port))
