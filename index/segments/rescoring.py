"""Candidates of all parts become the answer: scored again exactly, and proven where it can be.

Quick scores (float16, float32 sums in another order) only choose whom to score exactly. Each part
says how high a row that it left out may score; an answer whose last hit is at least as high as all
of those is proven. One that is not is looked for again, with more candidates and more care.

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
    """Part, row and exact score of each hit, best first; whether no better row can exist."""

    hits: list[tuple[Part, int, float]]
    proven: bool


def _highest(its: Candidates) -> Scores:
    """How high each true score may be."""
    # Not a sum where there is no row: -inf + inf is no number.
    return np.where(its.row_BK >= 0, its.score_BK, np.float32(0)) + its.off_B[:, None]


def merge(
    queries_BD: Array, name: str, k: int, found: Sequence[tuple[Part, Candidates]]
) -> list[Answer]:
    """The k best of all parts for each query. Equal scores come in the order of ids."""
    if not found:
        return [Answer([], True) for _ in queries_BD]
    score_BN = np.concatenate([its.score_BK for _, its in found], axis=1)
    low_BN = np.concatenate([its.score_BK - its.off_B[:, None] for _, its in found], axis=1)
    real_BN = np.concatenate([its.row_BK >= 0 for _, its in found], axis=1)
    if score_BN.shape[1] > k:
        # Off by inf (an approximate index): it neither prunes others nor is pruned.
        high_BN = np.concatenate([_highest(its) for _, its in found], axis=1)
        low_BN = np.where(real_BN, low_BN, -np.inf)
        sure_B = -np.partition(-low_BN, k - 1, axis=1)[:, k - 1]
        real_BN &= high_BN >= sure_B[:, None]
    exact_BN = np.full(score_BN.shape, -np.inf)
    begin = 0
    for part, its in found:
        end = begin + its.row_BK.shape[1]
        b_N, at_N = np.nonzero(real_BN[:, begin:end])
        rows_ND = part.rows.raw(name, its.row_BK[b_N, at_N]).astype(np.float64)
        given_ND = queries_BD[b_N].astype(np.float64)
        exact_BN[b_N, begin + at_N] = np.einsum("nd,nd->n", rows_ND, given_ND)
        begin = end
    above_B = np.max([its.above_B for _, its in found], axis=0)
    row_BN = np.concatenate([its.row_BK for _, its in found], axis=1)
    of_N = np.repeat(np.arange(len(found)), [its.row_BK.shape[1] for _, its in found])
    answers = []
    for b, above in enumerate(above_B.tolist()):
        some = np.flatnonzero(exact_BN[b] > -np.inf)
        best = some[np.argsort(-exact_BN[b][some], kind="stable")[:k]]
        hits = [
            (found[of][0], row, score)
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
