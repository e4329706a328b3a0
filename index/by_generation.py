"""Prometheus metrics of a process that serves or feeds several generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

GENERATION = "generation"

T = TypeVar("T")
M = TypeVar("M", Counter, Gauge, Histogram, Summary)


class ByGeneration(Generic[T]):
    """A registry, and of each generation that is told of a `T`.

    Args:
        each: makes the `T` of a generation, from this and the generation's name.
    """

    def __init__(self, each: Callable[[Any, str], T]) -> None:
        self.registry = CollectorRegistry()
        self._each = each
        self._of: dict[str, T] = {}
        self._labelled: list[Counter | Gauge | Histogram | Summary] = []

    def of(self, generation: str) -> T:
        """What counts for this generation."""
        if generation not in self._of:
            self._of[generation] = self._each(self, generation)
        return self._of[generation]

    def forget(self, generation: str) -> None:
        """The generation is gone: nothing is said of it any more."""
        self._of.pop(generation, None)
        for metric in self._labelled:
            metric.remove_by_labels({GENERATION: generation})

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return self._kept(Counter(name, says, labels, registry=self.registry), labels)

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return self._kept(Gauge(name, says, labels, registry=self.registry), labels)

    def _summary(self, name: str, says: str, *labels: str) -> Summary:
        return self._kept(Summary(name, says, labels, registry=self.registry), labels)

    def _histogram(self, name: str, says: str, buckets: Sequence[float], *labels: str) -> Histogram:
        made = Histogram(name, says, labels, buckets=buckets, registry=self.registry)
        return self._kept(made, labels)

    def _kept(self, metric: M, labels: Sequence[str]) -> M:
        if GENERATION in labels:
            self._labelled.append(metric)
        return metric
