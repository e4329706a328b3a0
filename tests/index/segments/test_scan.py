"""All methods of searching a part agree; unproven answers are searched again."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from braid.index.filters import Equals, Filter
from braid.index.segments import ann, int8, scan
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.live_store import LiveStore
from braid.index.segments.rescoring import Answer, merge
from braid.index.segments.scan import Candidates, ScanRequest, eligible_rows
from braid.index.segments.sealed import Segment
from braid.index.store import FUSED, Array, Delete, Upsert
from tests.index.histories import tuned

ROWS = 3000


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which ways searches went."""
    gone: set[str] = set()

    def noted(owner: Any, name: str, way: str) -> None:
        call = getattr(owner, name)

        def step(*args: Any, **options: Any) -> Any:
            gone.add(way)
            return call(*args, **options)

        monkeypatch.setattr(owner, name, step)

    for name in ("_score_rows", "_search_float32", "_knn_selected"):
        noted(scan, name, name)
    noted(int8.Int8Index, "search", "int8")
    noted(ann.Approximate, "search", "approximate")
    return gone


def rows_of(seed: int, count: int, dim: int) -> Array:
    rows_ND = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit_ND: Array = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return unit_ND


def filled(raw_ND: Array, *, sealed: bool, has_every: int = 0, **options: Any) -> LiveStore:
    """Row n is `r<n>`, its meta `{"of": n % 100}`; every `has_every`th has a vector `text` too."""
    store = LiveStore(space="s", dim=raw_ND.shape[1], block=len(raw_ND), **options)
    writes = [
        Upsert(
            id=f"r{n:05d}",
            partition=0,
            version=n,
            ts=n,
            model="m",
            fused=raw_D,
            by={"text": -raw_D} if has_every and n % has_every == 0 else {},
            meta={"of": n % 100, "half": n % 2, "most": n % 100 < 99},
        )
        for n, raw_D in enumerate(raw_ND)
    ]
    store.apply(writes, positions={}, progress={})
    if sealed:
        assert maintain(store, Policy(seal_blocks=1))
        assert all(isinstance(part.rows, Segment) for part in store.view.parts.values())
    return store


@cache
def shared(seed: int, count: int, dim: int, *, sealed: bool) -> LiveStore:
    """A store of those rows, for tests that only search it: most of a test's time is to fill it."""
    return filled(rows_of(seed, count, dim), sealed=sealed)


def agree(
    store: LiveStore,
    raw_ND: Array,
    queries_BD: Array,
    k: int,
    *,
    rows: npt.NDArray[np.int64] | None = None,
    filter: Filter | None = None,
    vector: str = FUSED,
    exact: bool = False,
) -> None:
    """The hits of those rows, by float64."""
    at_N = np.arange(len(raw_ND)) if rows is None else rows
    score_BN = queries_BD.astype(np.float64) @ raw_ND[at_N].astype(np.float64).T
    answers = store.search(queries_BD, k=k, vector=vector, filter=filter, exact=exact)
    for score_N, hits in zip(score_BN, answers, strict=True):
        best_K = np.argsort(-score_N, kind="stable")[:k]
        assert [hit.id for hit in hits] == [f"r{n:05d}" for n in at_N[best_K].tolist()]
        scores = [hit.score for hit in hits]
        np.testing.assert_allclose(scores, score_N[best_K], rtol=1e-12, atol=1e-15)


CASES = [
    # sealed, queries, filter, k, constants, the ways it goes
    (False, 1, None, 10, {}, {"_search_float32"}),
    (False, 20, None, 10, {"CHUNK": 700}, {"_search_float32"}),
    (True, 1, None, 10, {}, {"int8"}),
    (True, 3, None, 5000, {}, {"int8"}),
    (True, 20, None, 10, {}, {"int8"}),
    (True, 1, ("of", 7), 10, {}, {"_score_rows"}),
    (False, 5, ("of", 7), 100, {}, {"_score_rows"}),
    (True, 1, ("half", 0), 10, {"FEW_ROWS": 9}, {"int8"}),  # more are fetched
    (True, 1, ("half", 0), 10, {"FEW_ROWS": 9, "MOST_FETCHED": 20}, {"int8"}),  # selected
    (True, 1, ("of", 7), 10, {"FEW_ROWS": 9}, {"int8"}),
    (True, 1, ("half", 0), 1600, {"FEW_ROWS": 9}, {"int8"}),
    (True, 20, ("half", 0), 10, {"FEW_ROWS": 9}, {"int8"}),
    (True, 20, ("of", 7), 10, {"FEW_ROWS": 9}, {"_search_float32"}),  # gathered
    (False, 1, ("half", 0), 10, {"FEW_ROWS": 9}, {"_search_float32", "_knn_selected"}),
    (
        False,
        1,
        ("half", 0),
        2000,
        {"FEW_ROWS": 9, "CHUNK": 520},
        {"_search_float32", "_knn_selected"},
    ),
    (False, 1, ("most", True), 10, {"FEW_ROWS": 9}, {"_search_float32"}),  # a few more are fetched
    (
        False,
        1,
        ("most", True),
        10,
        {"FEW_ROWS": 9, "FEW_OUT": 0},
        {"_search_float32", "_knn_selected"},
    ),
    (False, 1, ("of", 7), 10, {"FEW_ROWS": 9, "CHUNK": 50}, {"_search_float32"}),
]


@pytest.mark.parametrize(("sealed", "queries", "given", "k", "constants", "expected"), CASES)
def test_every_way_finds_the_same(
    ways: set[str],
    sealed: bool,
    queries: int,
    given: tuple[str, object] | None,
    k: int,
    constants: dict[str, float],
    expected: set[str],
) -> None:
    raw_ND = rows_of(1, ROWS, 24)
    store = shared(1, ROWS, 24, sealed=sealed)
    queries_BD = rows_of(2, queries, 24)
    rows = np.arange(ROWS)
    filter = None
    if given is not None:
        field, value = given
        filter = Equals(field, value)  # type: ignore[arg-type]
        of = {"of": rows % 100, "half": rows % 2, "most": rows % 100 < 99}[field]
        rows = rows[of == value]
    with tuned(**constants):
        agree(store, raw_ND, queries_BD, k, rows=rows, filter=filter)
    assert ways == expected


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("few_rows", [5, 2048])
def test_a_vector_that_some_rows_have(ways: set[str], sealed: bool, few_rows: int) -> None:
    raw_ND = rows_of(1, ROWS, 24)
    store = filled(raw_ND, sealed=sealed, has_every=3)
    query_1D = rows_of(2, 1, 24)
    with tuned(FEW_ROWS=few_rows):
        for _ in range(2):
            agree(store, -raw_ND, query_1D, 20, rows=np.arange(0, ROWS, 3), vector="text")
            of_7 = np.arange(0, ROWS, 3)
            agree(
                store,
                -raw_ND,
                query_1D,
                20,
                rows=of_7[of_7 % 2 == 1],
                vector="text",
                filter=Equals("half", 1),
            )
            maintain(store, Policy())  # a vector that was asked for is held in 8 bits from now on
    if sealed and few_rows == 5:
        assert "int8" in ways
        assert store.segments()[0].vectors["text"].int8 is not None
    assert store.search(query_1D, k=3, vector="audio") == [[]]


def test_rows_that_died_are_not_among_the_hits_of_any_way() -> None:
    raw_ND = rows_of(1, ROWS, 24)
    for sealed in (False, True):
        store = filled(raw_ND, sealed=sealed)
        best = store.search(raw_ND[:1], k=40)[0]
        rows = np.ones(ROWS, np.bool_)
        for hit in best[::2]:
            rows[int(hit.id[1:])] = False
        store.apply(
            [Delete(id=hit.id, partition=0, version=ROWS, ts=0) for hit in best[::2]],
            positions={},
            progress={},
        )
        for constants in ({}, {"FEW_ROWS": 9}, {"FEW_ROWS": 9, "FEW_OUT": 0, "MOST_FETCHED": 5}):
            with tuned(**constants):
                agree(store, raw_ND, raw_ND[:1], 30, rows=np.flatnonzero(rows))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e-2 * 2**12, 1e4, 1e6])
def test_rows_of_any_length_are_ranked_exactly(scale: float) -> None:
    """Rows closer to each other than 8 bits, or float32 sums, can tell."""
    dim = 96
    rng = np.random.default_rng(5)
    base_D = rows_of(3, 1, dim)[0]
    raw_ND = (base_D + 2e-4 * rng.standard_normal((2000, dim))).astype(np.float32)
    raw_ND = (raw_ND * np.float32(scale)).astype(np.float32)
    query_1D = rows_of(4, 1, dim)
    for sealed in (False, True):
        store = filled(raw_ND, sealed=sealed)
        agree(store, raw_ND, query_1D, 10)
        if sealed and scale == 1.0:
            assert store.stats()["unproven"] > 0  # 8 bits could not tell them apart


def test_exact_duplicates_come_by_id_and_end() -> None:
    raw_ND = np.repeat(rows_of(3, 6, 96), 400, axis=0)
    query_1D = rows_of(4, 1, 96)
    for sealed in (False, True):
        store = filled(raw_ND, sealed=sealed)
        (hits,) = store.search(query_1D, k=30)
        assert len({hit.score for hit in hits}) == 1
        ids = [hit.id for hit in hits]
        assert ids == sorted(ids)
        best = np.argmax(raw_ND[::400] @ query_1D[0])
        assert {int(id_[1:]) // 400 for id_ in ids} == {int(best)}
        (more,) = store.search(query_1D, k=500)
        assert len({hit.score for hit in more}) == 2
        assert [hit.id for hit in more[:400]] == sorted(hit.id for hit in more[:400])


def test_a_query_of_zeros_and_rows_of_zeros() -> None:
    raw_ND = rows_of(1, 100, 8)
    raw_ND[:50] = 0
    for sealed in (False, True):
        store = filled(raw_ND, sealed=sealed)
        (hits,) = store.search(np.zeros((1, 8), np.float32), k=100)
        assert len(hits) == 100
        assert {hit.score for hit in hits} == {0.0}
        agree(store, raw_ND, raw_ND[60:61], 20)


def heterogeneous(seed: int, count: int, dim: int) -> Array:
    """Rows whose dimensions differ in scale up to 10,000 times; some repeat the first."""
    rng = np.random.default_rng(seed)
    raw_ND = rng.standard_normal((count, dim)) * 10.0 ** rng.uniform(-3, 1, dim)
    raw_ND[:: rng.integers(5, 9)] = raw_ND[0] * (1 + 1e-4 * rng.standard_normal((1, dim)))
    raw_ND[:, rng.integers(dim)] *= rng.integers(2)  # in some, a dimension of zeros
    return raw_ND.astype(np.float32)


@pytest.mark.parametrize("dim", [3, 24, 384])
@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("rows", [rows_of, heterogeneous])
def test_the_bound_of_int8_holds(dim: int, scale: int, rows: Callable[..., Array]) -> None:
    """No score of `Int8Index` is further from the truth than the search believes."""
    raw_ND, queries_BD = scale * rows(1, 3000, dim), 3 * rows_of(2, 8, dim)
    longest = np.linalg.norm(raw_ND.astype(np.float64), axis=1).max()
    index = int8.Int8Index(raw_ND)
    assert 0 < index.lost < 0.02 * longest
    assert longest <= index.longest < 1.02 * longest
    assert index.nbytes == raw_ND.size
    score_BK, row_BK = index.search(queries_BD, len(raw_ND))
    norm_B = np.linalg.norm(queries_BD, axis=1)
    true_BN = queries_BD.astype(np.float64) @ raw_ND.astype(np.float64).T
    off_BK = np.abs(np.take_along_axis(true_BN, row_BK, 1) - score_BK)
    assert (off_BK <= index.lost * norm_B[:, None]).all()
    assert off_BK.max() > 0.02 * index.lost * norm_B.max()  # and it is not all too careful
    request = ScanRequest(queries_BD, norm_B, FUSED, 10)
    rounding_B = scan._rounding_error(request, index.longest)
    assert (np.abs(queries_BD @ raw_ND.T - true_BN) <= rounding_B[:, None]).all()


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-39, 1e-30, 1e18])
def test_rows_of_extreme_values_are_held_within_the_bound(value: float) -> None:
    raw_ND = np.float32(value) * np.arange(-3, 3, dtype=np.float32).reshape(3, 2)
    index = int8.Int8Index(raw_ND)
    score_BK, row_BK = index.search(np.ones((1, 2), np.float32), 3)
    off_K = np.abs(score_BK[0] - raw_ND.astype(np.float64).sum(1)[row_BK[0]])
    assert np.isfinite(index.lost)
    assert (off_K <= index.lost * 2**0.5).all()


@pytest.mark.parametrize("seed", range(6))
def test_spaces_of_any_shape_are_searched_exactly(seed: int) -> None:
    dim = (1, 5, 16, 48, 100, 256)[seed]
    raw_ND = heterogeneous(seed, 1200, dim)
    queries_BD = heterogeneous(100 + seed, 16, dim)
    store = filled(raw_ND, sealed=True)
    true_BN = queries_BD.astype(np.float64) @ raw_ND.astype(np.float64).T
    for size in (1, 16):
        for filter, rows in ((None, np.arange(1200)), (Equals("half", 1), np.arange(1, 1200, 2))):
            with tuned(FEW_ROWS=9):
                answers = store.search(queries_BD[:size], k=10, filter=filter)
            for score_N, hits in zip(true_BN[:, rows], answers, strict=False):
                best_K = np.sort(score_N)[::-1][:10]  # of equal rows, any may be hits
                np.testing.assert_allclose([hit.score for hit in hits], best_K, rtol=1e-12)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "constants",
    [
        {"FEW_ROWS": 2048},
        {"FEW_ROWS": 0, "MOST_FETCHED": 2},
        {"FEW_ROWS": 0},
        {"FEW_ROWS": 0, "MANY_QUERIES": 1, "CHUNK": 64},
        {"FEW_ROWS": 0, "MANY_QUERIES": 1, "FEW_OUT": 0, "SELECT_QUERIES": 0},
        {"FEW_ROWS": 0, "MANY_QUERIES": 1, "FEW_OUT": 10**6},
    ],
)
def test_what_is_left_out_scores_no_higher_than_the_bound(
    sealed: bool, constants: dict[str, float]
) -> None:
    """Proofs stand on this."""
    raw_ND, queries_BD = rows_of(1, 600, 16), rows_of(2, 5, 16)
    true_BN = queries_BD.astype(np.float64) @ raw_ND.astype(np.float64).T
    (part,) = shared(1, 600, 16, sealed=sealed).view.parts.values()
    for filter in (None, Equals("half", 1), Equals("most", True), Equals("of", 3)):
        mask, count = eligible_rows(part, FUSED, filter)
        mask_R = np.ones(600, np.bool_) if mask is None else mask
        assert count == mask_R.sum()
        for hits in (1, 7, 100, 599, 600, 1000):
            request = ScanRequest(queries_BD, np.linalg.norm(queries_BD, axis=1), FUSED, hits)
            with tuned(**constants):
                result = scan.scan(part, request, mask, count)
            for b in range(len(queries_BD)):
                rows = result.row_BK[b][result.row_BK[b] >= 0]
                assert len(set(rows.tolist())) == len(rows)
                assert mask_R[rows].all()
                out_R = mask_R.copy()
                out_R[rows] = False
                assert true_BN[b][out_R].max(initial=-np.inf) <= result.above_B[b]
                if hits >= 600:
                    assert not out_R.any()
                scores = result.score_BK[b][result.row_BK[b] >= 0]
                assert (np.abs(scores - true_BN[b][rows]) <= result.off_B[b]).all()


def test_a_request_uses_the_quick_indexes_unless_it_says_otherwise() -> None:
    request = ScanRequest(rows_of(2, 1, 8), np.ones(1, np.float32), FUSED, 10)
    assert (request.exact, request.careful) == (False, False)


def test_lines_are_the_candidates_of_some_queries() -> None:
    of_B = np.arange(4, dtype=np.float32)
    lines = Candidates(of_B[:, None], np.arange(4)[:, None], of_B, -of_B).lines(1, 3)
    assert (lines.score_BK.tolist(), lines.row_BK.tolist()) == ([[1], [2]], [[1], [2]])
    assert (lines.above_B.tolist(), lines.off_B.tolist()) == ([1, 2], [-1, -2])


def test_an_answer_is_proven_only_against_all_that_was_left_out() -> None:
    raw_ND, queries_BD = rows_of(1, 50, 8), rows_of(2, 1, 8)
    (part,) = filled(raw_ND, sealed=False).view.parts.values()
    true_N = raw_ND.astype(np.float64) @ queries_BD[0]
    order = np.argsort(-true_N)

    def candidates(rows: list[int], above: float, off: float = 1e-6) -> Candidates:
        row_BK = order[rows][None]
        return Candidates(
            true_N[row_BK].astype(np.float32),
            row_BK,
            np.array([above], np.float32),
            np.array([off], np.float32),
        )

    third = true_N[order[2]]
    for above, proven in ((third - 1e-3, True), (third + 1e-3, False), (-np.inf, True)):
        (answer,) = merge(queries_BD, FUSED, 3, [(part, candidates([0, 1, 2], above))])
        assert answer.proven is proven
        assert [row for _, row, _ in answer.hits] == order[:3].tolist()
    # Fewer than k, though something was left out.
    (answer,) = merge(queries_BD, FUSED, 4, [(part, candidates([0, 1, 2], -5.0))])
    assert not answer.proven
    # The worst of two parts counts.
    result = [
        (part, candidates([0, 1], third + 1e-3)),
        (part, candidates([2, 3, 4], -np.inf, off=np.inf)),
    ]
    (answer,) = merge(queries_BD, FUSED, 3, result)
    assert not answer.proven
    assert [row for _, row, _ in answer.hits] == order[:3].tolist()
    assert merge(queries_BD, FUSED, 3, []) == [Answer([], True)]


def test_candidates_that_may_not_be_real_do_not_disturb() -> None:
    """-1 and -inf where a part had fewer; an approximate part is off by inf."""
    raw_ND, queries_BD = rows_of(1, 50, 8), rows_of(2, 1, 8)
    (part,) = filled(raw_ND, sealed=False).view.parts.values()
    row_BK = np.array([[4, -1, -1, 9]])
    score_BK = np.array([[0.1, -np.inf, -np.inf, 0.2]], np.float32)
    for off in (1e-6, np.inf):
        candidates = Candidates(
            score_BK, row_BK, np.array([-np.inf], np.float32), np.array([off], np.float32)
        )
        (answer,) = merge(queries_BD, FUSED, 1, [(part, candidates)])
        assert len(answer.hits) == 1
        assert answer.hits[0][1] in (4, 9)
        (answer,) = merge(queries_BD, FUSED, 5, [(part, candidates)])
        assert {row for _, row, _ in answer.hits} == {4, 9}


def test_threads_of_faiss_are_one_each() -> None:
    """Its own threads would multiply with ours."""
    store = filled(rows_of(1, 500, 8), sealed=True, threads=2)
    faiss.omp_set_num_threads(2)
    store.search(rows_of(2, 1, 8), k=3)
    assert faiss.omp_get_max_threads() == 1
    store.close()
