"""What histories run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.world import Simulation


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation().installed() as installed:
        yield installed
