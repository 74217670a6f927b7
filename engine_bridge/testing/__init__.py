"""
What tests of an application with an engine want.

    pytest_plugins = ["engine_bridge.testing"]

in the topmost `conftest.py` gives the fixtures `engine`, `recording` and `no_leaks`. The rest is
for any test runner. Importing this imports neither pytest nor a framework.
"""

from .leaks import NoLeaks, no_leaks
from .lifespans import Served, lifespan
from .recording import Recording, record

__all__ = ["NoLeaks", "Recording", "Served", "lifespan", "no_leaks", "record"]

pytest_plugins = ("engine_bridge.testing.fixtures",)  # read by pytest, when this is its plugin
