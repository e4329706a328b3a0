"""What single steps of the search of one part return, against plain loops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from braid.index.filters import Equals
from braid.index.segments import scan
from braid.index.segments.compaction import Policy, maintain
from braid.index.segments.int8 import Int8Index
from braid.index.segments.live_store import LiveStore
from braid.index.segments.scan import ScanRequest, eligible_rows
from braid.index.segments.sealed import Segment
from braid.index.store import FUSED, Array, Delete, Upsert
from tests.index.histories import tuned

INF = np.inf
ROWS = 40


def vectors(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


RAW, QUERIES = vectors(1, ROWS), vectors(2, 3)


def request(count: int, queries_BD: Array = QUERIES, **options: Any) -> ScanRequest:
    norm_B = np.linalg.norm(queries_BD, axis=1)
    return ScanRequest(queries_BD, norm_B, FUSED, count, **options)


def stored(*, sealed: bool = True, text_every: int = 0) -> LiveStore:
    store = LiveStore(space="s", dim=8, block=ROWS)
    writes = [
        Upsert(
            id=f"r{n:02d}",
            partition=0,
            version=n,
            ts=n,
            model="m",
            fused=raw_D,
            by={"text": -raw_D} if text_every and n % text_every == 0 else {},
            meta={"half": n % 2},
        )
        for n, raw_D in enumerate(RAW)
    ]
    store.apply(writes, positions={}, progress={})
    if sealed:
        assert maintain(store, Policy(seal_blocks=1))
    return store


# ---- which rows may be hits


def test_eligible_rows_are_alive_match_and_have_the_vector() -> None:
    for sealed in (False, True):
        store = stored(sealed=sealed, text_every=3)
        (part,) = store.view.parts.values()
        assert eligible_rows(part, FUSED, None) == (None, ROWS)
        assert eligible_rows(part, "audio", None) == (None, 0)
        mask, count = eligible_rows(part, "text", None)
        assert mask is not None
        assert np.flatnonzero(mask).tolist() == list(range(0, ROWS, 3))
        assert count == 14
        store.apply([Delete(id="r00", partition=0, version=99, ts=0)], positions={}, progress={})
        (part,) = store.view.parts.values()
        for name, filter, rows in (
            (FUSED, None, range(1, ROWS)),
            (FUSED, Equals("half", 0), range(2, ROWS, 2)),
            ("text", None, range(3, ROWS, 3)),
            ("text", Equals("half", 0), range(6, ROWS, 6)),
        ):
            mask, count = eligible_rows(part, name, filter)
            assert mask is not None
            assert np.flatnonzero(mask).tolist() == list(rows)
            assert count == len(rows)


def test_a_part_of_dead_rows_has_none() -> None:
    store = stored()
    gone = [Delete(id=f"r{n:02d}", partition=0, version=99, ts=0) for n in range(ROWS)]
    (part,) = store.view.parts.values()
    part = replace(part, alive=0)
    assert eligible_rows(part, FUSED, Equals("half", 0)) == (None, 0)
    store.apply(gone, positions={}, progress={})
    assert store.search(QUERIES, k=5) == [[]] * 3


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("few_rows", [0, 2048])
def test_rows_without_the_vector_are_no_hits_and_each_row_is_one(
    sealed: bool, few_rows: int
) -> None:
    store = stored(sealed=sealed, text_every=3)
    with tuned(FEW_ROWS=few_rows):
        for _ in range(2):
            for filter, rows in ((None, range(0, ROWS, 3)), (Equals("half", 0), range(0, ROWS, 6))):
                for hits in store.search(QUERIES, k=ROWS, vector="text", filter=filter):
                    assert sorted(hit.id for hit in hits) == [f"r{n:02d}" for n in rows]
            maintain(store, Policy())  # holds the vector in 8 bits from now on


# ---- bounds and masks


@pytest.mark.parametrize(
    ("rows", "total", "bound"),
    [
        ([5, 1, 0], 4, 1.0),
        ([5, 1, 0], 3, -INF),
        ([5, 1, 0], 2, -INF),
        ([5, 1, -1], 4, -INF),
        ([0, 0, 7], 4, 1.0),
    ],
)
def test_the_bound_on_the_rest_is_the_last_score(rows: list[int], total: int, bound: float) -> None:
    score_BK = np.array([[3.0, 2.0, 1.0]], np.float32)
    bound_B = scan._bound_on_rest(score_BK, np.array([rows]), total)
    assert bound_B.dtype == np.float32
    assert bound_B.tolist() == [bound]


def test_rows_outside_the_mask_are_taken_out() -> None:
    row_BK, score_BK = np.array([[0, 2, -1, 1]]), np.array([[4, 3, 2, 1]], np.float32)
    kept, scores = scan._keep_masked(row_BK, score_BK, np.array([True, False, True]))
    assert kept.tolist() == [[0, 2, -1, -1]]
    assert scores.tolist() == [[4, 3, -INF, -INF]]
    kept, scores = scan._keep_masked(row_BK, score_BK, None)
    assert kept.tolist() == row_BK.tolist()
    assert scores.tolist() == [[4, 3, -INF, 1]]


def test_the_best_candidates_are_those_that_are_rows() -> None:
    score_BM = np.array([[1.0, 9.0, 3.0, 2.0], [4.0, 9.0, 5.0, 6.0]], np.float32)
    row_BM = np.array([[0, -1, 7, 2], [0, 1, -1, 2]])
    off_B = np.array([0.5, 0.25], np.float32)
    best = scan._best_candidates(score_BM, row_BM, request(2), off_B)
    assert [sorted(rows) for rows in best.row_BK.tolist()] == [[2, 7], [1, 2]]
    assert [sorted(scores) for scores in best.score_BK.tolist()] == [[2, 3], [6, 9]]
    assert best.above_B.tolist() == [1.5, 4.25]
    for count in (4, 5):
        best = scan._best_candidates(score_BM, row_BM, request(count), off_B)
        assert best.row_BK.tolist() == row_BM.tolist()
        assert best.score_BK.tolist() == [[1, -INF, 3, 2], [4, 9, -INF, 6]]
        assert best.above_B.tolist() == [-INF, -INF]


# ---- one chunk, several chunks


MASKS: dict[str, npt.NDArray[np.bool_] | None] = {
    "all": None,
    "most": np.arange(ROWS) % 20 != 5,
    "half": np.arange(ROWS) % 2 == 0,
    "first": np.arange(ROWS) == 0,
    "none": np.zeros(ROWS, np.bool_),
}


@pytest.mark.parametrize("ways", [{}, {"FEW_OUT": 0}, {"FEW_OUT": 0, "SELECT_QUERIES": 0}])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("k", [1, 3, 19, 20, 38, 40, 50])
def test_a_chunk_gives_its_best_rows(name: str, ways: dict[str, int], k: int) -> None:
    mask = MASKS[name]
    rows = np.arange(ROWS) if mask is None else np.flatnonzero(mask)
    faiss.omp_set_num_threads(2)
    with tuned(**ways):
        score_BK, row_BK, last_B = scan._search_chunk(RAW, request(k), mask)
    assert faiss.omp_get_max_threads() == 1
    assert last_B is not None
    more = 0 if ways else ROWS - len(rows)  # excluded rows are fetched, too
    assert row_BK.shape == score_BK.shape == (3, min(k + more, len(rows) + more))
    for b, query_D in enumerate(QUERIES):
        true_N = RAW[rows] @ query_D
        best = rows[np.argsort(-true_N)]
        found = row_BK[b][row_BK[b] >= 0]
        assert found[:k].tolist() == best[:k].tolist()
        assert set(np.unique(row_BK[b])) <= {-1, *rows.tolist()}
        np.testing.assert_allclose(score_BK[b][row_BK[b] >= 0], RAW[found] @ query_D, rtol=1e-5)
        left_out = sorted(set(rows.tolist()) - set(found.tolist()))
        if left_out:
            assert (RAW[left_out] @ query_D).max() <= last_B[b] + 1e-5
        if name in ("all", "half") and k < len(rows):
            assert last_B[b] <= (RAW[found] @ query_D).min() + 1e-5
        if k >= len(rows):
            assert not left_out
            assert name == "most" or last_B[b] == -INF


def test_a_chunk_without_an_eligible_row_is_left_out() -> None:
    score_BK, row_BK, last_B = scan._search_chunk(RAW, request(3), MASKS["none"])
    assert (score_BK.size, row_BK.size, last_B) == (0, 0, None)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
@pytest.mark.parametrize("chunk", [7, 20, ROWS, 100])
@pytest.mark.parametrize("k", [1, 4, 20, ROWS])
def test_chunks_together_give_the_best_rows_and_a_bound_on_the_others(
    name: str, chunk: int, k: int
) -> None:
    mask = MASKS[name]
    rows = np.arange(ROWS) if mask is None else np.flatnonzero(mask)
    off_B = np.array([0.5, 0.25, 0.125], np.float32)
    with tuned(CHUNK=chunk, FEW_OUT=0):
        candidates = scan._search_float32(RAW, request(k), mask, off_B)
    assert candidates.off_B is off_B
    for b, query_D in enumerate(QUERIES):
        true_N = RAW[rows] @ query_D
        found = candidates.row_BK[b][candidates.row_BK[b] >= 0]
        assert sorted(found.tolist()) == sorted(rows[np.argsort(-true_N)][:k].tolist())
        if len(rows) > k:
            above = np.sort(true_N)[::-1][k]
            # The last score of a chunk bounds its rows, so that it may be that of the k-th hit.
            assert above + off_B[b] <= candidates.above_B[b] + 1e-5
            assert candidates.above_B[b] <= np.sort(true_N)[::-1][k - 1] + off_B[b] + 1e-5
        else:
            assert candidates.above_B[b] == -INF


# ---- a sealed segment


@dataclass
class Stub:
    """An approximate index that returns these rows."""

    row_BK: npt.NDArray[np.int64]

    def search(self, queries_BD: Array, k: int, mask: Any) -> tuple[Any, Any]:
        self.asked = (k, mask)
        return np.full(self.row_BK.shape, 5.0, np.float32), self.row_BK


def by_stub(rows: list[list[int]], count: int, **options: Any) -> bool:
    """Whether the search of a segment takes the approximate index's answer for k = 3."""
    (part,) = stored().view.parts.values()
    assert isinstance(part.rows, Segment)
    stub: Any = Stub(np.array(rows))
    of_part: Any = replace(part.rows.vectors[FUSED], approximate=stub)
    asked = request(3, QUERIES[:2], **options)
    found = scan._search_segment(part.rows, of_part, asked, None, count)
    if not (found.score_BK == 5.0).all():
        return False
    assert found.above_B.tolist() == [-INF, -INF]
    assert found.off_B.tolist() == [INF, INF]
    assert found.row_BK is stub.row_BK
    return True


def test_an_approximate_index_answers_for_most_rows_unless_it_found_too_few() -> None:
    enough = [[0, 5, 2, -1], [7, 0, 1, -1]]
    assert by_stub(enough, ROWS)
    assert not by_stub(enough, ROWS, exact=True)
    assert by_stub(enough, ROWS // 2)
    assert not by_stub(enough, ROWS // 2 - 1)
    assert not by_stub([[0, 5, 2, -1], [7, 0, -1, -1]], ROWS)


def test_a_segment_without_int8_requests_it() -> None:
    (part,) = stored().view.parts.values()
    assert isinstance(part.rows, Segment)
    part.rows.int8_requests.clear()
    of_part = replace(part.rows.vectors[FUSED], int8=None)
    found = scan._search_segment(part.rows, of_part, request(3), None, ROWS)
    assert part.rows.int8_requests == {FUSED}
    rounding_B = scan._rounding_error(request(3), part.rows.longest(FUSED))
    assert found.off_B.tolist() == rounding_B.tolist()


def test_int8_is_used_unless_it_may_not_be_and_widens_the_error() -> None:
    (part,) = stored().view.parts.values()
    assert isinstance(part.rows, Segment)
    of_part = part.rows.vectors[FUSED]
    assert of_part.int8 is not None
    rounding_B = scan._rounding_error(request(3), part.rows.longest(FUSED))
    plain = scan._search_segment(part.rows, of_part, request(3), None, ROWS)
    lost_B = request(3).norm_B * np.float32(of_part.int8.lost)
    assert plain.off_B.tolist() == (rounding_B + lost_B).tolist()
    careful = scan._search_segment(part.rows, of_part, request(3, careful=True), None, ROWS)
    assert careful.off_B.tolist() == rounding_B.tolist()
    with tuned(MANY_QUERIES=3):
        few = np.arange(ROWS) % 5 == 0
        many = scan._search_segment(part.rows, of_part, request(3), few, ROWS // 5)
    assert many.off_B.tolist() == rounding_B.tolist()


@pytest.mark.parametrize(
    ("every", "k", "limits", "fetched", "selects"),
    [
        (1, 3, {"INT8_FACTOR": 4}, 12, False),
        (1, 3, {}, 3, False),  # no mask
        (2, 3, {}, 24, False),  # 1.3 * 3 * 40 / 20, and 16 more
        (2, 30, {}, ROWS, False),
        (2, 3, {"MOST_FETCHED": 23}, 3, True),
        (5, 3, {}, 3, True),  # fewer than a quarter are eligible
        (5, 8, {}, 8, True),
    ],
)
def test_int8_fetches_more_hits_or_selects_rows(
    monkeypatch: pytest.MonkeyPatch,
    every: int,
    k: int,
    limits: dict[str, int],
    fetched: int,
    selects: bool,
) -> None:
    asked: list[tuple[int, bool]] = []
    search = Int8Index.search

    def noted(index: Int8Index, queries_BD: Array, k: int, mask: Any = None) -> Any:
        asked.append((k, mask is not None))
        return search(index, queries_BD, k, mask)

    monkeypatch.setattr(Int8Index, "search", noted)
    (part,) = stored().view.parts.values()
    mask = None if every == 1 else np.arange(ROWS) % every == 0
    with tuned(**{"FEW_ROWS": 0, "INT8_FACTOR": 1, **limits}):
        found = scan.scan(part, request(k), mask, ROWS // every)
    assert asked == [(fetched, selects)]
    for b, query_D in enumerate(QUERIES):
        rows = found.row_BK[b][found.row_BK[b] >= 0].tolist()
        left_out = sorted(set(range(0, ROWS, every)) - set(rows))
        assert len(left_out) + len(rows) == ROWS // every
        highest = (RAW[left_out] @ query_D).max() if left_out else -INF
        assert highest <= found.above_B[b]
        assert left_out or found.above_B[b] == -INF


def test_the_rounding_error_grows_with_dimensions_and_lengths() -> None:
    error_B = scan._rounding_error(request(3), 10.0)
    expected_B = np.linalg.norm(QUERIES, axis=1) * 8 * 10.0 * 2.0**-23
    np.testing.assert_allclose(error_B, expected_B, rtol=1e-6)
