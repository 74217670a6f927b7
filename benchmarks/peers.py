"""The buses that we are compared with. They carry no types, so `Any` ends here."""

from typing import Any

import cherrypy.process.wspbus  # type: ignore[import-untyped]  # carries no types
import magicbus.process  # type: ignore[import-untyped]  # carries no types


def buses() -> dict[str, Any]:
    """Return a fresh bus of each peer, by the peer's name."""
    return {"CherryPy": cherrypy.process.wspbus.Bus(), "MagicBus": magicbus.process.ProcessBus()}
