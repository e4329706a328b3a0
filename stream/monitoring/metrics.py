"""Prometheus metrics of a worker, on its own registry and port."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from braid.index.by_generation import GENERATION, ByGeneration

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BUCKETS_RECORDS = (1, 4, 16, 64, 128, 256, 512, 1024)

JOIN_EVENTS = ("part", "complete", "quiet", "late", "full", "deletion", "deleted", "dead")
SHOWN = 8  # the last versions whose windows are shown, which bounds the series


class DriftMetrics:
    """The last complete window of each version that this worker watches
    (`braid.stream.monitoring.drift`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, says: str, *labels: str) -> Gauge:
            return Gauge(name, says, ["generation", "model", *labels], registry=registry)

        self._drift = gauge("braid_drift", "A statistic of drift, see README", "statistic")
        self._limit = gauge("braid_drift_limit", "From where on it is drift", "statistic")
        self._exceeded = gauge("braid_drift_exceeded", "Statistics that exceed their limits")
        self._records = gauge("braid_window_records", "Records in the window")
        self._end = gauge("braid_window_end_seconds", "When the window ended, since 1970")
        self._confidence = gauge("braid_window_confidence", "Mean confidence", "task")
        self._missing = gauge("braid_window_missing", "Share of records without it", "modality")
        self._norm = gauge("braid_window_norm", "Mean length of the fused vectors")
        self._concentration = gauge("braid_window_concentration", "Length of their mean vector")
        self._shown: dict[tuple[str, str], list[tuple[Gauge, tuple[str, ...]]]] = {}

    def show(self, report: Mapping[str, Any]) -> None:
        """Show a version's window instead of its last one."""
        version = (str(report["generation"]), str(report["model"]))
        self._hide(version)
        while len(self._shown) >= SHOWN:
            self._hide(next(iter(self._shown)))
        shown = self._shown[version] = []

        def put(gauge: Gauge, value: float, *labels: str) -> None:
            gauge.labels(*version, *labels).set(value)
            shown.append((gauge, (*version, *labels)))

        for entry in report["statistics"]:
            put(self._drift, entry["value"], entry["name"])
            put(self._limit, entry["limit"], entry["name"])
        put(self._exceeded, sum(entry["exceeds"] for entry in report["statistics"]))
        put(self._records, report["records"])
        put(self._end, report["end"])
        put(self._norm, report["norm"])
        put(self._concentration, report["concentration"])
        for task, entry in report["confidence"].items():
            put(self._confidence, entry["mean"], task)
        for modality, rate in report["missing"].items():
            put(self._missing, rate, modality)

    def clear(self) -> None:
        """Remove all series: other workers may watch the versions now."""
        for version in list(self._shown):
            self._hide(version)

    def _hide(self, version: tuple[str, str]) -> None:
        for gauge, labels in self._shown.pop(version, []):
            gauge.remove(*labels)


class JoinMetrics:
    """Counters of this worker's member of the join (`braid.stream.worker.join.table`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "braid_join_events",
            "Parts, deletions, dead letters, and records sent complete or released, see README",
            ["event"],
            registry=registry,
        )
        for event in JOIN_EVENTS:
            self._events.labels(event)  # create the series at 0
        self._failures = Counter("braid_join_failures", "Times the join failed", registry=registry)
        self._ids = Gauge("braid_join_ids", "Ids in the join's table", ["state"], registry=registry)
        self._bytes = Gauge("braid_join_bytes", "Bytes in the join's table", registry=registry)
        self._owned = Gauge("braid_join_partitions", "Partitions of parts", registry=registry)

    def counted(self, events: Mapping[str, int]) -> None:
        for event, count in events.items():
            self._events.labels(event).inc(count)

    def table(self, *, waiting: int, released: int, nbytes: int) -> None:
        self._ids.labels("waiting").set(waiting)
        self._ids.labels("released").set(released)
        self._bytes.set(nbytes)

    def assigned(self, count: int) -> None:
        self._owned.set(count)

    def failed(self) -> None:
        self._failures.inc()


class WorkerMetrics(ByGeneration["GenerationMetrics"]):
    """Counters of one process's workers; `of` returns those of one generation's worker."""

    def __init__(self) -> None:
        super().__init__(GenerationMetrics)
        by_generation = GENERATION
        self.records = self._counter(
            "braid_records", "Records whose outputs are committed", by_generation
        )
        self.dead = self._counter(
            "braid_dead_letters", "Records that became dead letters", by_generation, "stage", "kind"
        )
        self.unknown = self._counter(
            "braid_unknown_fields", "Fields of records that were left out", by_generation
        )
        self.refused = self._counter(
            "braid_transactions_refused", "Transactions that were aborted", by_generation
        )
        self.failures = self._counter(
            "braid_worker_failures", "Times its worker ended while others went on", by_generation
        )
        self.failed_batches = self._counter(
            "braid_batches_failed", "Micro-batches on which encode raised", by_generation, "kind"
        )
        self.batch = self._histogram(
            "braid_batch_records", "Records in a micro-batch", BUCKETS_RECORDS, by_generation
        )
        self.encode = self._histogram(
            "braid_encode_seconds",
            "From a batch's start to its embeddings",
            BUCKETS_S,
            by_generation,
        )
        self.commit = self._histogram(
            "braid_publish_seconds", "One transaction", BUCKETS_S, by_generation
        )
        self.owned = self._gauge("braid_partitions", "Partitions assigned", by_generation)
        self.model = self._gauge(
            "braid_model_info", "1 for the model in use", by_generation, "model"
        )
        self.lag = self._gauge("braid_lag", "Offsets behind the end", by_generation, "partition")
        self.drift = DriftMetrics(self.registry)
        self.join = JoinMetrics(self.registry)
        self._not_shown = Counter(
            "braid_showcase_dropped",
            "Texts and media of records that are not kept for display: their queue was full",
            ["what"],
            registry=self.registry,
        )

    def not_shown(self, what: str) -> None:
        """Count what the showcase dropped: "text" or "media"."""
        self._not_shown.labels(what).inc()


class GenerationMetrics:
    """Counters of the worker of one generation. `snapshot` is for its heartbeat."""

    def __init__(self, shared: WorkerMetrics, generation: str) -> None:
        self._shared, self._generation = shared, generation
        for counter in (shared.records, shared.unknown, shared.refused, shared.failures):
            counter.labels(generation)  # create the series at 0
        self._lock = threading.Lock()
        self._now: dict[str, object] = {"records": 0, "dead_letters": 0, "partitions": 0}

    def model(self, name: str) -> None:
        self._shared.model.remove_by_labels({GENERATION: self._generation})
        self._shared.model.labels(self._generation, name).set(1)
        self._set(model=name)

    def assigned(self, count: int) -> None:
        self._shared.owned.labels(self._generation).set(count)
        self._set(partitions=count)

    def dead_letter(self, stage: str, kind: str) -> None:
        """Count a dead letter; `kind` is the name of the exception's class."""
        self._shared.dead.labels(self._generation, stage, kind).inc()
        self._add("dead_letters", 1)

    def unknown(self, count: int) -> None:
        self._shared.unknown.labels(self._generation).inc(count)

    def refused(self) -> None:
        self._shared.refused.labels(self._generation).inc()

    def failed(self) -> None:
        """Count an end of the worker that the process survived."""
        self._shared.failures.labels(self._generation).inc()

    def batch(self, records: int, seconds: float) -> None:
        self._shared.batch.labels(self._generation).observe(records)
        self._shared.encode.labels(self._generation).observe(seconds)

    def batch_failed(self, kind: str) -> None:
        """Count a micro-batch that raised: out of `memory`, or another `error`."""
        self._shared.failed_batches.labels(self._generation, kind).inc()

    def published(self, *, records: int, seconds: float) -> None:
        self._shared.records.labels(self._generation).inc(records)
        self._shared.commit.labels(self._generation).observe(seconds)
        self._add("records", records)

    def lag(self, lags: Mapping[int, int]) -> None:
        self._shared.lag.remove_by_labels({GENERATION: self._generation})
        for partition, behind in lags.items():
            self._shared.lag.labels(self._generation, str(partition)).set(behind)

    def snapshot(self) -> dict[str, object]:
        with self._lock:
            return dict(self._now)

    def _set(self, **values: object) -> None:
        with self._lock:
            self._now.update(values)

    def _add(self, name: str, count: int) -> None:
        with self._lock:
            self._now[name] = int(str(self._now[name])) + count


Health = Callable[[], tuple[bool, dict[str, Any]]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds: a client may send half a request

    def log_message(self, format: str, *args: Any) -> None:
        """No log line per scrape."""


def serve(
    metrics: WorkerMetrics, host: str, port: int, health: Health | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Serve `/metrics` and `/healthz` on a daemon thread. Shut the server down to stop.

    Args:
        health: whether the worker is healthy, and its state as JSON; 503 if it is not.
    """
    exposition = make_wsgi_app(metrics.registry)

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if health is None or environ.get("PATH_INFO") != "/healthz":
            body: Iterable[bytes] = exposition(environ, start)
            return body
        well, facts = health()
        start(
            "200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")]
        )
        return [json.dumps(facts).encode()]

    server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread
