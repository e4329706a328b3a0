"""8-bit copy of vectors for exact search, with a bound on its error.

A row is an integer multiple, from -127 to 127, of each dimension's scale: the largest value of any
row / 127. The scales are multiplied into the query, so that all dimensions share FAISS's kernel for
uniform integers, and a dimension with large values costs the others no precision. The error of a
score is at most |q| · max |x - int8(x)|, measured when the rows are added, and rounding. A search
needs the bound to choose the rows to rescore and to prove its answer
(`braid.index.segments.rescoring`). A search of one query is bound by the bytes that it reads: 8-bit
rows are a quarter of float32 rows.

Shapes: B queries, D dimensions, N rows, K hits.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..store import Array
from .huge_pages import collapse

STEP = 16_384
UNDERFLOW = 1e-30  # squares below it may lack digits in float32
LARGEST = 127  # the integer of a dimension's largest value
# FAISS decodes byte b as first + (b + 0.5) / 255 * width: the integer b - 127.
FIRST, WIDTH = -127.5, 255.0


def longest(raw_ND: Array) -> float:
    """The largest norm of these rows."""
    square = 0.0
    for begin in range(0, len(raw_ND), STEP):
        chunk_MD = raw_ND[begin : begin + STEP]
        most = _largest_square(chunk_MD)
        if most < UNDERFLOW:
            most = _largest_square(chunk_MD.astype(np.float64))
        square = max(square, most)
    return float(np.sqrt(square))


class Int8Index:
    """An immutable `IndexScalarQuantizer` of 8 bits; D bytes a row.

    Attributes:
        lost: bound on the error of a score, for a query of norm 1.
        longest: upper bound on the norms of the rows and of their 8-bit copies.
    """

    def __init__(self, raw_ND: Array) -> None:
        dim = int(raw_ND.shape[1])
        quantizer = faiss.ScalarQuantizer
        self._index = faiss.IndexScalarQuantizer(
            dim, quantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT
        )
        faiss.omp_set_num_threads(1)
        self._index.train(np.zeros((1, dim), np.float32))
        faiss.copy_array_to_vector(np.array([FIRST, WIDTH], np.float32), self._index.sq.trained)
        self._scale_D = _scales(raw_ND)
        lost = length = 0.0
        for begin in range(0, len(raw_ND), STEP):
            rows_MD = raw_ND[begin : begin + STEP]
            copy_MD = np.rint(rows_MD / self._scale_D)
            self._index.add(copy_MD)
            copy_MD *= self._scale_D
            length = max(length, longest(rows_MD), longest(copy_MD))
            copy_MD -= rows_MD
            lost = max(lost, longest(copy_MD))
        relative = dim * 2.0**-23  # bound on the rounding of D products and sums in float32
        self.longest = length * (1 + relative)
        # FAISS's sums have terms of up to |q| * scale * WIDTH each, before `first` is taken off.
        terms = WIDTH * float(self._scale_D.max()) * dim**0.5
        self.lost = lost * (1 + relative) + relative * (length + terms)
        # A query reads all rows: 8.1 ms of CPU time instead of 12.9 for 400,000 x 256 in float16.
        collapse(int(self._index.codes.data()), self.nbytes)

    @property
    def nbytes(self) -> int:
        return int(self._index.ntotal * self._index.code_size)

    def search(
        self, queries_BD: Array, k: int, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and rows, [B, K], best first; -1 where there are fewer.

        Args:
            mask: bool[N], the only rows that may be hits.
        """
        faiss.omp_set_num_threads(1)  # a setting of each thread
        queries_BD = queries_BD * self._scale_D
        if mask is None:
            return self._index.search(queries_BD, k)
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        params = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        return self._index.search(queries_BD, k, params=params)


def _scales(raw_ND: Array) -> Array:
    """float32[D], by which 8-bit values are multiplied; 1 for a dimension of zeros."""
    largest_D = np.zeros(raw_ND.shape[1], np.float32)
    for begin in range(0, len(raw_ND), STEP):
        chunk_MD = raw_ND[begin : begin + STEP]
        np.maximum(largest_D, np.abs(chunk_MD).max(axis=0), out=largest_D)
    scale_D = largest_D / np.float32(LARGEST)
    # Below the smallest normal number a quotient would be rounded coarsely, or infinite.
    return np.where(scale_D >= np.finfo(np.float32).tiny, scale_D, np.float32(1))


def _largest_square(rows_MD: npt.NDArray[Any]) -> float:
    return float(np.einsum("nd,nd->n", rows_MD, rows_MD).max())
