"""Histories in virtual time.

`SIMULATION_HISTORIES=100000` plays more of them, `python -m tests.simulation --seed N` one.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.world import Simulation, seeds

HISTORIES = int(os.environ.get("SIMULATION_HISTORIES", "10000"))
CHUNK = 1000
FAILED_ONCE = (4692, 8808)


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


def test_a_seed_gives_the_same_history_in_another_process(simulation: Simulation) -> None:
    seed = next(seeds("all", 1))
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    lines = simulation.play(seed, verbose=True)
    assert len(lines) > 20
    assert shown.splitlines()[:-1] == lines
