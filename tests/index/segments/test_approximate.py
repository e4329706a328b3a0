"""Approximate indexes are used only if they reach the required recall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from braid.index.filters import Equals
from braid.index.segments import ann as module
from braid.index.segments.ann import Approximate, approximate, load_approximate
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.store import Array, Upsert
from tests.index.histories import tuned

ROWS, DIM = 8000, 16
SMALL = {"FROM_ROWS": 2000, "FEW_ROWS": 50}


def clustered(seed: int, count: int, dim: int = DIM) -> Array:
    rng = np.random.default_rng(7)
    centres_CD = rng.standard_normal((60, dim))
    rng = np.random.default_rng(seed)
    rows_ND = centres_CD[rng.integers(60, size=count)] + 0.3 * rng.standard_normal((count, dim))
    unit_ND: Array = (rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def shapeless(count: int) -> Array:
    """Directions without any neighbourhood: no list is worth looking into first."""
    rows_ND = np.random.default_rng(1).standard_normal((count, 256)).astype(np.float32)
    unit_ND: Array = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return unit_ND


def recall_of(index: Approximate, raw_ND: Array, queries_BD: Array, k: int) -> float:
    result = 0
    _, row_BK = index.search(queries_BD, k)
    for query_D, rows in zip(queries_BD, row_BK, strict=True):
        rows = rows[rows >= 0]
        best = rows[np.argsort(-(raw_ND[rows] @ query_D))[:k]]
        result += len(set(best) & set(np.argsort(-(raw_ND @ query_D))[:k]))
    return result / (k * len(queries_BD))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recall", "sizes"),
    [
        (0.8, {}),
        (0.95, {}),
        (0.95, {"SMALL": 1000}),
        (0.8, {"SMALL": 1000, "LARGE": 2000}),
    ],
)
def test_the_recall_is_reached_where_rows_lie_in_clusters(
    recall: float, sizes: dict[str, int]
) -> None:
    raw_ND = clustered(1, ROWS)
    with tuned(FROM_ROWS=2000, **sizes):
        index = approximate(raw_ND, recall)
    assert index is not None
    assert index.kind == {0: "ivf-fp16", 1: "ivf-sq8", 2: "ivf-pq"}[len(sizes)]
    assert index.recall >= recall
    assert index.nprobe <= module.MOST_LISTS * index.index.nlist
    # Queries that it has never seen, as far from the rows as rows are from each other.
    assert recall_of(index, raw_ND, clustered(2, 300), 10) >= recall - 0.03


def test_where_none_reaches_it_search_stays_exact(caplog: pytest.LogCaptureFixture) -> None:
    raw_ND = shapeless(3000)
    with tuned(FROM_ROWS=2000):
        assert approximate(raw_ND, 0.99) is None
        assert "stays exact" in caplog.text
        store = filled(raw_ND, recall=0.99)
    assert store.exact
    (described,) = store.stats()["segments"]
    assert described["kind"] == "exact"
    query_1D = shapeless(3001)[-1:]
    (hits,) = store.search(query_1D, k=10)
    best = np.argsort(-(raw_ND @ query_1D[0]))[:10]
    assert [hit.id for hit in hits] == [f"r{row}" for row in best]


def test_small_segments_and_full_recall_have_none() -> None:
    raw_ND = clustered(1, 3000)
    with tuned(FROM_ROWS=3001):
        assert approximate(raw_ND, 0.5) is None
    with tuned(FROM_ROWS=3000):
        assert approximate(raw_ND, 1.0) is None
        assert approximate(raw_ND, 0.5) is not None


def test_a_file_comes_back_as_it_was_and_a_bad_one_is_none(tmp_path: Path) -> None:
    raw_ND, queries_BD = clustered(1, 3000), clustered(2, 9)
    with tuned(FROM_ROWS=2000):
        index = approximate(raw_ND, 0.9)
    assert index is not None
    path = tmp_path / "fused.faiss"
    data = index.dumps()
    path.write_bytes(data)
    again = load_approximate(path)
    assert again is not None
    assert (again.kind, again.nprobe, again.recall) == (index.kind, index.nprobe, index.recall)
    wanted = np.arange(3000) % 3 == 0
    for mask in (None, wanted):
        for one, other in zip(
            index.search(queries_BD, 10, mask), again.search(queries_BD, 10, mask), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    for bad in (b"", b"ivf", data[:40], data[:-900], b"a b c\n" + data, b"\xff\xfe\n1"):
        path.write_bytes(bad)
        assert load_approximate(path) is None
    assert load_approximate(tmp_path / "none") is None


def filled(raw_ND: Array, *, recall: float) -> LiveStore:
    store = LiveStore(space="s", dim=raw_ND.shape[1], block=len(raw_ND), recall=recall)
    store.apply(
        [
            Upsert(
                id=f"r{n}",
                partition=0,
                version=n,
                ts=n,
                model="m",
                fused=raw_D,
                meta={"of": n % 100, "half": n % 2},
            )
            for n, raw_D in enumerate(raw_ND)
        ],
        positions={},
        progress={},
    )
    assert maintain(store, Policy(seal_blocks=1))
    return store


def test_a_store_uses_it_says_so_and_passes_it_over_when_told() -> None:
    raw_ND, queries_BD = clustered(1, ROWS), clustered(2, 40)
    with tuned(**SMALL):
        store = filled(raw_ND, recall=0.9)
        assert not store.exact
        (described,) = store.stats()["segments"]
        assert described["kind"] == "ivf-fp16"
        assert described["recall"] >= 0.9
        result = 0
        for query_D in queries_BD:
            (hits,) = store.search(query_D[None], k=10)
            (exact,) = store.search(query_D[None], k=10, exact=True)
            best = np.argsort(-(raw_ND.astype(np.float64) @ query_D))[:10]
            assert [hit.id for hit in exact] == [f"r{row}" for row in best]
            result += len({hit.id for hit in hits} & {hit.id for hit in exact})
            assert (
                store.probe(query_D, 10)
                == len({hit.id for hit in hits} & {hit.id for hit in exact}) / 10
            )
            for hit in hits:  # scores are exact all the same
                row = int(hit.id[1:])
                assert hit.score == pytest.approx(
                    float(raw_ND[row].astype(np.float64) @ query_D), abs=1e-12
                )
        assert 0.87 <= result / (10 * len(queries_BD)) <= 1


@pytest.mark.slow
def test_filters_and_a_large_k_get_all_they_ask_for() -> None:
    raw_ND, query_1D = clustered(1, ROWS), clustered(2, 1)
    true_N = raw_ND.astype(np.float64) @ query_1D[0]
    with tuned(**SMALL):
        store = filled(raw_ND, recall=0.9)
        for k in (1, 10, 500, 4000, ROWS, 2 * ROWS):
            (hits,) = store.search(query_1D, k=k)
            assert len({hit.id for hit in hits}) == min(k, ROWS)
            (half,) = store.search(query_1D, k=k, filter=Equals("half", 1))
            assert len({hit.id for hit in half}) == min(k, ROWS // 2)
            assert {int(hit.id[1:]) % 2 for hit in half} == {1}
            # Too few are wanted for lists to pay: exact.
            (few,) = store.search(query_1D, k=k, filter=Equals("of", 7))
            rows = np.arange(7, ROWS, 100)
            best = rows[np.argsort(-true_N[rows])][:k]
            assert [hit.id for hit in few] == [f"r{row}" for row in best]


def test_queries_that_it_was_not_tuned_on_have_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw_ND = clustered(1, 3000)
    for held in (0.5, 0.95):
        recalls = iter([1.0, held] * 100)
        monkeypatch.setattr(module, "_recall", lambda *given, recalls=recalls: next(recalls))
        with tuned(FROM_ROWS=2000):
            index = approximate(raw_ND, 0.9)
        assert (index is None) == (held < 0.9)
        assert index is None or index.recall == held
