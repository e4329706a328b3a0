"""The soak test, shortened; `make soak SECONDS=3600` for longer."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.index.soak import Soak

SECONDS = float(os.environ.get("BRAID_SOAK_SECONDS", "60"))


@pytest.mark.slow
@pytest.mark.timeout(240 + 2 * SECONDS)
def test_every_answer_of_a_soak_is_within_the_bounds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = Soak(tmp_path, SECONDS, threads=2).run()
    for name, figure in figures.items():
        print(f"{name:20} {figure}")  # pytest -rP shows it
        record_property(name, figure)
    for name in ("searches/s", "writes/s", "rows looked up"):
        assert figures[name] > 0, figures
    for name in ("seals", "merges", "snapshots", "snapshots compared"):
        assert figures[name] >= 2, figures
