"""The commands of `python -m engine_bridge`."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

import click

from engine_bridge.core.host import current_host
from engine_bridge.probe import describe

PATIENCE = 30.0  # seconds until a server must have answered
PAUSE = 0.05  # seconds between two tries

# How each is told where to listen. What has no command is to serve engine_bridge.probe itself.
LISTEN = {
    "cheroot": ("--bind", "127.0.0.1:{port}"),
    "daphne": ("--bind", "127.0.0.1", "--port", "{port}"),
    "granian": ("--host", "127.0.0.1", "--port", "{port}"),
    "gunicorn": ("--bind", "127.0.0.1:{port}"),
    "hypercorn": ("--bind", "127.0.0.1:{port}"),
    "uvicorn": ("--port", "{port}"),
    "waitress": ("--listen", "127.0.0.1:{port}"),
}
INTERFACE = {"granian": "asgi", "uvicorn": "auto"}
WSGI_ONLY = ("cheroot", "gunicorn", "waitress")
ASGI_WORKERS = ("asgi", "uvicorn", "Uvicorn")


@click.group(help="One process lifecycle for every Python web application and its server.")
def main() -> None:
    """Group the commands."""


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option("--wsgi", is_flag=True, help="Serve by WSGI where the server takes both.")
@click.argument("server", required=False, type=click.Choice(sorted(LISTEN)))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def host(server: str | None, options: tuple[str, ...], wsgi: bool) -> None:
    """
    Tell who owns a process, how it hears of its end, and how it restarts.

    With a SERVER and its OPTIONS, such as `gunicorn -k gthread`, from inside that server: it serves
    a tiny application for the time of one request, on a free port of the loopback interface. To ask
    within another, have it serve engine_bridge.probe:wsgi or engine_bridge.probe:asgi.
    """
    if server is None:
        text = describe(current_host())
    else:
        text = _ask_inside(server, [*options, *_application(server, options, wsgi)])
    click.echo(text, nl=False)


def _ask_inside(server: str, words: Sequence[str]) -> str:
    port = _free_port()
    listen = [word.format(port=port) for word in LISTEN[server]]
    command = [sys.executable, "-m", server, *listen, *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            answer = _wait_for_answer(process, port)
        finally:
            process.terminate()
            output, _ = process.communicate()
    if answer is None:
        raise click.ClickException(f"{server} did not answer; it said:\n{output.strip()}")
    return answer


def _application(server: str, options: Sequence[str], wsgi: bool) -> list[str]:
    """Return the words that have the server serve our application, in the form that it takes."""
    if server in WSGI_ONLY:
        wsgi = not any(word in option for option in options for word in ASGI_WORKERS)
    wsgi = wsgi or "wsgi" in options
    app = f"engine_bridge.probe:{'wsgi' if wsgi else 'asgi'}"
    if server == "hypercorn" and wsgi:
        return [f"wsgi:{app}"]
    if server in INTERFACE and "--interface" not in options:
        return ["--interface", "wsgi" if wsgi else INTERFACE[server], app]
    return [app]


def _wait_for_answer(process: "subprocess.Popen[str]", port: int) -> str | None:
    """Return what the application says; None if the server ends, or takes too long."""
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        try:
            with ask.open(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                body: bytes = answer.read()
                return body.decode()
        except (urllib.error.URLError, OSError):
            time.sleep(PAUSE)  # no server tells when it listens in a way that all share
    return None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
