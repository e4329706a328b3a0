"""Base class for the Prometheus metrics of a process with several generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

GENERATION = "generation"

T = TypeVar("T")
M = TypeVar("M", Counter, Gauge, Histogram, Summary)


class ByGeneration(Generic[T]):
    """A registry, and one `T` for each generation.

    Args:
        each: makes the `T` of a generation, from this object and the generation's name.
    """

    def __init__(self, each: Callable[[Any, str], T]) -> None:
        self.registry = CollectorRegistry()
        self._each = each
        self._of: dict[str, T] = {}
        self._labelled: list[Counter | Gauge | Histogram | Summary] = []

    def of(self, generation: str) -> T:
        """The metrics of this generation."""
        if generation not in self._of:
            self._of[generation] = self._each(self, generation)
        return self._of[generation]

    def forget(self, generation: str) -> None:
        """Remove all series of a generation that was dropped."""
        self._of.pop(generation, None)
        for metric in self._labelled:
            metric.remove_by_labels({GENERATION: generation})

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return self._kept(Counter(name, description, labels, registry=self.registry), labels)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return self._kept(Gauge(name, description, labels, registry=self.registry), labels)

    def _summary(self, name: str, description: str, *labels: str) -> Summary:
        made = Summary(name, description, labels, registry=self.registry)
        return self._kept(made, labels)

    def _histogram(
        self, name: str, description: str, buckets: Sequence[float], *labels: str
    ) -> Histogram:
        made = Histogram(name, description, labels, buckets=buckets, registry=self.registry)
        return self._kept(made, labels)

    def _kept(self, metric: M, labels: Sequence[str]) -> M:
        if GENERATION in labels:
            self._labelled.append(metric)
        return metric
