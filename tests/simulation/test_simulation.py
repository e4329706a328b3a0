"""Histories in virtual time, and bugs planted on purpose that they find.

`SIMULATION_HISTORIES=10000` plays more of them, `python -m tests.simulation --seed N`
one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from tests.simulation.planted import BUGS
from tests.simulation.world import Simulation, seeds

HISTORIES = int(os.environ.get("SIMULATION_HISTORIES", "2000"))
CHUNK = 1000
FAILED_ONCE = (4692,)
FOUND_WITHIN = 300  # histories of its theme


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation().installed() as installed:
        yield installed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, HISTORIES, CHUNK))
def test_nothing_is_lost_doubled_reordered_or_half_visible(
    simulation: Simulation, first: int
) -> None:
    for seed in range(first, first + CHUNK):
        simulation.play(seed)


@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_a_history_that_failed_once_passes(simulation: Simulation, seed: int) -> None:
    simulation.play(seed)


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


def test_a_seed_gives_the_same_history_in_another_process(simulation: Simulation) -> None:
    seed = next(seeds("all", 1))
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    lines = simulation.play(seed, verbose=True)
    assert len(lines) > 20
    assert shown.splitlines()[:-1] == lines
