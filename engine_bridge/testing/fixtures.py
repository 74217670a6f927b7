"""The fixtures; pytest imports this, by `pytest_plugins = ["engine_bridge.testing"]`."""

from collections.abc import Iterator

import pytest

from engine_bridge.core import signals
from engine_bridge.core.engine import Engine

from . import leaks
from .recording import Recording, record

LIMIT = 10.0  # seconds for a start or a stop: a test that takes longer is stuck
DRAIN = 5.0  # seconds


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves threads, descriptors or signal handlers behind."""
    with leaks.no_leaks():
        yield


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """
    Return an engine for this test, which is ended after it.

    The test fails if that fails, or if a request is still in flight.
    """
    if "no_leaks" in request.fixturenames:
        request.getfixturevalue("no_leaks")  # first, so that it looks once the engine has ended
    engine = Engine(start_timeout=LIMIT, stop_timeout=LIMIT, drain_timeout=DRAIN)
    yield engine
    in_flight = engine.in_flight
    engine.requests.excuse_all()  # nobody will answer them any more
    try:
        engine.exit()
    except SystemExit as exc:
        pytest.fail(f"a listener of the engine's stop or exit raised SystemExit({exc.code!r})")
    finally:
        signals.unwatch(engine)
    if in_flight:
        pytest.fail(
            f"{in_flight} requests are in flight: an answer was not read to its end, or not closed"
        )


@pytest.fixture
def recording(engine: Engine) -> Recording:
    """Return what `engine` publishes, the channels of its lifecycle."""
    return record(engine)
