"""The buses that we are compared with. They carry no types, so `Any` ends here."""

from typing import Any

import cherrypy.process.wspbus
import magicbus.process


def buses() -> dict[str, Any]:
    """Return a fresh bus of each peer, by the peer's name."""
    return {"CherryPy": cherrypy.process.wspbus.Bus(), "MagicBus": magicbus.process.ProcessBus()}
