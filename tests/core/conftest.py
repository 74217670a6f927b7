"""What the tests of the core are given."""

import pytest


@pytest.fixture
def notes() -> list[str]:
    """Return what listeners of this test note."""
    return []
