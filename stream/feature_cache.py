"""The cache of features of one process, with Redis behind it, and its metrics.

Redis is not the only copy and does not slow the process: one thread reads and writes it, in
batches. Rows are asked for while their records are prepared, and used if they have come by the time
the records are encoded; else the encoder runs. What finds no room in a queue is dropped and
counted, and after a failure Redis is left alone for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import redis
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from braid.encoders.feature_cache import FeatureCache, Row

from .redis_client import best_effort_redis
from .settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_S = 0.25
RETRY_S = 5.0  # after a failure
MEMORY_EVERY_S = 1.0  # between two looks at the memory that Redis uses
BATCH = 128  # rows of one command, or pipeline
MAX_KEYS = 4096  # that wait to be read; beyond it the oldest are dropped
MAX_WAITING_BYTES = 16 << 20  # of rows that wait to be written; beyond it new ones are dropped
MAX_ROW_BYTES = 64 << 10  # of a row in Redis; those with the tokens of a long sound are larger
CHECKSUM = 8  # bytes before each row
EVENTS = ("read", "absent", "damaged", "written", "full", "dropped", "failed")


class RedisFeatures:
    """Implements `braid.encoders.feature_cache.FeatureStore`.

    Args:
        add: called with rows that were read.
        budget: bytes of memory that Redis may use, whatever for; no row is written beyond.
        clock: monotonic seconds.

    Attributes:
        events: rows by what became of them, and failed calls.
    """

    def __init__(
        self,
        client: redis.Redis,
        add: Callable[[Mapping[bytes, Row]], None],
        *,
        prefix: str,
        budget: int,
        ttl_s: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.events: Counter[str] = Counter()
        self._client, self._add = client, add
        self._prefix = f"{prefix}braid:features:".encode()
        self._budget, self._ttl_s, self._clock = budget, ttl_s, clock
        self._keys: deque[bytes] = deque()
        self._rows: deque[tuple[bytes, Row]] = deque()
        self._waiting_bytes = 0
        self._closed_until = self._look_at = 0.0
        self._room = False
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="feature-cache", daemon=True)
        self._thread.start()

    def fetch(self, keys: Sequence[bytes]) -> None:
        """See `FeatureStore.fetch`."""
        with self._changed:
            if self._open:
                self._keys += keys
                while len(self._keys) > MAX_KEYS:
                    self._keys.popleft()
                    self.events["dropped"] += 1
                self._changed.notify()

    def keep(self, rows: Mapping[bytes, Row]) -> None:
        """See `FeatureStore.keep`."""
        with self._changed:
            for key, row in rows.items():
                room = self._waiting_bytes + row.nbytes <= MAX_WAITING_BYTES
                if self._open and room and row.nbytes <= MAX_ROW_BYTES:
                    self._rows.append((key, row))
                    self._waiting_bytes += row.nbytes
                else:
                    self.events["dropped"] += 1
            self._changed.notify()

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(4 * TIMEOUT_S)
        self._client.close()

    @property
    def _open(self) -> bool:
        return not self._ended and self._clock() >= self._closed_until

    def _run(self) -> None:
        failing = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._keys or self._rows)
                if self._ended:
                    return
                keys = [self._keys.popleft() for _ in range(min(BATCH, len(self._keys)))]
                count = 0 if keys else min(BATCH, len(self._rows))  # reading is more urgent
                rows = dict(self._rows.popleft() for _ in range(count))
                self._waiting_bytes = sum(row.nbytes for _, row in self._rows)
            try:
                if keys:
                    self._read(keys)
                else:
                    self._write(rows)
                if failing:
                    log.info("Redis takes features again")
                failing = False
            except (redis.RedisError, OSError) as error:
                if not failing:
                    log.warning("Redis does not answer, features are kept in memory: %s", error)
                failing = True
                self._pause()

    def _pause(self) -> None:
        with self._changed:
            self.events["failed"] += 1
            self.events["dropped"] += len(self._keys) + len(self._rows)
            self._keys.clear()
            self._rows.clear()
            self._waiting_bytes = 0
            self._closed_until = self._clock() + RETRY_S

    def _read(self, keys: Sequence[bytes]) -> None:
        values: list[Any] = self._client.mget([self._prefix + key for key in keys])
        rows = {}
        for key, value in zip(keys, values, strict=True):
            row = None if value is None else unpacked(key, value)
            if row is not None:
                rows[key] = row
            self.events["absent" if value is None else "damaged" if row is None else "read"] += 1
        self._add(rows)

    def _write(self, rows: Mapping[bytes, Row]) -> None:
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + MEMORY_EVERY_S
            memory: Any = self._client.info("memory")
            self._room = int(memory["used_memory"]) < self._budget
        if not self._room:
            self.events["full"] += len(rows)
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for key, row in rows.items():
                pipeline.set(self._prefix + key, packed(key, row), ex=self._ttl_s)
            pipeline.execute()
        self.events["written"] += len(rows)


def packed(key: bytes, row: Row) -> bytes:
    """A row as it is stored: a checksum of key and data, then float32 in little-endian order."""
    data = row.astype("<f4", copy=False).tobytes()
    return sha256(key + data).digest()[:CHECKSUM] + data


def unpacked(key: bytes, value: bytes) -> Row | None:
    """None for a value that is damaged, or another key's."""
    data = value[CHECKSUM:]
    if len(data) % 4 or sha256(key + data).digest()[:CHECKSUM] != value[:CHECKSUM]:
        return None
    row: Row = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    return row


def feature_cache_of(settings: Settings) -> FeatureCache | None:
    """The cache that `cache.*` asks for; None: there is none."""
    if settings.cache.local_bytes == 0:
        return None
    cache = FeatureCache(settings.cache.local_bytes)
    client = best_effort_redis(settings, TIMEOUT_S) if settings.cache.redis_bytes else None
    if client is not None:
        cache.store = RedisFeatures(
            client,
            cache.add,
            prefix=settings.prefix,
            budget=settings.cache.redis_bytes,
            ttl_s=settings.cache.ttl_s,
        )
    return cache


class CacheMetrics:
    """Metrics of the process's cache of features, once `show` has been called."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cache: FeatureCache | None = None
        for family in (_looked_up, _bytes, _in_redis):
            registry.register(_Reading(family, lambda: self._cache))

    def show(self, cache: FeatureCache | None) -> None:
        self._cache = cache

    def facts(self) -> dict[str, int] | None:
        """Hits, misses and bytes in memory, for a heartbeat; None without a cache."""
        if (cache := self._cache) is None:
            return None
        return {
            "hits": cache.hits.total(),
            "misses": cache.misses.total(),
            "bytes": cache.nbytes,
        }


class _Reading(Collector):
    """A metric that is read from the cache when it is asked for."""

    def __init__(
        self,
        family: Callable[[FeatureCache | None], Metric],
        cache: Callable[[], FeatureCache | None],
    ) -> None:
        self._family, self._cache = family, cache
        self._labelnames = family(None)._labelnames  # type: ignore[attr-defined]

    def describe(self) -> Iterable[Metric]:
        return [self._family(None)]

    def collect(self) -> Iterable[Metric]:
        return [self._family(self._cache())]


def _looked_up(cache: FeatureCache | None) -> Metric:
    family = CounterMetricFamily(
        "braid_cache_features",
        "Features looked up in the cache: hit, or miss, which an encoder makes",
        labels=["modality", "result"],
    )
    if cache is not None:
        for result, counts in (("hit", cache.hits), ("miss", cache.misses)):
            for modality, count in list(counts.items()):
                family.add_metric([modality, result], count)
    return family


def _bytes(cache: FeatureCache | None) -> Metric:
    family = GaugeMetricFamily(
        "braid_cache_bytes", "Bytes of features in this process's memory", labels=[]
    )
    if cache is not None:
        family.add_metric([], cache.nbytes)
    return family


def _in_redis(cache: FeatureCache | None) -> Metric:
    family = CounterMetricFamily(
        "braid_cache_redis",
        "Features read from and written to Redis, and what kept one from it; failed counts calls",
        labels=["event"],
    )
    if cache is not None and isinstance(cache.store, RedisFeatures):
        for event in EVENTS:
            family.add_metric([event], cache.store.events[event])
    return family
