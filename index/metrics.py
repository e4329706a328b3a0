"""Prometheus metrics of the query service and the index reader."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Any

from braid.modalities import MODALITIES

from .by_generation import GENERATION, ByGeneration

SEARCH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FRESHNESS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SNAPSHOT_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
# The kind of a query; `composed` is several modalities at once, `batch` a whole batch.
KINDS = (*MODALITIES, "composed", "id", "query", "batch")
REFUSALS = ("host", "key", "rate", "busy", "size", "slow", "query")


class ServiceMetrics(ByGeneration["GenerationMetrics"]):
    """Metrics of one index node; `of` returns those of one generation."""

    def __init__(self) -> None:
        super().__init__(GenerationMetrics)
        self._searches = self._histogram(
            "braid_search_seconds",
            "Seconds of one search, waiting included, by the kind of its query",
            SEARCH_S,
            "kind",
        )
        for kind in KINDS:
            self._searches.labels(kind)  # exported as 0 before the first search
        self.in_flight = self._gauge("braid_searches_in_flight", "Searches under way")
        self.waiting = self._gauge("braid_searches_waiting", "Searches that wait for a free place")
        self.offset_waits = self._gauge(
            "braid_searches_waiting_for_offsets", "Searches that wait for their min_offsets"
        )
        self.polls = self._gauge("braid_polls", "Long polls of pages that wait for new records")
        self._refused = self._counter("braid_refused", "Requests refused, by reason", "reason")
        for reason in REFUSALS:
            self._refused.labels(reason)
        self.serving = self._gauge(
            "braid_index_serving", "1 for the generation that is searched by default", GENERATION
        )
        self.records = self._gauge("braid_index_records", "Searchable records", GENERATION)
        self.segments = self._gauge(
            "braid_index_segment_rows", "Rows held, by kind of segment", GENERATION, "kind"
        )
        self.writes = self._counter(
            "braid_index_writes", "Writes of vectors that were applied", GENERATION
        )
        self.freshness = self._histogram(
            "braid_freshness_seconds",
            "Seconds from a record's ts until it is searchable",
            FRESHNESS_S,
            GENERATION,
        )
        self.lag = self._gauge(
            "braid_index_lag",
            "Messages of vectors not applied yet, by partition",
            GENERATION,
            "partition",
        )
        self.snapshot_age = self._gauge(
            "braid_snapshot_age_seconds", "Seconds since the last snapshot", GENERATION
        )
        self.snapshot_took = self._histogram(
            "braid_snapshot_seconds", "Seconds of writing one snapshot", SNAPSHOT_S, GENERATION
        )
        self.recall = self._gauge(
            "braid_recall_last", "Recall of the last probe against exact search", GENERATION
        )
        self.recalls = self._summary(
            "braid_recall", "Recall of all probes against exact search", GENERATION
        )

    def searched(self, seconds: float, kind: str) -> None:
        """A search of that kind (one of KINDS) was answered."""
        self._searches.labels(kind).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was refused, for one of REFUSALS."""
        self._refused.labels(reason).inc()


class GenerationMetrics:
    """Metrics of one generation, set by its reader and its store."""

    def __init__(self, shared: ServiceMetrics, generation: str) -> None:
        self._shared, self._generation = shared, generation

    def serving(self, serves: bool) -> None:
        self._shared.serving.labels(self._generation).set(serves)

    def rows(self, count: int, segments: Iterable[Mapping[str, Any]] = ()) -> None:
        """Set the number of searchable records, and the rows of each kind of segment."""
        self._shared.records.labels(self._generation).set(count)
        held: Tally[str] = Tally()
        for segment in segments:
            held[str(segment["kind"])] += int(segment["rows"])
        # Removes the series of kinds that have no segment any more.
        self._shared.segments.remove_by_labels({GENERATION: self._generation})
        for kind, rows in held.items():
            self._shared.segments.labels(self._generation, kind).set(rows)

    def applied(self, count: int) -> None:
        self._shared.writes.labels(self._generation).inc(count)

    def fresh(self, seconds: float) -> None:
        self._shared.freshness.labels(self._generation).observe(max(0.0, seconds))

    def lag(self, partition: int, value: int) -> None:
        """Set the number of messages of a partition of `vectors` that are not applied yet."""
        self._shared.lag.labels(self._generation, str(partition)).set(max(0, value))

    def snapshot_age(self, seconds: float) -> None:
        self._shared.snapshot_age.labels(self._generation).set(seconds)

    def snapshot_took(self, seconds: float) -> None:
        self._shared.snapshot_took.labels(self._generation).observe(seconds)

    def recall(self, value: float) -> None:
        """A probe measured this recall, in [0, 1]."""
        self._shared.recall.labels(self._generation).set(value)
        self._shared.recalls.labels(self._generation).observe(value)
