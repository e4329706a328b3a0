"""Heartbeats of workers: keys in Redis with a TTL that each worker renews.

The key has the slot and no generation: a worker feeds several, and the serving one changes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

import redis

from ..kafka.schemas import decode_map, pack
from ..redis_client import best_effort_redis
from ..settings import Settings
from .metrics import WorkerMetrics

LIFETIME_S = 5
TIMEOUT_S = 0.5


class Heartbeat:
    """Writes this worker's state to Redis, best-effort: never raises."""

    def __init__(self, settings: Settings, slot: str, metrics: WorkerMetrics) -> None:
        self._client = best_effort_redis(settings, TIMEOUT_S)
        self._key = f"{_prefix(settings)}{slot}"
        self._metrics = metrics
        self._last: tuple[str, float, list[float]] | None = None

    def beat(self, generation: str, owned: list[int], problems: Mapping[str, str]) -> None:
        """Write the state of the serving generation's worker, and the problems of all.

        Rates, the mean micro-batch, how busy the device is (the cores in encoders, else the calls
        of encode) and the share of what was encoded that is no padding are since the last
        heartbeat.

        Args:
            problems: generation -> why feeding it fails.
        """
        state = self._metrics.of(generation).snapshot()
        counts = [float(str(state.pop(name))) for name in ("batches", "encoded", "encode_ms")]
        totals = [float(str(state["records"])), *counts, *self._metrics.sub_batches.totals]
        now, rates = time.monotonic(), [0.0] * len(totals)
        if self._last is not None and self._last[0] == generation and now > self._last[1]:
            pairs = zip(totals, self._last[2], strict=True)
            rates = [(total - before) / (now - self._last[1]) for total, before in pairs]
        self._last = (generation, now, totals)
        rate, batches, encoded, encode_ms, cores, size, computed = rates
        busy = cores / len(os.sched_getaffinity(0)) if cores else encode_ms / 1000
        state |= {
            "busy": round(min(1.0, busy), 2),
            "batch_records": round(encoded / batches, 1) if batches else None,
            "padding_efficiency": round(size / computed, 3) if computed else None,
            "generation": generation,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "partitions": owned,
            "records_per_s": round(rate, 1),
            "problems": dict(problems),
            "cache": self._metrics.cache.facts(),
        }
        if self._client is not None:
            with contextlib.suppress(redis.RedisError):
                self._client.set(self._key, pack(state), ex=LIFETIME_S)

    def close(self) -> None:
        """Delete the key, so that the worker does not seem alive until it expires."""
        if self._client is not None:
            with contextlib.suppress(redis.RedisError):
                self._client.delete(self._key)
            self._client.close()


def workers(settings: Settings) -> dict[str, dict[str, Any]] | None:
    """State of each live worker by slot; None when Redis does not answer."""
    client = best_effort_redis(settings, TIMEOUT_S)
    if client is None:
        return None
    try:
        keys: list[bytes] = sorted(client.scan_iter(match=f"{_prefix(settings)}*", count=1000))
        values: list[bytes | None] = client.mget(keys) if keys else []  # type: ignore[assignment]
    except redis.RedisError:
        return None
    finally:
        client.close()
    return {
        key.decode().removeprefix(_prefix(settings)): decode_map(value)
        for key, value in zip(keys, values, strict=True)
        if value is not None
    }


def _prefix(settings: Settings) -> str:
    return f"{settings.prefix}braid:worker:"
