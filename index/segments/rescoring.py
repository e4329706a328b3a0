"""Exact rescoring of candidates, and the check that no other row can be a hit.

Fast scores (8-bit rows, float32 sums in another order) only select the candidates that are rescored
in float64. Each part gives an upper bound on the scores of the rows that it left out. An answer is
proven if its last hit scores at least as high as all these bounds; the store repeats the search for
an answer that is not, with more candidates and then by float32 rows.

Shapes: B queries, D dimensions, K candidates of a part, N pairs of a query and a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..store import Array
from .scan import Candidates, Scores
from .view import Part


@dataclass(frozen=True, slots=True)
class Answer:
    """Part, row and exact score of each hit, best first; `proven`: no other row scores higher."""

    hits: list[tuple[Part, int, float]]
    proven: bool


def _highest(rows: Candidates) -> Scores:
    """Upper bound of each true score."""
    # 0 where there is no row: -inf + inf would be NaN.
    return np.where(rows.row_BK >= 0, rows.score_BK, np.float32(0)) + rows.off_B[:, None]


def merge(
    queries_BD: Array, name: str, k: int, scanned: Sequence[tuple[Part, Candidates]]
) -> list[Answer]:
    """The k best rows of all parts for each query. Equal scores are ordered by id."""
    if not scanned:
        return [Answer([], True) for _ in queries_BD]
    score_BN = np.concatenate([rows.score_BK for _, rows in scanned], axis=1)
    low_BN = np.concatenate([rows.score_BK - rows.off_B[:, None] for _, rows in scanned], axis=1)
    real_BN = np.concatenate([rows.row_BK >= 0 for _, rows in scanned], axis=1)
    if score_BN.shape[1] > k:
        # A score of an approximate index has an error of inf: it prunes nothing and stays.
        high_BN = np.concatenate([_highest(rows) for _, rows in scanned], axis=1)
        low_BN = np.where(real_BN, low_BN, -np.inf)
        sure_B = -np.partition(-low_BN, k - 1, axis=1)[:, k - 1]
        real_BN &= high_BN >= sure_B[:, None]
    exact_BN = np.full(score_BN.shape, -np.inf)
    begin = 0
    for part, rows in scanned:
        end = begin + rows.row_BK.shape[1]
        b_N, at_N = np.nonzero(real_BN[:, begin:end])
        rows_ND = part.rows.raw(name, rows.row_BK[b_N, at_N]).astype(np.float64)
        query_ND = queries_BD[b_N].astype(np.float64)
        exact_BN[b_N, begin + at_N] = np.einsum("nd,nd->n", rows_ND, query_ND)
        begin = end
    above_B = np.max([rows.above_B for _, rows in scanned], axis=0)
    row_BN = np.concatenate([rows.row_BK for _, rows in scanned], axis=1)
    of_N = np.repeat(np.arange(len(scanned)), [rows.row_BK.shape[1] for _, rows in scanned])
    answers = []
    for b, above in enumerate(above_B.tolist()):
        some = np.flatnonzero(exact_BN[b] > -np.inf)
        best = some[np.argsort(-exact_BN[b][some], kind="stable")[:k]]
        hits = [
            (scanned[of][0], row, score)
            for of, row, score in zip(
                of_N[best].tolist(),
                row_BN[b, best].tolist(),
                exact_BN[b, best].tolist(),
                strict=True,
            )
        ]
        hits.sort(key=lambda hit: (-hit[2], hit[0].rows.id(hit[1])))
        least = hits[-1][2] if len(hits) == k else -np.inf
        answers.append(Answer(hits, above <= least))
    return answers
