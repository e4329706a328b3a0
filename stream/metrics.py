"""What a worker counts, on its own Prometheus registry and its own port."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class WorkerMetrics:
    """Counters of one embed worker. `snapshot` is what its heartbeat tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._records = Counter(
            "braid_records", "Records whose outputs are committed", registry=self.registry
        )
        self._dead = Counter(
            "braid_dead_letters",
            "Records that became dead letters",
            ["stage"],
            registry=self.registry,
        )
        self._unknown = Counter(
            "braid_unknown_fields", "Fields of records that were left out", registry=self.registry
        )
        self._refused = Counter(
            "braid_transactions_refused", "Transactions that were aborted", registry=self.registry
        )
        self._batch = Histogram(
            "braid_batch_records",
            "Records in a micro-batch",
            buckets=(1, 4, 16, 64, 128, 256, 512, 1024),
            registry=self.registry,
        )
        self._encode = Histogram(
            "braid_encode_seconds",
            "From a batch's start to its embeddings",
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._commit = Histogram(
            "braid_publish_seconds", "One transaction", buckets=BUCKETS_S, registry=self.registry
        )
        self._owned = Gauge("braid_partitions", "Partitions assigned", registry=self.registry)
        self._model = Gauge(
            "braid_model_info", "1 for the model in use", ["model"], registry=self.registry
        )
        self._lag = Gauge(
            "braid_lag", "Offsets behind the end", ["partition"], registry=self.registry
        )
        self._lock = threading.Lock()
        self._now: dict[str, object] = {"records": 0, "dead_letters": 0, "partitions": 0}

    def model(self, name: str) -> None:
        self._model.clear()
        self._model.labels(name).set(1)
        self._set(model=name)

    def assigned(self, count: int) -> None:
        self._owned.set(count)
        self._set(partitions=count)

    def dead_letter(self, stage: str) -> None:
        self._dead.labels(stage).inc()
        self._add("dead_letters", 1)

    def unknown(self, count: int) -> None:
        self._unknown.inc(count)

    def refused(self) -> None:
        self._refused.inc()

    def batch(self, records: int, seconds: float) -> None:
        self._batch.observe(records)
        self._encode.observe(seconds)

    def published(self, *, records: int, seconds: float) -> None:
        self._records.inc(records)
        self._commit.observe(seconds)
        self._add("records", records)

    def lag(self, lags: Mapping[int, int]) -> None:
        self._lag.clear()
        for partition, behind in lags.items():
            self._lag.labels(str(partition)).set(behind)

    def snapshot(self) -> dict[str, object]:
        with self._lock:
            return dict(self._now)

    def _set(self, **values: object) -> None:
        with self._lock:
            self._now.update(values)

    def _add(self, name: str, count: int) -> None:
        with self._lock:
            self._now[name] = int(str(self._now[name])) + count


def serve(metrics: WorkerMetrics, host: str, port: int) -> tuple[WSGIServer, threading.Thread]:
    """Serve `/metrics`. Shut the server down to stop."""
    server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    return server, thread
