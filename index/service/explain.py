"""Why a hit matched: its score by modality, and the score that unrelated records reach.

Shapes: S sampled records, D dimensions.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from ..store import FUSED, Array, Row, VectorStore

SAMPLE = 1000  # records; a store of fewer is compared as a whole
LEAST = 30  # sampled records below which there is no cut-off
EVERY_S = 30.0
CHANGED = 0.1  # share of records that makes a new sample at once


def scores_by_modality(row: Row, query_D: Array) -> dict[str, float]:
    """The query's inner product with each of the record's own vectors, in [-1, 1]."""
    return {
        name: float(vector_D @ query_D) for name, vector_D in row.vectors.items() if name != FUSED
    }


def cutoff_of(scores_S: Array, count: float) -> float | None:
    """The score from which a hit is a good match: the best of `count` unrelated ones by chance.

    It is the mean of the sample's scores plus sqrt(2 ln count) of their standard deviations, the
    expected maximum of so many normally distributed values (Cramer, Mathematical Methods of
    Statistics, 28.6). None above 1, the highest score: where much of the sample is a match, it does
    not tell what unrelated records score.
    """
    cutoff = float(scores_S.mean() + scores_S.std() * math.sqrt(2 * math.log(count)))
    return cutoff if cutoff <= 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    """Vectors of a sample of a store's records.

    Attributes:
        count: the store's records when it was drawn.
        rows: the sampled records.
        by: vector name -> float32[S, D] of those that have it.
        until: when it is due to be drawn again.
    """

    count: int
    rows: int
    by: Mapping[str, Array]
    until: float


@dataclass(slots=True)
class _Slot:
    """A store's sample, and the lock of the thread that draws the next one."""

    sample: _Sample | None = None
    drawing: threading.Lock = field(default_factory=threading.Lock)


class UnrelatedScores:
    """Cut-offs by a sample of each store's records, kept while few of them change. Thread-safe.

    One thread draws a sample; others use the one before, if there is one, and do not wait.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: WeakKeyDictionary[VectorStore, _Slot] = WeakKeyDictionary()

    def cutoff(self, store: VectorStore, vector: str, query_D: Array) -> float | None:
        """See `cutoff_of`; None also with fewer than LEAST records that have this vector."""
        sample = self._sample(store)
        vectors_SD = sample.by.get(vector)
        if vectors_SD is None or len(vectors_SD) < LEAST:
            return None
        count = len(store) * len(vectors_SD) / sample.rows  # records with this vector, about
        return cutoff_of(vectors_SD @ query_D, max(count, len(vectors_SD)))

    def _sample(self, store: VectorStore) -> _Sample:
        with self._lock:
            slot = self._slots.setdefault(store, _Slot())
        before = slot.sample
        if before is not None and not self._due(before, store):
            return before
        if slot.drawing.acquire(blocking=before is None):
            try:
                if slot.sample is before:  # no other thread has drawn it meanwhile
                    slot.sample = self._draw(store)
            finally:
                slot.drawing.release()
        assert slot.sample is not None
        return slot.sample

    def _due(self, sample: _Sample, store: VectorStore) -> bool:
        changed = abs(len(store) - sample.count)
        return changed > CHANGED * sample.count or self._clock() >= sample.until

    def _draw(self, store: VectorStore) -> _Sample:
        count, rows = len(store), store.sample(SAMPLE)
        by: dict[str, list[Array]] = {}
        for row in rows:
            for name, vector_D in row.vectors.items():
                by.setdefault(name, []).append(vector_D)
        return _Sample(
            count=count,
            rows=len(rows),
            by={name: np.stack(vectors) for name, vectors in by.items()},
            until=self._clock() + EVERY_S,
        )
