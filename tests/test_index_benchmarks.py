"""The index's benchmarks run on a few rows: their figures are there, and add up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    index_approximate,
    index_exact,
    index_filters,
    index_freshness,
    index_ingest,
    index_restart,
)
from benchmarks.rivals import RIVALS, Rival
from benchmarks.vectors import asked, clustered, exact, filled, recall
from braid.index.segments.live_store import LiveStore

ROUNDS = ["--rounds", "1", "--json"]
FEW = [*ROUNDS, "--dim", "16", "--rows", "3000"]


def test_made_vectors_are_units_repeatable_and_no_queries() -> None:
    rows_ND = clustered(500, 32, seed=3)
    np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(rows_ND, clustered(500, 32, seed=3))
    queries_BD = clustered(500, 32, seed=3, queries=True)
    assert (queries_BD @ rows_ND.T).max() < 0.999
    # Clusters: the nearest is nearer than a random row by far, as it is not among Gaussians.
    assert (queries_BD @ rows_ND.T).max(axis=1).mean() > 0.5
    assert not np.array_equal(rows_ND, clustered(500, 32, seed=4))


def test_recall_is_the_share_of_true_hits() -> None:
    truth_BK = np.array([[1, 2], [3, 4]])
    assert recall([[2, 1], [4, 3]], truth_BK) == 1.0
    assert recall([[1, 9], []], truth_BK) == 0.25


def test_a_filled_store_finds_what_exact_search_finds() -> None:
    rows_ND, queries_BD = clustered(3000, 16, seed=0), clustered(8, 16, seed=0, queries=True)
    store, built = filled(rows_ND, threads=1, block=256)
    assert built.keys() == {"apply_s", "seal_s"}
    assert store.segments()
    assert recall(asked(store, queries_BD), exact(rows_ND, queries_BD)[1]) == 1.0


@pytest.mark.slow
def test_exact(capsys: pytest.CaptureFixture[str]) -> None:
    report = index_exact.main(FEW)
    assert json.loads(capsys.readouterr().out) == report
    assert report["rows"].keys() == {
        f"batch {size}, {threads}" for size in (1, 64) for threads in ("1 thread", "2 threads")
    }
    for row in report["rows"].values():
        assert row["recall"] == 1.0
        assert row["ratio"] == pytest.approx(row["flat_ms"] / row["store_ms"], rel=0.2)


@pytest.mark.slow
def test_approximate_says_who_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> Rival:
        raise ImportError("no such module")

    def there(rows_ND: Any, folder: Any, threads: int) -> Rival:
        return Rival(
            about="one that finds as many as it is asked to look for",
            dial=(1, 5, 10, 20),
            search=lambda queries_BD, value: exact(rows_ND, queries_BD, min(value, 10))[1].tolist(),
        )

    for name in RIVALS:
        monkeypatch.setitem(RIVALS, name, absent)
    monkeypatch.setitem(RIVALS, "usearch", there)
    rows = index_approximate.main(FEW)["rows"]
    assert "absent" in rows["hnswlib"]
    assert rows["usearch"]["dial"] == 10
    for name in ("braid, streamed", "braid, compacted", "usearch"):
        assert rows[name]["recall"] == 1.0
        assert rows[name]["batch_64_queries_per_s"] > 0


@pytest.mark.slow
def test_filters() -> None:
    rows = index_filters.main(FEW)["rows"]
    assert rows.keys() == {"0.1 %", "1 %", "10 %", "50 %", "unfiltered"}
    assert {row.get("recall", 1.0) for row in rows.values()} == {1.0}
    assert rows["unfiltered"]["batch_1_of_unfiltered"] == 1.0


@pytest.mark.slow
def test_ingest_sees_no_half_written_state() -> None:
    report = index_ingest.main([*FEW, "--seconds", "0.5"])
    assert report["checked"] > 0
    assert report["half_written"] == 0
    assert report["applied_per_s"] > 0
    rows = report["rows"]
    assert rows["ingesting"]["p50_ms"] <= rows["ingesting"]["p99_ms"]


def test_a_half_written_state_would_be_seen() -> None:
    rows_ND = clustered(300, 16, seed=0)
    store = LiveStore(space="s", dim=16)
    mark_D = np.eye(16, dtype=np.float32)[0]
    writer = index_ingest.Writer(store, rows_ND, mark_D, per_second=100)
    writer.mark()
    assert not index_ingest.half_written(store, mark_D)
    marks = writer._marks()
    store.apply(marks[:3], positions={}, progress={})
    assert index_ingest.half_written(store, mark_D)
    store.apply(marks[3:], positions={}, progress={})
    assert not index_ingest.half_written(store, mark_D)


@pytest.mark.slow
def test_restart() -> None:
    rows = index_restart.main(FEW)["rows"]
    assert rows["restart"]["records"] >= 3000
    assert 0 < rows["restart"]["restore_s"] <= rows["restart"]["seconds_to_first_answer"]
    assert rows["saving"]["rows_applied_meanwhile"] >= 0
    assert rows["saving"]["snapshot_mb"] > 0


@pytest.mark.slow
def test_freshness() -> None:
    report = index_freshness.main([*ROUNDS, "--burst", "200", "--seconds", "2"])
    half = report["rows"]["half load"]
    assert half["probes"] >= 10
    assert 0 < half["p50_ms"] <= half["p99_ms"]
    assert report["rows"]["full micro-batch"]["p99 / full micro-batch"] > 0
