"""What the applications of this folder share: an engine that tells the journal, and probes."""

import os

from servers.apps.lifecycle import instrument

from engine_bridge import engine
from engine_bridge.plugins import Health

TICK = b"data: tick\n\n"
PATIENCE = 60.0  # seconds that a long poll waits

instrument(engine)
engine.drain_delay = float(os.environ.get("APP_DRAIN_DELAY", "0"))
health = Health(engine)
health.subscribe()
