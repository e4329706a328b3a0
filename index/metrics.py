"""What the query service and the index reader count, on a Prometheus registry of their own."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

SEARCH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
FRESHNESS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SNAPSHOT_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
# What a search asks with; `composed` is several modalities at once, `batch` a whole batch.
KINDS = ("text", "image", "audio", "composed", "id", "query", "batch")
REFUSALS = ("key", "rate", "busy", "size", "query")


class ServiceMetrics:
    """Counters of one index node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._searches = Histogram(
            "braid_search_seconds",
            "One answered search, by what it asked with; waiting included",
            ["kind"],
            buckets=SEARCH_S,
            registry=self.registry,
        )
        for kind in KINDS:
            self._searches.labels(kind)  # 0 is said, too
        self._in_flight = self._gauge("braid_searches_in_flight", "Searches under way")
        self._waiting = self._gauge("braid_searches_waiting", "Searches in line for their turn")
        self._offset_waits = self._gauge(
            "braid_searches_waiting_for_offsets", "Searches that wait for their min_offsets"
        )
        self._refused = Counter(
            "braid_refused", "Requests refused, by reason", ["reason"], registry=self.registry
        )
        for reason in REFUSALS:
            self._refused.labels(reason)
        self._rows = self._gauge("braid_index_records", "Searchable records")
        self._segments = Gauge(
            "braid_index_segment_rows",
            "Rows held, by kind of segment",
            ["kind"],
            registry=self.registry,
        )
        self._applied = Counter(
            "braid_index_writes", "Writes taken from vectors", registry=self.registry
        )
        self._fresh = Histogram(
            "braid_freshness_seconds",
            "From a record's ts to being searchable",
            buckets=FRESHNESS_S,
            registry=self.registry,
        )
        self._lag = Gauge(
            "braid_index_lag",
            "Messages of vectors not applied yet, by partition",
            ["partition"],
            registry=self.registry,
        )
        self._snapshot = self._gauge("braid_snapshot_age_seconds", "Since the last snapshot")
        self._snapshot_s = Histogram(
            "braid_snapshot_seconds",
            "Writing one snapshot",
            buckets=SNAPSHOT_S,
            registry=self.registry,
        )
        self._recall = self._gauge(
            "braid_recall_last", "Recall of the last probe against exact search; NaN before any"
        )
        self._recall.set(float("nan"))
        self._recalls = Summary(
            "braid_recall", "Recall of all probes against exact search", registry=self.registry
        )

    def searched(self, seconds: float, kind: str) -> None:
        """A search of that kind (one of KINDS) was answered."""
        self._searches.labels(kind).observe(seconds)

    def in_flight(self, count: int) -> None:
        self._in_flight.set(count)

    def waiting(self, count: int) -> None:
        self._waiting.set(count)

    def offset_waits(self, count: int) -> None:
        self._offset_waits.set(count)

    def refused(self, reason: str) -> None:
        """A request was refused: no key, too often, too busy, too large, or a bad query."""
        self._refused.labels(reason).inc()

    def rows(self, count: int, segments: Iterable[Mapping[str, Any]] = ()) -> None:
        """How many records are searchable, and the store's segments: `kind` and `rows` of each."""
        self._rows.set(count)
        held: Tally[str] = Tally()
        for segment in segments:
            held[str(segment["kind"])] += int(segment["rows"])
        self._segments.clear()  # a kind that is gone is not said for ever
        for kind, rows in held.items():
            self._segments.labels(kind).set(rows)

    def applied(self, count: int) -> None:
        self._applied.inc(count)

    def fresh(self, seconds: float) -> None:
        self._fresh.observe(max(0.0, seconds))

    def lag(self, partition: int, value: int) -> None:
        """So many messages of this partition of `vectors` are not applied yet."""
        self._lag.labels(str(partition)).set(max(0, value))

    def snapshot_age(self, seconds: float) -> None:
        self._snapshot.set(seconds)

    def snapshot_took(self, seconds: float) -> None:
        self._snapshot_s.observe(seconds)

    def recall(self, value: float) -> None:
        """A probe found this recall, in [0, 1]."""
        self._recall.set(value)
        self._recalls.observe(value)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, registry=self.registry)
