"""Bugs planted on purpose are found by histories in virtual time."""

from __future__ import annotations

from functools import partial

import pytest

from tests.simulation.planted import BUGS
from tests.simulation.world import Simulation, seeds

FOUND_WITHIN = 300  # histories of its theme


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(simulation: Simulation, name: str) -> None:
    theme, plant = BUGS[name]
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        failing = next(filter(partial(fails, simulation), seeds(theme, FOUND_WITHIN)), None)
    assert failing is not None
    assert not fails(simulation, failing)  # without the bug


def fails(simulation: Simulation, seed: int) -> bool:
    try:
        simulation.play(seed)
    except AssertionError as error:
        assert error.__notes__ == [f"python -m tests.simulation --seed {seed}"]  # noqa: PT017
        return True
    return False
