"""One run of chaos; `make chaos SEED=…` has more of them, and longer ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import run


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_faults_lose_and_double_nothing_and_progress_resumes(tmp_path: Path) -> None:
    summary = run(tmp_path, seed=1, records=10_000, seconds=100.0)
    assert len(summary["faults"]) >= 3
