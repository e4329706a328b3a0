"""Prometheus metrics of `braid ingest`, by source."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from .metrics import BUCKETS_S

SOURCE = "source"
EVENTS = ("record", "part", "deletion", "left out", "dead letter")
"""What a message of a source became."""


class IngestMetrics:
    """Counters of one process's sources; `of` returns those of one source."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        self.messages = Counter(
            "braid_ingest_messages",
            "Messages of a source whose outputs are committed, by what they became",
            [SOURCE, "event"],
            registry=registry,
        )
        self.publish = Histogram(
            "braid_ingest_publish_seconds",
            "Seconds of publishing, until the transaction is committed",
            [SOURCE],
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.refused = Counter(
            "braid_ingest_transactions_refused",
            "Transactions that were aborted",
            [SOURCE],
            registry=registry,
        )
        self.failures = Counter(
            "braid_ingest_failures",
            "Times that a source failed, and was started again",
            [SOURCE],
            registry=registry,
        )
        self.owned = Gauge(
            "braid_ingest_partitions",
            "Partitions assigned",
            [SOURCE],
            registry=registry,
        )
        self.waits = Gauge(
            "braid_ingest_waits",
            "1 while a source waits for Kafka or the schema registry",
            [SOURCE],
            registry=registry,
        )
        self.lag = Gauge(
            "braid_ingest_lag",
            "Offsets behind the end, by partition",
            [SOURCE, "partition"],
            registry=registry,
        )

    def of(self, source: str) -> SourceMetrics:
        return SourceMetrics(self, source)


class SourceMetrics:
    """Counters of one source."""

    def __init__(self, shared: IngestMetrics, source: str) -> None:
        self._shared, self._source = shared, source
        for event in EVENTS:
            shared.messages.labels(source, event)  # create the series at 0
        for metric in (shared.refused, shared.failures):
            metric.labels(source)

    def published(self, events: Mapping[str, int], seconds: float) -> None:
        for event, count in events.items():
            self._shared.messages.labels(self._source, event).inc(count)
        self._shared.publish.labels(self._source).observe(seconds)

    def refused(self) -> None:
        self._shared.refused.labels(self._source).inc()

    def failed(self) -> None:
        self._shared.failures.labels(self._source).inc()

    def assigned(self, count: int) -> None:
        self._shared.owned.labels(self._source).set(count)

    def waits(self, reason: str | None) -> None:
        self._shared.waits.labels(self._source).set(reason is not None)

    def show_lag(self, lags: Mapping[int, int]) -> None:
        self._shared.lag.remove_by_labels({SOURCE: self._source})
        for partition, behind in lags.items():
            self._shared.lag.labels(self._source, str(partition)).set(behind)
