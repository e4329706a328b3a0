"""Search of one part on the CPU: its best rows by a quick score, and a bound on all the others.

Which way a part is searched, by what was quickest of these (`benchmarks.index_filters` compares):

    few rows are wanted          look at those alone, in float32
    sealed, few queries          float16 rows; with most rows wanted, more hits are fetched and the
                                 unwanted dropped, else FAISS is told which rows to look at
    growing, or many queries     float32 rows in chunks that fit the cache
    sealed and approximate       the lists that `braid.index.segments.ann` chose

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
from .float16 import longest
from .growing import Block
from .sealed import Segment, Vectors
from .view import Mask, Part

Scores = npt.NDArray[np.float32]
Found = npt.NDArray[np.int64]

CHUNK = 8192  # rows: a chunk fits the cache, which one block of 100,000 does not
FEW_ROWS = 2048
FEW_SHARE = 0.005
MANY_QUERIES = 12
MOST_WANTED = 0.25
MOST_FETCHED = 1024
FEW_OUT = 256  # these times the queries: fetch as many more, rather than select
SELECT_QUERIES = 16
SELECT_SHARE = 0.1
ROUNDING = 2.0**-23  # of a float32 product and sum, a dimension, at most


@dataclass(frozen=True, slots=True)
class Ask:
    """What is looked for in every part.

    Attributes:
        count: hits wanted of each part, some more than of the whole.
        exact: approximate indexes are passed over.
        careful: float16 is passed over too.
    """

    queries_BD: Array
    norm_B: Scores
    name: str
    count: int
    exact: bool = False
    careful: bool = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows of one part by their quick scores; -1 where there are fewer.

    Attributes:
        above_B: no wanted row that is not here has a true score above this; nothing is known (+inf
            never: -inf) of approximate indexes, and -inf too when all wanted rows are here.
        off_B: a true score differs from the quick one by no more.
    """

    score_BK: Scores
    row_BK: Found
    above_B: Scores
    off_B: Scores

    def lines(self, begin: int, end: int) -> Candidates:
        """Those of some of the queries."""
        part = slice(begin, end)
        return Candidates(
            self.score_BK[part], self.row_BK[part], self.above_B[part], self.off_B[part]
        )


def wanted(part: Part, name: str, filter: Filter | None) -> tuple[Mask | None, int]:
    """bool[count], which rows may be hits, and how many; no mask when all may."""
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


def scan(part: Part, ask: Ask, mask: Mask | None, count: int) -> Candidates:
    """The best wanted rows of a part, of which there are `count`, at least 1."""
    rows, name = part.rows, ask.name
    if count <= max(FEW_ROWS, FEW_SHARE * part.count) and mask is not None:
        return _few(part, ask, np.flatnonzero(mask))
    if isinstance(rows, Block):
        off_B = _off(ask, rows.longest(name))
        return _floats(rows.vectors[name][: part.count], ask, mask, off_B)
    assert isinstance(rows, Segment)
    vectors = rows.vectors[name]
    if mask is not None and vectors.row_N is not None:
        mask = mask[vectors.row_N]
        mask = None if count == len(mask) else mask
    found = _sealed(rows, vectors, ask, mask, count)
    if vectors.row_N is None:
        return found
    row_BK = np.where(found.row_BK >= 0, vectors.row_N[found.row_BK], -1)
    return Candidates(found.score_BK, row_BK, found.above_B, found.off_B)


def _few(part: Part, ask: Ask, row_M: Found) -> Candidates:
    """Every wanted row's score; the best of them."""
    raw_MD = part.rows.raw(ask.name, row_M)
    score_BM = ask.queries_BD @ raw_MD.T
    off_B = _off(ask, longest(raw_MD))
    return _top(score_BM, np.broadcast_to(row_M, score_BM.shape), ask, off_B)


def _sealed(
    segment: Segment, vectors: Vectors, ask: Ask, mask: Mask | None, count: int
) -> Candidates:
    if vectors.approximate is not None and not ask.exact and 2 * count >= len(vectors.raw_ND):
        score_BK, row_BK = vectors.approximate.search(ask.queries_BD, ask.count, mask)
        # With a large k the lists may hold too few: then all rows are looked at.
        if np.count_nonzero(row_BK >= 0, axis=1).min() >= min(ask.count, count):
            nothing_B = np.full(len(score_BK), -np.inf, np.float32)
            return Candidates(score_BK, row_BK, nothing_B, np.full_like(nothing_B, np.inf))
    if vectors.float16 is None:
        segment.asked.add(ask.name)
    float16, off_B = vectors.float16, _off(ask, segment.longest(ask.name))
    many = len(ask.queries_BD) >= MANY_QUERIES
    if float16 is None or not isfinite(float16.lost) or ask.careful or many:
        return _floats(vectors.raw_ND, ask, mask, off_B)
    total, fetch, given = len(vectors.raw_ND), ask.count, mask
    off_B = off_B + ask.norm_B * np.float32(float16.lost)
    if mask is not None and count >= MOST_WANTED * total:
        fetch = ceil(1.3 * ask.count * total / count) + 16
        if fetch <= MOST_FETCHED:
            given = None
        else:
            fetch = ask.count
    score_BK, row_BK = float16.search(ask.queries_BD, min(fetch, total), given)
    above_B = _last(score_BK, row_BK, total if given is None else count) + off_B
    if mask is not None and given is None:
        row_BK, score_BK = _without(row_BK, score_BK, mask)
    return Candidates(score_BK, row_BK, above_B, off_B)


def _floats(raw_ND: Array, ask: Ask, mask: Mask | None, off_B: Scores) -> Candidates:
    """float32 rows, chunk by chunk."""
    scores, found, lasts = [], [], []
    for begin in range(0, len(raw_ND), CHUNK):
        chunk_MD = raw_ND[begin : begin + CHUNK]
        its_mask = None if mask is None else mask[begin : begin + CHUNK]
        score_BK, row_BK, last_B = _chunk(chunk_MD, ask, its_mask)
        if last_B is None:
            continue
        scores.append(score_BK)
        found.append(np.where(row_BK >= 0, row_BK + begin, -1))
        lasts.append(last_B)
    top = _top(np.concatenate(scores, axis=1), np.concatenate(found, axis=1), ask, off_B)
    above_B = np.maximum(top.above_B, np.max(lasts, axis=0) + off_B)
    return Candidates(top.score_BK, top.row_BK, above_B, off_B)


def _chunk(chunk_MD: Array, ask: Ask, mask: Mask | None) -> tuple[Scores, Found, Scores | None]:
    """Scores, rows and the best score that a wanted row not among them may have."""
    queries_BD, k, total = ask.queries_BD, ask.count, len(chunk_MD)
    faiss.omp_set_num_threads(1)
    if mask is None:
        score_BK, row_BK = faiss.knn(
            queries_BD, chunk_MD, min(k, total), metric=faiss.METRIC_INNER_PRODUCT
        )
        return score_BK, row_BK, _last(score_BK, row_BK, total)
    in_ = int(np.count_nonzero(mask))
    if in_ == 0:
        return np.zeros((0, 0), np.float32), np.zeros((0, 0), np.int64), None
    out = total - in_
    if out * len(queries_BD) <= FEW_OUT:
        score_BK, row_BK = faiss.knn(
            queries_BD, chunk_MD, min(k + out, total), metric=faiss.METRIC_INNER_PRODUCT
        )
        last_B = _last(score_BK, row_BK, total)
        row_BK, score_BK = _without(row_BK, score_BK, mask)
        return score_BK, row_BK, last_B
    if len(queries_BD) < SELECT_QUERIES and in_ > SELECT_SHARE * total:
        score_BK, row_BK = _selected(queries_BD, chunk_MD, mask, min(k, in_))
        return score_BK, row_BK, _last(score_BK, row_BK, in_)
    row_M = np.flatnonzero(mask)
    score_BK, at_BK = faiss.knn(
        queries_BD, chunk_MD[row_M], min(k, in_), metric=faiss.METRIC_INNER_PRODUCT
    )
    return score_BK, np.where(at_BK >= 0, row_M[at_BK], -1), _last(score_BK, at_BK, in_)


def _selected(queries_BD: Array, chunk_MD: Array, mask: Mask, k: int) -> tuple[Scores, Found]:
    """`faiss.knn` over the wanted rows only, which its Python form cannot be told."""
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


def _off(ask: Ask, longest: float) -> Scores:
    """How far float32 arithmetic may be off, for rows no longer than that."""
    off_B: Scores = ask.norm_B * np.float32(ROUNDING * ask.queries_BD.shape[1] * longest)
    return off_B


def _last(score_BK: Scores, row_BK: Found, total: int) -> Scores:
    """The score that no row left out exceeds: -inf when none of `total` was left out."""
    if row_BK.shape[1] >= total:
        return np.full(len(score_BK), -np.inf, np.float32)
    return np.where(row_BK[:, -1] >= 0, score_BK[:, -1], -np.inf).astype(np.float32)


def _without(row_BK: Found, score_BK: Scores, mask: Mask | None) -> tuple[Found, Scores]:
    """Rows that are not wanted become -1, and score -inf."""
    good = row_BK >= 0
    if mask is not None:
        good &= mask[row_BK]
    return np.where(good, row_BK, -1), np.where(good, score_BK, -np.inf).astype(np.float32)


def _top(score_BM: Scores, row_BM: Found, ask: Ask, off_B: Scores) -> Candidates:
    """The best `ask.count` of each line, in no order."""
    score_BM = np.where(row_BM >= 0, score_BM, -np.inf).astype(np.float32)
    if score_BM.shape[1] <= ask.count:
        nothing_B = np.full(len(score_BM), -np.inf, np.float32)
        return Candidates(score_BM, row_BM, nothing_B, off_B)
    order_BM = np.argpartition(-score_BM, ask.count, axis=1)
    best_BK, next_B = order_BM[:, : ask.count], order_BM[:, ask.count]
    above_B = score_BM[np.arange(len(score_BM)), next_B] + off_B
    return Candidates(
        np.take_along_axis(score_BM, best_BK, 1),
        np.take_along_axis(row_BM, best_BK, 1),
        above_B,
        off_B,
    )
