"""Approximate (IVF) index of one large segment, tuned and checked for recall.

Up to SMALL rows the index is an inverted file of float16 rows, up to LARGE of 8-bit rows, and above
of product-quantised rows. The rows that the lists return are rescored from their float32 vectors.
`nprobe` is raised until recall@10 on half of the sample queries reaches the target plus a margin;
the other half, which is not used for tuning, must then reach the target. If no `nprobe` does,
search stays exact.

Shapes: B queries, D dimensions, N rows, K hits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..store import Array

log = logging.getLogger(__name__)

FROM_ROWS = 65_536  # below, an exact search of float16 rows takes a millisecond or two
SMALL, LARGE = 1 << 19, 1 << 22
TRAIN_PER_LIST = 64
SAMPLE = 400  # queries for tuning and checking
MARGIN = 0.01  # recall above the target while tuning
AT = 10
REFINE = 4  # times k hits are rescored
MOST_LISTS = 0.25  # share of the lists; with more, exact search is as fast
SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Approximate:
    """An immutable inverted file.

    Attributes:
        kind: "ivf-fp16", "ivf-sq8" or "ivf-pq".
        recall: recall@10 against exact search, on queries that were not used for tuning.
    """

    index: Any  # faiss.IndexIVF
    kind: str
    nprobe: int
    recall: float

    def search(
        self, queries_BD: Array, k: int, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Approximate scores and rows, [B, K]; row -1 where there are fewer."""
        faiss.omp_set_num_threads(1)
        selector, bits = None, None
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        params = faiss.SearchParametersIVF(nprobe=self.nprobe, sel=selector)  # type: ignore[call-arg]
        score_BK, row_BK = self.index.search(
            queries_BD, min(REFINE * k, self.index.ntotal), params=params
        )
        return score_BK, row_BK

    def dumps(self) -> bytes:
        faiss_bytes = faiss.serialize_index(self.index).tobytes()
        head = f"{self.kind} {self.nprobe} {self.recall}\n".encode()
        return head + faiss_bytes


def load_approximate(path: Path) -> Approximate | None:
    """The inverse of `dumps`; None if FAISS rejects the file. Check its digest first."""
    try:
        head, rest = path.read_bytes().split(b"\n", 1)
        kind, nprobe, recall = head.decode().split()
        index = faiss.deserialize_index(np.frombuffer(rest, np.uint8))
    except (OSError, ValueError, RuntimeError) as error:
        log.warning("%s: %s", path, error)
        return None
    return Approximate(index, kind, int(nprobe), float(recall))


def approximate(raw_ND: Array, recall: float) -> Approximate | None:
    """An index that reaches the recall; None if there is none or exact search is fast enough."""
    if recall >= 1 or len(raw_ND) < FROM_ROWS:
        return None
    rng = np.random.default_rng(SEED)
    made = _train(raw_ND, rng)
    queries_BD, truth_BK = _sample(raw_ND, rng)
    half = len(queries_BD) // 2
    most = max(1, int(MOST_LISTS * made.index.nlist))
    nprobe = 1
    while nprobe <= most:
        tried = Approximate(made.index, made.kind, nprobe, 0.0)
        if _recall(tried, raw_ND, queries_BD[:half], truth_BK[:half]) >= min(1.0, recall + MARGIN):
            held = _recall(tried, raw_ND, queries_BD[half:], truth_BK[half:])
            if held >= recall:
                return Approximate(made.index, made.kind, nprobe, round(held, 4))
        nprobe = nprobe + max(1, nprobe // 2)
    log.warning(
        "%d rows: no index with at most %d lists a query reaches recall %g: search stays exact",
        len(raw_ND),
        most,
        recall,
    )
    return None


def _train(raw_ND: Array, rng: np.random.Generator) -> Approximate:
    count, dim = raw_ND.shape
    nlist = 1 << int(np.log2(4 * np.sqrt(count)))
    coarse: Any = faiss.IndexFlatIP(dim)
    index: Any
    metric = faiss.METRIC_INNER_PRODUCT
    if count <= SMALL:
        kind = "ivf-fp16"
        index = faiss.IndexIVFScalarQuantizer(
            coarse, dim, nlist, faiss.ScalarQuantizer.QT_fp16, metric, False
        )
    elif count <= LARGE or dim % 4:
        kind = "ivf-sq8"
        index = faiss.IndexIVFScalarQuantizer(
            coarse, dim, nlist, faiss.ScalarQuantizer.QT_8bit, metric, False
        )
    else:
        kind = "ivf-pq"
        index = faiss.IndexIVFPQ(coarse, dim, nlist, dim // 4, 8, metric)
    index.cp.spherical = True
    index.cp.seed = SEED + 1
    faiss.omp_set_num_threads(1)
    chosen = rng.choice(count, min(count, TRAIN_PER_LIST * nlist), replace=False)
    index.train(np.ascontiguousarray(raw_ND[np.sort(chosen)]))
    for begin in range(0, count, FROM_ROWS):
        index.add(np.ascontiguousarray(raw_ND[begin : begin + FROM_ROWS]))
    index.own_fields = True
    coarse.this.disown()
    return Approximate(index, kind, 1, 0.0)


def _sample(raw_ND: Array, rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.int64]]:
    """Queries as far from sampled rows as the nearest other row is; and their true hits."""
    chosen = np.sort(rng.choice(len(raw_ND), min(SAMPLE, len(raw_ND)), replace=False))
    seeds_BD = np.array(raw_ND[chosen])
    _, near_BK = _exact(raw_ND, seeds_BD, 2)
    step_BD = raw_ND[near_BK[:, 1]] - seeds_BD  # to the nearest other row
    noise_BD = rng.standard_normal(seeds_BD.shape).astype(np.float32)
    noise_BD *= np.linalg.norm(step_BD, axis=1, keepdims=True) / np.linalg.norm(
        noise_BD, axis=1, keepdims=True
    )
    queries_BD = seeds_BD + noise_BD
    queries_BD /= np.maximum(np.linalg.norm(queries_BD, axis=1, keepdims=True), 1e-12)
    order = rng.permutation(len(queries_BD))
    queries_BD = np.ascontiguousarray(queries_BD[order])
    return queries_BD, _exact(raw_ND, queries_BD, AT)[1]


def _exact(
    raw_ND: Array, queries_BD: Array, k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    scores, rows = [], []
    faiss.omp_set_num_threads(1)
    for begin in range(0, len(raw_ND), FROM_ROWS):
        chunk_MD = np.ascontiguousarray(raw_ND[begin : begin + FROM_ROWS])
        score_BK, row_BK = faiss.knn(
            queries_BD, chunk_MD, min(k, len(chunk_MD)), metric=faiss.METRIC_INNER_PRODUCT
        )
        scores.append(score_BK)
        rows.append(row_BK + begin)
    score_BK, row_BK = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
    best_BK = np.argsort(-score_BK, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score_BK, best_BK, 1), np.take_along_axis(row_BK, best_BK, 1)


def _recall(
    index: Approximate, raw_ND: Array, queries_BD: Array, truth_BK: npt.NDArray[np.int64]
) -> float:
    _, row_BK = index.search(queries_BD, AT)
    matched = 0
    for query_D, rows, truth in zip(queries_BD, row_BK, truth_BK, strict=True):
        rows = rows[rows >= 0]
        best = rows[np.argsort(-(raw_ND[rows] @ query_D))[: truth_BK.shape[1]]]
        matched += len(np.intersect1d(best, truth))
    return matched / truth_BK.size
