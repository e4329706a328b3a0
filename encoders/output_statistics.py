"""Statistics of a version's outputs as sums: small, mergeable, storable as JSON.

Tallies of the same version, from different records, workers or times, add up to the tally of all of
them. `braid.encoders.drift` compares statistics derived from the sums. Imports numpy only.

Shapes: B records, D the shared space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .types import Embedding, TaskPrediction

MAX_LABELS = 256
"""Labels of one task that are counted by name; the rest are one. A label in msgpack or JSON is tens
of bytes, a tally goes over Kafka every few seconds."""
OTHER = "(other)"
NONE = "(none)"


@dataclass(slots=True)
class Moments:
    """Count, sum and sum of squares of numbers."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    def merge(self, other: Moments) -> None:
        self.count += other.count
        self.total += other.total
        self.squares += other.squares

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def sd(self) -> float:
        """The standard deviation (population: divided by the count)."""
        if not self.count:
            return 0.0
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))


@dataclass(slots=True)
class TaskTally:
    """One task: counts of predicted labels, and moments of confidences and of predicted numbers."""

    labels: Counter[str] = field(default_factory=Counter)
    confidence: Moments = field(default_factory=Moments)
    value: Moments = field(default_factory=Moments)

    def add(self, prediction: TaskPrediction) -> None:
        if prediction.label is not None:
            self._count(prediction.label, 1)
        if prediction.labels is not None:
            for label in prediction.labels or (NONE,):
                self._count(label, 1)
        if prediction.prob is not None:
            self.confidence.add(prediction.prob)
        if prediction.value is not None:
            self.value.add(prediction.value)

    def merge(self, other: TaskTally) -> None:
        for label, count in other.labels.items():
            self._count(label, count)
        self.confidence.merge(other.confidence)
        self.value.merge(other.value)

    def _count(self, label: str, count: int) -> None:
        known = label in self.labels or len(self.labels) < MAX_LABELS
        self.labels[label if known else OTHER] += count


@dataclass(slots=True, eq=False)
class Tally:
    """Sums over the records of one model version.

    Attributes:
        count: of records.
        vectors_D: sum of their fused vectors; None before the first.
        norms: sum of those vectors' lengths.
        present: how many had each modality.
        tasks: by task.
    """

    count: int = 0
    vectors_D: NDArray[np.float64] | None = None
    norms: float = 0.0
    present: Counter[str] = field(default_factory=Counter)
    tasks: dict[str, TaskTally] = field(default_factory=dict)

    def add(self, embedding: Embedding) -> None:
        """Count one record."""
        self.add_all([embedding])

    def add_all(self, embeddings: Sequence[Embedding]) -> None:
        """Count the records of a batch."""
        if not embeddings:
            return
        fused_BD = np.stack([embedding.fused for embedding in embeddings]).astype(np.float64)
        self._add_vectors(fused_BD.sum(0))
        self.norms += float(np.sqrt(np.einsum("bd,bd->b", fused_BD, fused_BD)).sum())
        self.count += len(embeddings)
        self.present.update(chain.from_iterable(embedding.by for embedding in embeddings))
        for embedding in embeddings:
            for name, prediction in embedding.tasks.items():
                if name not in self.tasks:
                    self.tasks[name] = TaskTally()
                self.tasks[name].add(prediction)

    def merge(self, other: Tally) -> None:
        """Count what `other` has counted.

        Raises:
            ValueError: its vectors are of another dimension; nothing is changed then.
        """
        if other.vectors_D is not None:
            self._add_vectors(other.vectors_D)
        self.count += other.count
        self.norms += other.norms
        self.present.update(other.present)
        for name, other_task in other.tasks.items():
            self.tasks.setdefault(name, TaskTally()).merge(other_task)

    # What is derived.

    @property
    def mean_D(self) -> NDArray[np.float64] | None:  # noqa: N802 (a shape suffix)
        """The mean vector; None where nothing is counted."""
        return None if self.vectors_D is None or not self.count else self.vectors_D / self.count

    @property
    def norm(self) -> float:
        """The vectors' mean length: 1 for unit vectors."""
        return self.norms / self.count if self.count else 0.0

    @property
    def concentration(self) -> float:
        """The mean vector's length: 1 when all vectors are the same, near 0 when they point
        everywhere (the mean resultant length of directional statistics)."""
        mean_D = self.mean_D
        return 0.0 if mean_D is None else float(np.linalg.norm(mean_D))

    def shares(self, task: str) -> dict[str, float]:
        """Each predicted label's share of all labels predicted for the task, largest first."""
        labels = self.tasks[task].labels if task in self.tasks else Counter[str]()
        total = labels.total()
        return {label: count / total for label, count in labels.most_common()}

    def missing(self, modality: str) -> float:
        """The share of records without this modality."""
        return 1.0 - self.present[modality] / self.count if self.count else 0.0

    # As plain values.

    def to_plain(self) -> dict[str, Any]:
        """Maps, lists, strings and numbers. Sums of vectors keep six decimals."""
        vectors = None if self.vectors_D is None else [round(float(v), 6) for v in self.vectors_D]
        return {
            "count": self.count,
            "vectors": vectors,
            "norms": self.norms,
            "present": dict(self.present),
            "tasks": {
                name: {
                    "labels": dict(task.labels),
                    "confidence": _plain(task.confidence),
                    "value": _plain(task.value),
                }
                for name, task in self.tasks.items()
            },
        }

    @classmethod
    def from_plain(cls, raw: object) -> Tally:
        """The inverse of `to_plain`.

        Raises:
            ValueError: `raw` is not a tally.
        """
        try:
            return cls._from_map(raw)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a tally: {error!r}") from None

    @classmethod
    def _from_map(cls, raw: Any) -> Tally:
        vectors_D = None
        if raw["vectors"] is not None:
            vectors_D = np.array(raw["vectors"], dtype=np.float64)
            if vectors_D.ndim != 1 or not np.isfinite(vectors_D).all():
                raise ValueError("not a tally: vectors is not a list of finite numbers")
        return cls(
            count=_count(raw["count"]),
            vectors_D=vectors_D,
            norms=_finite(raw["norms"]),
            present=_counter(raw["present"]),
            tasks={
                str(name): TaskTally(
                    labels=_counter(raw_task["labels"]),
                    confidence=_moments(raw_task["confidence"]),
                    value=_moments(raw_task["value"]),
                )
                for name, raw_task in raw["tasks"].items()
            },
        )

    def _add_vectors(self, sum_D: NDArray[np.float64]) -> None:
        if self.vectors_D is None:
            self.vectors_D = np.zeros_like(sum_D, dtype=np.float64)
        if self.vectors_D.shape != sum_D.shape:
            raise ValueError(f"vectors of {len(sum_D)} values, not of {len(self.vectors_D)}")
        self.vectors_D = self.vectors_D + sum_D


def _plain(moments: Moments) -> list[int | float]:
    return [moments.count, moments.total, moments.squares]


def _moments(raw: Any) -> Moments:
    count, total, squares = raw
    return Moments(_count(count), _finite(total), _finite(squares))


def _counter(raw: Mapping[Any, Any]) -> Counter[str]:
    return Counter({str(name): _count(count) for name, count in raw.items()})


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"not a tally: a count must be a number from 0 on, got {value!r:.60}")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"not a tally: a sum must be a finite number, got {value!r:.60}")
    return float(value)
