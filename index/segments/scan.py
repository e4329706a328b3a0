"""CPU search of one part: candidates by a fast score, and a bound on all other rows.

The method depends on the part and the filter (`benchmarks.index_filters` compares the methods):

    few rows are eligible        score those rows in float32
    sealed                       8-bit index; if most rows are eligible, fetch more hits and drop
                                 the others, else pass a selector to FAISS
    growing, or many queries     float32 rows, in chunks that fit the CPU's cache
    of a part of the rows
    sealed and approximate       the index of `braid.index.segments.ann`

Shapes: B queries, D dimensions, N rows that have the vector, K hits, M rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

import faiss
import numpy as np
import numpy.typing as npt

from ..filters import Filter
from ..store import Array
from .growing import Block
from .int8 import longest
from .sealed import Segment, Vectors
from .view import Mask, Part

Scores = npt.NDArray[np.float32]
RowNumbers = npt.NDArray[np.int64]

CHUNK = 8192  # rows; a chunk fits the CPU's cache
FEW_ROWS = 2048
FEW_SHARE = 0.005
MANY_QUERIES = 12
MOST_WANTED = 0.25
INT8_FACTOR = 4  # times as many candidates by 8-bit scores, which tell fewer rows apart
MOST_FETCHED = 1024
FEW_OUT = 256  # up to so many excluded rows times queries, fetch more hits instead of selecting
SELECT_QUERIES = 16
SELECT_SHARE = 0.1
ROUNDING = 2.0**-23  # bound on the error of a float32 product and sum, per dimension


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """A search of every part of a view.

    Attributes:
        count: candidates of each part, a few more than the hits of the answer.
        exact: do not use approximate indexes.
        careful: do not use 8-bit rows either.
    """

    queries_BD: Array
    norm_B: Scores
    name: str
    count: int
    exact: bool = False
    careful: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one part and their fast scores; row -1 where there are fewer.

    Attributes:
        above_B: upper bound on the true scores of the eligible rows that are left out; -inf if
            none is left out, and for approximate indexes, which make no guarantee.
        off_B: bound on the difference of a true score and the fast one.
    """

    score_BK: Scores
    row_BK: RowNumbers
    above_B: Scores
    off_B: Scores

    def lines(self, begin: int, end: int) -> Candidates:
        """The candidates of some of the queries."""
        part = slice(begin, end)
        return Candidates(
            self.score_BK[part], self.row_BK[part], self.above_B[part], self.off_B[part]
        )


def eligible_rows(part: Part, name: str, filter: Filter | None) -> tuple[Mask | None, int]:
    """bool[count], the rows that may be hits, and their number; no mask if all may."""
    if not part.alive or not part.rows.has(name):
        return None, 0
    keep = part.keep[: part.count]
    having = part.rows.having(name, part.count)
    if filter is None and having is None:
        return (None if part.alive == part.count else keep), part.alive
    mask = keep if filter is None else part.rows.matching(filter, part.count) & keep
    if having is not None:
        mask = mask & having
    count = int(np.count_nonzero(mask))
    return (None if count == part.count else mask), count


def scan(part: Part, request: ScanRequest, mask: Mask | None, count: int) -> Candidates:
    """The best of a part's `count` eligible rows, at least 1."""
    rows, name = part.rows, request.name
    if count <= max(FEW_ROWS, FEW_SHARE * part.count) and mask is not None:
        return _score_rows(part, request, np.flatnonzero(mask))
    if isinstance(rows, Block):
        off_B = _rounding_error(request, rows.longest(name))
        return _search_float32(rows.vectors[name][: part.count], request, mask, off_B)
    assert isinstance(rows, Segment)
    vectors = rows.vectors[name]
    if mask is not None and vectors.row_N is not None:
        mask = mask[vectors.row_N]
        mask = None if count == len(mask) else mask
    candidates = _search_segment(rows, vectors, request, mask, count)
    if vectors.row_N is None:
        return candidates
    row_BK = np.where(candidates.row_BK >= 0, vectors.row_N[candidates.row_BK], -1)
    return Candidates(candidates.score_BK, row_BK, candidates.above_B, candidates.off_B)


def scan_part(
    part: Part, request: ScanRequest, filter: Filter | None
) -> tuple[Part, Candidates] | None:
    """The part with its candidates on the CPU; None: no row may be a hit."""
    mask, count = eligible_rows(part, request.name, filter)
    return (part, scan(part, request, mask, count)) if count else None


def _score_rows(part: Part, request: ScanRequest, row_M: RowNumbers) -> Candidates:
    """Score all eligible rows, and keep the best."""
    raw_MD = part.rows.raw(request.name, row_M)
    score_BM = request.queries_BD @ raw_MD.T
    off_B = _rounding_error(request, longest(raw_MD))
    return _best_candidates(score_BM, np.broadcast_to(row_M, score_BM.shape), request, off_B)


def _search_segment(
    segment: Segment, vectors: Vectors, request: ScanRequest, mask: Mask | None, count: int
) -> Candidates:
    if vectors.approximate is not None and not request.exact and 2 * count >= len(vectors.raw_ND):
        score_BK, row_BK = vectors.approximate.search(request.queries_BD, request.count, mask)
        # With a large k the lists may hold too few rows: then all rows are searched.
        if np.count_nonzero(row_BK >= 0, axis=1).min() >= min(request.count, count):
            nothing_B = np.full(len(score_BK), -np.inf, np.float32)
            return Candidates(score_BK, row_BK, nothing_B, np.full_like(nothing_B, np.inf))
    if vectors.int8 is None:
        segment.int8_requests.add(request.name)
    int8, off_B = vectors.int8, _rounding_error(request, segment.longest(request.name))
    total, wanted, selection = len(vectors.raw_ND), INT8_FACTOR * request.count, mask
    most = mask is None or count >= MOST_WANTED * total
    many = len(request.queries_BD) >= MANY_QUERIES and not most
    if int8 is None or not isfinite(int8.lost) or request.careful or many:
        return _search_float32(vectors.raw_ND, request, mask, off_B)
    off_B = off_B + request.norm_B * np.float32(int8.lost)
    fetch = wanted
    if mask is not None and most:
        fetch = ceil(1.3 * wanted * total / count) + 16
        if fetch <= MOST_FETCHED:
            selection = None
        else:
            fetch = wanted
    score_BK, row_BK = int8.search(request.queries_BD, min(fetch, total), selection)
    above_B = _bound_on_rest(score_BK, row_BK, total if selection is None else count) + off_B
    if mask is not None and selection is None:
        row_BK, score_BK = _keep_masked(row_BK, score_BK, mask)
    return Candidates(score_BK, row_BK, above_B, off_B)


def _search_float32(
    raw_ND: Array, request: ScanRequest, mask: Mask | None, off_B: Scores
) -> Candidates:
    """Search float32 rows chunk by chunk."""
    scores, rows, lasts = [], [], []
    for begin in range(0, len(raw_ND), CHUNK):
        chunk_MD = raw_ND[begin : begin + CHUNK]
        chunk_mask = None if mask is None else mask[begin : begin + CHUNK]
        score_BK, row_BK, last_B = _search_chunk(chunk_MD, request, chunk_mask)
        if last_B is None:
            continue
        scores.append(score_BK)
        rows.append(np.where(row_BK >= 0, row_BK + begin, -1))
        lasts.append(last_B)
    top = _best_candidates(
        np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), request, off_B
    )
    above_B = np.maximum(top.above_B, np.max(lasts, axis=0) + off_B)
    return Candidates(top.score_BK, top.row_BK, above_B, off_B)


def _search_chunk(
    chunk_MD: Array, request: ScanRequest, mask: Mask | None
) -> tuple[Scores, RowNumbers, Scores | None]:
    """Scores, rows, and a bound on the scores of the other eligible rows."""
    queries_BD, k, total = request.queries_BD, request.count, len(chunk_MD)
    faiss.omp_set_num_threads(1)
    if mask is None:
        score_BK, row_BK = faiss.knn(
            queries_BD, chunk_MD, min(k, total), metric=faiss.METRIC_INNER_PRODUCT
        )
        return score_BK, row_BK, _bound_on_rest(score_BK, row_BK, total)
    in_ = int(np.count_nonzero(mask))
    if in_ == 0:
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int64), None
    out = total - in_
    if out * len(queries_BD) <= FEW_OUT:
        score_BK, row_BK = faiss.knn(
            queries_BD, chunk_MD, min(k + out, total), metric=faiss.METRIC_INNER_PRODUCT
        )
        last_B = _bound_on_rest(score_BK, row_BK, total)
        row_BK, score_BK = _keep_masked(row_BK, score_BK, mask)
        return score_BK, row_BK, last_B
    if len(queries_BD) < SELECT_QUERIES and in_ > SELECT_SHARE * total:
        score_BK, row_BK = _knn_selected(queries_BD, chunk_MD, mask, min(k, in_))
        return score_BK, row_BK, _bound_on_rest(score_BK, row_BK, in_)
    row_M = np.flatnonzero(mask)
    score_BK, at_BK = faiss.knn(
        queries_BD, chunk_MD[row_M], min(k, in_), metric=faiss.METRIC_INNER_PRODUCT
    )
    return score_BK, np.where(at_BK >= 0, row_M[at_BK], -1), _bound_on_rest(score_BK, at_BK, in_)


def _knn_selected(
    queries_BD: Array, chunk_MD: Array, mask: Mask, k: int
) -> tuple[Scores, RowNumbers]:
    """`faiss.knn` with a selector of rows, which its Python wrapper does not support."""
    bits = np.packbits(mask, bitorder="little")
    score_BK = np.empty((len(queries_BD), k), np.float32)
    row_BK = np.empty((len(queries_BD), k), np.int64)
    faiss.knn_inner_product(
        faiss.swig_ptr(queries_BD),
        faiss.swig_ptr(chunk_MD),
        chunk_MD.shape[1],
        len(queries_BD),
        len(chunk_MD),
        k,
        faiss.swig_ptr(score_BK),
        faiss.swig_ptr(row_BK),
        faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)),
    )
    return score_BK, row_BK


def _rounding_error(request: ScanRequest, longest: float) -> Scores:
    """Bound on the error of float32 scores, for rows of at most that norm."""
    off_B: Scores = request.norm_B * np.float32(ROUNDING * request.queries_BD.shape[1] * longest)
    return off_B


def _bound_on_rest(score_BK: Scores, row_BK: RowNumbers, total: int) -> Scores:
    """Bound on the scores of rows that are left out; -inf if none of `total` is."""
    if row_BK.shape[1] >= total:
        return np.full(len(score_BK), -np.inf, np.float32)
    return np.where(row_BK[:, -1] >= 0, score_BK[:, -1], -np.inf).astype(np.float32)


def _keep_masked(
    row_BK: RowNumbers, score_BK: Scores, mask: Mask | None
) -> tuple[RowNumbers, Scores]:
    """Set rows outside the mask to -1, with a score of -inf."""
    good = row_BK >= 0
    if mask is not None:
        good &= mask[row_BK]
    return np.where(good, row_BK, -1), np.where(good, score_BK, -np.inf).astype(np.float32)


def _best_candidates(
    score_BM: Scores, row_BM: RowNumbers, request: ScanRequest, off_B: Scores
) -> Candidates:
    """The best `request.count` rows of each query, in no particular order."""
    score_BM = np.where(row_BM >= 0, score_BM, -np.inf).astype(np.float32)
    if score_BM.shape[1] <= request.count:
        nothing_B = np.full(len(score_BM), -np.inf, np.float32)
        return Candidates(score_BM, row_BM, nothing_B, off_B)
    order_BM = np.argpartition(-score_BM, request.count, axis=1)
    best_BK, next_B = order_BM[:, : request.count], order_BM[:, request.count]
    above_B = score_BM[np.arange(len(score_BM)), next_B] + off_B
    return Candidates(
        np.take_along_axis(score_BM, best_BK, 1),
        np.take_along_axis(row_BM, best_BK, 1),
        above_B,
        off_B,
    )
