"""SIGKILL at every failpoint of snapshots and sealing, repeatedly on one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.index.crashing import POINTS

RUNS = 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_anywhere_comes_back_as_the_oracle(tmp_path: Path) -> None:
    """What a killed process wrote survives it, synced or not: memory serves as the disk here."""
    memory = Path("/dev/shm")
    home = str(memory if os.access(memory, os.W_OK) else tmp_path)
    with tempfile.TemporaryDirectory(dir=home, prefix="braid-crashes-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.index.crashing", folder, "--runs", str(RUNS)],
            capture_output=True,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert set(output["killed"]) == set(POINTS)
    assert sum(output["killed"].values()) == RUNS  # each was killed where it should be
    assert output["again"] > RUNS / 10  # and some of those once more
