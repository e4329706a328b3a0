"""Prometheus metrics of a worker, on its own registry and port."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter as Names
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, make_wsgi_app

from braid.encoders.timings import SubBatch
from braid.index.by_generation import GENERATION, ByGeneration

from ..feature_cache import CacheMetrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

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

        self._drift = gauge("braid_drift", "A statistic of drift", "statistic")
        self._limit = gauge(
            "braid_drift_limit", "Limit of the statistic, beyond which it is drift", "statistic"
        )
        self._exceeded = gauge("braid_drift_exceeded", "Statistics that exceed their limits")
        self._records = gauge("braid_window_records", "Records in the window")
        self._end = gauge("braid_window_end_seconds", "When the window ended, since 1970")
        self._confidence = gauge("braid_window_confidence", "Mean confidence", "task")
        self._missing = gauge(
            "braid_window_missing", "Share of records without the modality", "modality"
        )
        self._norm = gauge("braid_window_norm", "Mean length of the fused vectors")
        self._concentration = gauge(
            "braid_window_concentration", "Length of the mean of the fused vectors"
        )
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
            "Parts, deletions and dead letters, and records sent complete or released, by why",
            ["event"],
            registry=registry,
        )
        for event in JOIN_EVENTS:
            self._events.labels(event)  # create the series at 0
        self._failures = Counter("braid_join_failures", "Times the join failed", registry=registry)
        self._ids = Gauge("braid_join_ids", "Ids in the join's table", ["state"], registry=registry)
        self._bytes = Gauge("braid_join_bytes", "Bytes in the join's table", registry=registry)
        self._owned = Gauge(
            "braid_join_partitions", "Partitions of parts that this worker joins", registry=registry
        )

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


class SubBatchMetrics:
    """Counters of the encoders' sub-batches in this process, for all generations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._size = Counter(
            "braid_encoded_size",
            "Size of what was encoded, in the encoder's units (tokens, pixels, samples of sound): "
            "real, and computed with the padding",
            ["modality", "kind"],
            registry=registry,
        )
        self._busy = Counter(
            "braid_core_busy_seconds", "Seconds of cores in encoders", registry=registry
        )
        self._lock = threading.Lock()
        self._totals = (0.0, 0, 0)

    def add(self, part: SubBatch) -> None:
        """Count a sub-batch (`braid.encoders.timings`)."""
        seconds = part.ended - part.began if part.on_cpu else 0.0
        self._busy.inc(seconds)
        self._size.labels(part.modality, "real").inc(part.size)
        self._size.labels(part.modality, "computed").inc(part.computed)
        with self._lock:
            busy_s, size, computed = self._totals
            self._totals = (busy_s + seconds, size + part.size, computed + part.computed)

    @property
    def totals(self) -> tuple[float, int, int]:
        """Seconds of cores, and sizes, real and computed."""
        return self._totals


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
            "braid_unknown_fields", "Unknown fields of records, which were left out", by_generation
        )
        self.refused = self._counter(
            "braid_transactions_refused", "Transactions that were aborted", by_generation
        )
        self.failures = self._counter(
            "braid_worker_failures",
            "Failures of this generation's worker that the process survived",
            by_generation,
        )
        self.failed_batches = self._counter(
            "braid_batches_failed", "Micro-batches on which encode raised", by_generation, "kind"
        )
        self.batch = self._histogram(
            "braid_batch_records", "Records in a micro-batch", BUCKETS_RECORDS, by_generation
        )
        self.encode = self._histogram(
            "braid_encode_seconds",
            "Seconds of encoding a micro-batch",
            BUCKETS_S,
            by_generation,
        )
        self.commit = self._histogram(
            "braid_publish_seconds",
            "Seconds of publishing, until the transaction is committed",
            BUCKETS_S,
            by_generation,
        )
        self.steps = self._summary(
            "braid_step_seconds", "Seconds in each step of the worker", by_generation, "step"
        )
        self.queue = self._gauge(
            "braid_queue_records",
            "Records in flight, by where: preparing, collecting or encoding, or finished",
            by_generation,
            "state",
        )
        self.sub_batches = SubBatchMetrics(self.registry)
        self.owned = self._gauge("braid_partitions", "Partitions assigned", by_generation)
        self.model = self._gauge(
            "braid_model_info", "1 for the model in use", by_generation, "model"
        )
        self.lag = self._gauge(
            "braid_lag",
            "Offsets of records behind the end, by partition",
            by_generation,
            "partition",
        )
        self.cache = CacheMetrics(self.registry)
        self.p99 = self._gauge(
            "braid_latency_p99_seconds",
            "Seconds from poll to publication, p99 of the last minute, if there is a target",
            by_generation,
        )
        self.target = self._gauge(
            "braid_latency_target_seconds", "The target of it, batch.latency_ms", by_generation
        )
        self.missed = self._gauge(
            "braid_latency_missed", "1 while the target is missed", by_generation
        )
        self.drift = DriftMetrics(self.registry)
        self.join = JoinMetrics(self.registry)
        self._not_shown = Counter(
            "braid_showcase_dropped",
            "Records whose text is not kept for display: the queue was full",
            registry=self.registry,
        )

    def not_shown(self) -> None:
        """Count a record that the showcase dropped."""
        self._not_shown.inc()


class GenerationMetrics:
    """Counters of the worker of one generation. `snapshot` is for its heartbeat."""

    def __init__(self, shared: WorkerMetrics, generation: str) -> None:
        self._shared, self._generation = shared, generation
        for counter in (shared.records, shared.unknown, shared.refused, shared.failures):
            counter.labels(generation)  # create the series at 0
        self._queued: Callable[[], Mapping[str, int]] = dict
        self._steps: dict[str, Summary] = {}
        self._lock = threading.Lock()
        self._now: dict[str, object] = {
            "records": 0,
            "dead_letters": 0,
            "partitions": 0,
            "batches": 0,
            "encoded": 0,
            "encode_ms": 0,
        }

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

    def take_unknown(self, names: Names[str]) -> None:
        """Count unknown fields by name, and clear `names`."""
        if names:
            self._shared.unknown.labels(self._generation).inc(names.total())
            log.debug("unknown fields left out: %s", dict(names))
            names.clear()

    def refused(self) -> None:
        self._shared.refused.labels(self._generation).inc()

    def failed(self) -> None:
        """Count an end of the worker that the process survived."""
        self._shared.failures.labels(self._generation).inc()

    def batch(self, records: int, seconds: float) -> None:
        self._shared.batch.labels(self._generation).observe(records)
        self._shared.encode.labels(self._generation).observe(seconds)
        self._add("batches", 1)
        self._add("encoded", records)
        self._add("encode_ms", round(1000 * seconds))

    def step(self, name: str, seconds: float) -> None:
        if name not in self._steps:
            self._steps[name] = self._shared.steps.labels(self._generation, name)
        self._steps[name].observe(seconds)

    def watch_queue(self, queued: Callable[[], Mapping[str, int]]) -> None:
        """Read how many records are in flight, by state, when metrics are."""
        self._queued = queued
        for state in queued():
            gauge = self._shared.queue.labels(self._generation, state)
            gauge.set_function(partial(lambda name: queued()[name], state))

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

    def latency(self, target_s: float, p99_s: float | None, missed: str | None) -> None:
        """Set the latency target, what was measured, and why the target is missed, if it is."""
        self._shared.target.labels(self._generation).set(target_s)
        self._shared.missed.labels(self._generation).set(missed is not None)
        if p99_s is not None:
            self._shared.p99.labels(self._generation).set(p99_s)
        self._set(latency={"target_s": target_s, "p99_s": p99_s, "missed": missed})

    def snapshot(self) -> dict[str, object]:
        with self._lock:
            return {**self._now, "queue": sum(self._queued().values())}

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
    registry: CollectorRegistry, host: str, port: int, health: Health | None = None
) -> tuple[WSGIServer, threading.Thread]:
    """Serve `/metrics` and `/healthz` on a daemon thread. Shut the server down to stop.

    Args:
        health: whether the worker is healthy, and its state as JSON; 503 if it is not.
    """
    exposition = make_wsgi_app(registry)

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
