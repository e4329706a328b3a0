"""Drift: distances between a version's outputs on reference records and on recent ones.

A reference (records that the version was not trained on) and a window (the records of some minutes)
are two `braid.encoders.output_statistics.Tally`s. Each statistic is a distance between them. It is
drift if it is above its limit and above the deviation expected by chance for these numbers of
records.

Shapes: D the shared space, K labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .output_statistics import OTHER, Moments, Tally

SIGMAS = 3.0
"""Standard deviations of chance; without drift, about one statistic in a thousand is above them."""
SMOOTH = 0.5
"""Added to each label's count (Jeffreys), so that an absent label gives no infinite distance."""
SPREAD = 0.05
"""The least standard deviation that a shift is measured in (for means below 1: this share of the
mean). A model with constant confidence or constant vectors has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of the statistics; see `compare` for what each measures.

    Attributes:
        labels: of the population stability index; 0.25 is its customary threshold.
        confidence: of the shift of the mean confidence (of a number: of its mean), in the
            reference's standard deviations. 0.5 is Cohen's "medium".
        embedding: of the shift of the mean vector, in the reference's spread.
        missing: of the change of a modality's missing rate, 0.1 being ten in a hundred.
        min_records: records that a window needs; with fewer, nothing counts as drift.
    """

    labels: float = 0.25
    confidence: float = 0.5
    embedding: float = 0.25
    missing: float = 0.1
    min_records: int = 500

    def __post_init__(self) -> None:
        for name in ("labels", "confidence", "embedding", "missing"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"drift.{name} must be a number above 0, is {value}")
        if self.min_records < 1 or self.min_records != int(self.min_records):
            raise ValueError(
                f"drift.min_records must be a whole number from 1 on, is {self.min_records}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistic:
    """One distance between a reference and a window.

    Attributes:
        name: "labels TASK", "confidence TASK", "value TASK", "embedding", "missing MODALITY".
        value: see `compare`.
        limit: the one of `Limits`.
        chance: `SIGMAS` standard deviations of the statistic without drift.
        exceeds: whether it is above both, in a window of enough records.
    """

    name: str
    value: float
    limit: float
    chance: float
    exceeds: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2g}, limit {self.limit:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """All statistics of a window; `enough`: whether it had `Limits.min_records` records."""

    statistics: tuple[Statistic, ...]
    enough: bool

    @property
    def exceeded(self) -> tuple[Statistic, ...]:
        return tuple(one for one in self.statistics if one.exceeds)

    def __str__(self) -> str:
        """The statistics above their limits, such as "labels colour 0.41, limit 0.25"."""
        return "; ".join(map(str, self.exceeded)) or "none"


def compare(reference: Tally, window: Tally, limits: Limits) -> Drift:
    """Each statistic of `window` against `reference`, n and m records.

    - labels: the population stability index sum_k (p_k - q_k) ln(p_k / q_k) of the shares of
      predicted labels (the symmetric Kullback-Leibler divergence of Kullback and Leibler 1951).
      Without drift it is about (1/n + 1/m) times a chi-square of K - 1 degrees of freedom
      (Yurdakul and Naranjo 2020, "Statistical properties of the population stability index"): its
      expectation is subtracted, so that few records or many labels are not taken for drift.
    - confidence, value: |difference of the means| / the reference's standard deviation. Without
      drift its standard deviation is sqrt(1/n + 1/m).
    - embedding: length of the difference of the mean vectors / the reference's spread, which is
      sqrt(|v|² - |mean|²), the root mean square distance of a vector from the mean. The expectation
      of its square without drift, 1/n + 1/m, is subtracted from the square; its standard deviation
      is at most sqrt(2) times that, when all variation is along one direction.
    - missing: |difference of the rates|, of each modality that either has seen.

    Raises:
        ValueError: their vectors are of different dimensions.
    """
    enough = window.count >= limits.min_records
    statistics = tuple(
        Statistic(
            name=name,
            value=value,
            limit=limit,
            chance=chance,
            exceeds=enough and value > max(limit, chance),
        )
        for name, value, limit, chance in _all(reference, window, limits)
    )
    return Drift(statistics=statistics, enough=enough)


def _all(
    reference: Tally, window: Tally, limits: Limits
) -> Iterator[tuple[str, float, float, float]]:
    """Name, value, limit and chance of each statistic."""
    if not reference.count or not window.count:
        return
    for task in sorted(reference.tasks.keys() & window.tasks.keys()):
        known, now = reference.tasks[task], window.tasks[task]
        if known.labels and now.labels:
            yield f"labels {task}", *_labels(known.labels, now.labels, limits.labels)
        if known.confidence.count and now.confidence.count:
            yield f"confidence {task}", *_shift(known.confidence, now.confidence, limits.confidence)
        if known.value.count and now.value.count:
            yield f"value {task}", *_shift(known.value, now.value, limits.confidence)
    noise = 1.0 / reference.count + 1.0 / window.count
    yield "embedding", _moved(reference, window, noise), limits.embedding, _root(2**0.5, noise)
    for modality in sorted(reference.present.keys() | window.present.keys()):
        gap = abs(reference.missing(modality) - window.missing(modality))
        had = reference.present[modality] + window.present[modality]
        rate = had / (reference.count + window.count)
        chance = SIGMAS * math.sqrt(rate * (1.0 - rate) * noise)
        yield f"missing {modality}", gap, limits.missing, chance


def _labels(known: Counter[str], now: Counter[str], limit: float) -> tuple[float, float, float]:
    known, now = _folded(known, now), _folded(now, known)
    names = sorted(known.keys() | now.keys())
    noise = 1.0 / known.total() + 1.0 / now.total()
    p_K, q_K = (
        np.array([labels[name] for name in names], dtype=np.float64) + SMOOTH
        for labels in (known, now)
    )
    p_K, q_K = p_K / p_K.sum(), q_K / q_K.sum()
    index = float(((p_K - q_K) * np.log(p_K / q_K)).sum())
    degrees = len(names) - 1
    return max(0.0, index - degrees * noise), limit, SIGMAS * math.sqrt(2 * degrees) * noise


def _folded(labels: Counter[str], other: Counter[str]) -> Counter[str]:
    """`labels` with those that `other` lacks counted as `OTHER`, if `other` uses `OTHER`."""
    if OTHER not in other:
        return labels
    folded: Counter[str] = Counter()
    for label, count in labels.items():
        folded[label if label in other else OTHER] += count
    return folded


def _shift(known: Moments, now: Moments, limit: float) -> tuple[float, float, float]:
    noise = 1.0 / known.count + 1.0 / now.count
    spread = max(known.sd, SPREAD * min(1.0, max(abs(known.mean), 1e-6)))
    return abs(known.mean - now.mean) / spread, limit, SIGMAS * math.sqrt(noise)


def _moved(reference: Tally, window: Tally, noise: float) -> float:
    mean_D, now_D = reference.mean_D, window.mean_D
    assert mean_D is not None
    assert now_D is not None
    if mean_D.shape != now_D.shape:
        raise ValueError(f"the window's vectors have {len(now_D)} values, not {len(mean_D)}")
    spread = math.sqrt(max(reference.norm**2 - reference.concentration**2, SPREAD**2))
    return _excess(float(np.linalg.norm(now_D - mean_D)) / spread, noise)


def _excess(value: float, noise: float) -> float:
    return math.sqrt(max(0.0, value**2 - noise))


def _root(factor: float, noise: float) -> float:
    return math.sqrt(SIGMAS * factor * noise)
