"""
A worker under test, on inherited sockets: `python -m servers.apps.serve SERVER APP FDS OPTIONS`.

FDS are numbers with commas. OPTIONS are JSON: those of the server, and `drain_timeout`,
`in_thread` and `told_in_thread` of ours.
"""

import json
import signal
import socket
import sys
import threading
from typing import Any

from journal import record
from released import wait_released

from engine_bridge.servers import serve
from engine_bridge.servers.serving import make_serving
from engine_bridge.servers.waking import Waker

SOCKETS: list[socket.socket] = []  # open to the end: what restarts the process inherits them again


def main(server: str, app: str, descriptors: str, settings: str) -> None:
    """Serve until told to go."""
    options = json.loads(settings)
    in_thread = options.pop("in_thread", False)
    drain_timeout = options.pop("drain_timeout", 30.0)
    if options.pop("told_in_thread", False):
        threading.Thread(target=take_sigterm, daemon=True).start()
    SOCKETS.extend(socket.socket(fileno=int(each)) for each in descriptors.split(","))
    run = run_in_thread if in_thread else serve
    run(app, SOCKETS, options, server=server, drain_timeout=drain_timeout)
    record("returned")


def take_sigterm() -> None:
    """Be the thread to which the kernel hands SIGTERM, when the test releases it."""
    wait_released()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)


def run_in_thread(*args: Any, **kwargs: Any) -> None:
    """Do what `serve` does, in a thread."""
    serving = make_serving(*args, **kwargs)
    signal.signal(signal.SIGTERM, lambda *_: serving.stop())
    thread = threading.Thread(target=serving.run, name="server")
    thread.start()
    with Waker():
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
