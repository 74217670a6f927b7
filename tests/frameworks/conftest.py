"""An engine for one test."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from engine_bridge import ChannelFailures, Engine
from engine_bridge.core import signals


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Return an engine that is ended, and whose signal handlers are gone, after the test."""
    engine = Engine(drain_timeout=5)
    yield engine
    with suppress(ChannelFailures, SystemExit):
        engine.exit()
    signals.unwatch(engine)


@pytest.fixture
def heard(engine: Engine) -> list[str]:
    """Return the channels that *engine* has published so far, in order."""
    channels: list[str] = []
    for channel in ("start", "drain", "stop", "exit"):
        engine.subscribe(channel, lambda channel=channel: channels.append(channel))
    return channels
