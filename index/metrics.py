"""What the query service and the index reader count, on a Prometheus registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SEARCH_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
FRESHNESS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServiceMetrics:
    """Counters of one index node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._searches = Histogram(
            "braid_search_seconds", "One search", buckets=SEARCH_S, registry=self.registry
        )
        self._rows = Gauge("braid_index_records", "Searchable records", registry=self.registry)
        self._applied = Counter(
            "braid_index_writes", "Writes taken from vectors", registry=self.registry
        )
        self._fresh = Histogram(
            "braid_freshness_seconds",
            "From a record's ts to being searchable",
            buckets=FRESHNESS_S,
            registry=self.registry,
        )
        self._snapshot = Gauge(
            "braid_snapshot_age_seconds", "Since the last snapshot", registry=self.registry
        )

    def searched(self, seconds: float) -> None:
        self._searches.observe(seconds)

    def rows(self, count: int) -> None:
        self._rows.set(count)

    def applied(self, count: int) -> None:
        self._applied.inc(count)

    def fresh(self, seconds: float) -> None:
        self._fresh.observe(max(0.0, seconds))

    def snapshot_age(self, seconds: float) -> None:
        self._snapshot.set(seconds)
