"""
waitress: one process, threads.

| ours | waitress's |
|---|---|
| options | those of `waitress.serve`, but where to listen |

Source:
    waitress 3.0, `server.py`: SystemExit, which our handler raises on SIGTERM, has it answer what
    it has begun, and leave. `channel.py`, `task.py`: an idle connection is kept for
    `channel_timeout`; a task closes its connection if the request asks for that.
"""

import time
from collections.abc import Callable

from engine_bridge.core.host import Host

from .base import Stack, by_sigterm, nothing, single, taking_options, waiting
from .worker import Duplicates, Leaving, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

END_OF_THREADS = 5.0  # seconds; waitress's own
END_OF_STUCK_THREADS = 0.1


def detect(stack: Stack) -> Host | None:
    """Return the host of this process, if waitress serves in it."""
    return None if stack.find("waitress.") is None else single("waitress", by_sigterm)


class WaitressServing(Worker):
    """One worker of waitress, see `base.Serving`."""

    def run(self) -> None:
        """As of `Serving`."""
        from waitress import create_server

        channels: dict[int, Any] = {}
        with self.leaving as leaving, Duplicates(self.sockets) as sockets:
            with taking_options("waitress"):
                create_server(self.app, map=channels, sockets=sockets, **self.options)
            listeners = [each for each in channels.values() if each.accepting]
            for listener in listeners:
                listener.channel_class = _channel_class(leaving)
            channels[leaving.fileno()] = _ear(leaving)
            try:
                self.when_ready()
                self._serve(listeners, channels)
            finally:
                _close(listeners, channels)

    def _serve(self, listeners: "list[Any]", channels: "dict[int, Any]") -> None:
        """Be waitress's main loop, and take leave."""
        pause = listeners[0].adj.asyncore_loop_timeout
        poll = _poll_function(listeners[0].adj)
        while not self.leaving.is_told:
            poll(pause, channels)
        for listener in listeners:
            _accept_no_more(listener)
        self.when_closed()
        while _has_connections(listeners) and not self.leaving.is_cut_off:
            poll(min(pause, self.leaving.left), channels)
            for listener in listeners:
                listener.maintenance(time.time())  # of idle connections, on the listener's behalf


def _poll_function(adjustments: "Any") -> "Callable[..., None]":
    from waitress import wasyncore

    chosen: Callable[..., None] = wasyncore.poll
    if adjustments.asyncore_use_poll:
        chosen = wasyncore.poll2
    return chosen


def _accept_no_more(listener: "Any") -> None:
    """Accept what waits, then close the listener; not its trigger, which the threads need."""
    from waitress import wasyncore

    for _ in waiting(listener.socket):
        listener.handle_accept()
    wasyncore.dispatcher.close(listener)


def _has_connections(listeners: "list[Any]") -> bool:
    return any(listener.active_channels for listener in listeners)


def _close(listeners: "list[Any]", channels: "dict[int, Any]") -> None:
    """Close what is open, and end the threads, which may not all be done."""
    from waitress import wasyncore

    patience = END_OF_STUCK_THREADS if _has_connections(listeners) else END_OF_THREADS
    for listener in listeners:
        listener.pull_trigger = nothing  # its descriptor may soon be another's
        for channel in list(listener.active_channels.values()):
            channel.handle_close()
    wasyncore.close_all(channels)
    listeners[0].task_dispatcher.shutdown(timeout=patience)


def _channel_class(leaving: Leaving) -> type:
    """Return waitress's connection, whose answers ask to close it once it is to leave."""
    from waitress.channel import HTTPChannel
    from waitress.task import WSGITask

    class Task(WSGITask):  # type: ignore[misc]  # waitress has no types
        def build_response_header(self) -> bytes:
            if leaving.is_told:
                self.request.headers["CONNECTION"] = "close"  # as if the client had asked for it
            header: bytes = super().build_response_header()
            return header

    class Channel(HTTPChannel):  # type: ignore[misc]  # likewise
        task_class = Task

    return Channel


def _ear(leaving: Leaving) -> "Any":
    """Return the part of waitress's loop that hears the word to go."""
    from waitress import wasyncore

    class Ear(wasyncore.dispatcher):  # type: ignore[misc]  # likewise
        def writable(self) -> bool:
            return False

        def handle_read_event(self) -> None:
            leaving.hear()

        def close(self) -> None:
            self.del_channel()

    ear = Ear(map={})
    ear._fileno = leaving.fileno()
    return ear
