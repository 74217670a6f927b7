"""Run what is on the engine, such as monitors, and serve no HTTP."""

from django.core.management import BaseCommand, CommandError
from django.utils.module_loading import import_string

from engine_bridge.core.engine import Engine
from engine_bridge.core.errors import ChannelFailures, EngineError
from engine_bridge.frameworks.django import get_engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Command(BaseCommand):
    """`manage.py engine_run`."""

    help = "Runs the engine with its monitors and no HTTP server, until SIGTERM or Ctrl-C."

    def handle(self, *args: "Any", **options: "Any") -> None:
        """Start the engine, block, and exit with it."""
        engine = get_engine()
        _hear_signals(engine)
        try:
            _start(engine)
            _block(engine)
        except (SystemExit, KeyboardInterrupt):
            if not engine.notes.times_told:
                raise  # a listener's own
            _block(engine)  # it was told to go before it blocked, which is no failure


def _start(engine: Engine) -> None:
    try:
        engine.start()
    except EngineError as exc:
        raise CommandError(f"the engine did not start: {_reason(exc)}") from exc


def _block(engine: Engine) -> None:
    try:
        engine.block()
    except EngineError as exc:
        raise CommandError(f"the engine did not stop well: {_reason(exc)}") from exc


def _hear_signals(engine: Engine) -> None:
    """Have signals end the engine, unless the project has said what they do."""
    if not engine.listeners.get("SIGTERM"):
        import_string("engine_bridge.plugins.SignalHandler")(engine).subscribe()


def _reason(error: EngineError) -> object:
    return error.message if isinstance(error, ChannelFailures) else error  # the trace is in the log
