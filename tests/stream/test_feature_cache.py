"""Features in Redis: another process finds them; a slow, full or damaged one harms nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest

from braid.encoders.feature_cache import FeatureCache, Row
from braid.stream import feature_cache
from braid.stream.feature_cache import (
    MAX_KEYS,
    MAX_ROW_BYTES,
    MAX_WAITING_BYTES,
    RETRY_S,
    CacheMetrics,
    RedisFeatures,
    feature_cache_of,
    packed,
    unpacked,
)
from braid.stream.settings import Settings
from tests.services import Valkey
from tests.stream.harness import wait_for

GIB = 1 << 30


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def rows_of(count: int, size: int = 8) -> dict[bytes, Row]:
    rng = np.random.default_rng(0)
    return {b"key-%d" % n: rng.normal(size=size).astype(np.float32) for n in range(count)}


@contextmanager
def cached(url: str, prefix: str = "", **options: object) -> Iterator[FeatureCache]:
    cache = FeatureCache(GIB)
    client = redis.Redis.from_url(url, socket_timeout=0.25, socket_connect_timeout=0.25)
    given = {"budget": GIB, "ttl_s": 100} | options
    cache.store = RedisFeatures(client, cache.add, prefix=prefix, **given)  # type: ignore[arg-type]
    try:
        yield cache
    finally:
        cache.close()


def events(cache: FeatureCache) -> dict[str, int]:
    assert isinstance(cache.store, RedisFeatures)
    return dict(cache.store.events)


def written(cache: FeatureCache, rows: dict[bytes, Row]) -> None:
    cache.put(rows)
    wait_for("written", lambda: events(cache).get("written", 0) >= len(rows), timeout=20)


def got(cache: FeatureCache, keys: list[bytes]) -> list[Row | None]:
    """What comes when the store is asked."""
    cache.expect(keys)
    wait_for("an answer", lambda: sum(events(cache).values()) >= len(keys), timeout=20)
    return cache.get("text", keys, 8, 0)


@pytest.mark.redis
def test_another_process_finds_what_one_has_encoded(valkey: str) -> None:
    rows = rows_of(300)
    with cached(valkey, "a-") as one, cached(valkey, "a-") as other, cached(valkey, "b-") as third:
        written(one, rows)
        for row, expected in zip(got(other, list(rows)), rows.values(), strict=True):
            assert row is not None
            np.testing.assert_array_equal(row, expected)
        assert events(other) == {"read": 300}
        assert got(third, list(rows)) == [None] * 300
        other.expect(list(rows))  # all are in memory
        assert events(other) == {"read": 300}
    with redis.Redis.from_url(valkey) as client:
        times = [client.ttl(key) for key in client.scan_iter()]
        assert len(times) == 300
        assert all(0 < time <= 100 for time in times)


@pytest.mark.redis
def test_a_damaged_value_is_a_miss(valkey: str) -> None:
    rows = rows_of(5)
    with cached(valkey) as one:
        written(one, rows)
    names = [b"braid:features:" + key for key in rows]
    with redis.Redis.from_url(valkey) as client:
        value = client.get(names[0])
        assert isinstance(value, bytes)
        client.set(names[0], value[:-1])
        client.set(names[1], value)  # another key's
        client.set(names[2], b"")
        client.set(names[3], packed(b"key-3", np.full(8, np.nan, np.float32)))
        with cached(valkey) as other:
            found = got(other, list(rows))
            assert [row is not None for row in found] == [False, False, False, False, True]
            assert events(other) == {"damaged": 3, "read": 2}


def test_every_changed_byte_is_noticed() -> None:
    row = rows_of(1)[b"key-0"]
    value = packed(b"key-0", row)
    assert unpacked(b"key-0", value) is not None
    for place in range(len(value)):
        changed = bytearray(value)
        changed[place] ^= 1
        assert unpacked(b"key-0", bytes(changed)) is None
    assert unpacked(b"key-1", value) is None


@pytest.mark.redis
def test_nothing_is_written_beyond_the_budget(valkey: str) -> None:
    clock = Clock()
    with cached(valkey, budget=1, clock=clock) as cache:
        cache.put(rows_of(3))
        wait_for("refused", lambda: events(cache).get("full", 0) == 3, timeout=20)
        with redis.Redis.from_url(valkey) as client:
            assert client.dbsize() == 0


@pytest.mark.redis
def test_a_full_redis_is_left_alone_for_a_while(own_valkey: Valkey) -> None:
    clock = Clock()
    rows = rows_of(3)
    with (
        redis.Redis.from_url(own_valkey.address) as client,
        cached(own_valkey.address, clock=clock) as cache,
    ):
        client.config_set("maxmemory", "1mb")
        client.config_set("maxmemory-policy", "noeviction")
        cache.put(rows)
        wait_for("a failure", lambda: events(cache).get("failed", 0) == 1, timeout=20)
        client.flushall()
        client.config_set("maxmemory", "0")
        cache.put(rows)
        assert events(cache)["dropped"] == 3
        assert all(row is not None for row in cache.get("text", list(rows), 8, 0))
        clock.now += RETRY_S
        written(cache, rows)


@pytest.mark.redis
def test_a_redis_that_hangs_stops_nothing(
    own_valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded; all calls return, though nothing is answered."""
    clock = Clock()
    rows = rows_of(3)
    with cached(own_valkey.address, clock=clock) as cache:
        written(cache, rows)
        own_valkey.pause()
        monkeypatch.setattr(feature_cache, "MAX_KEYS", 10)
        cache.expect([b"absent-%d" % number for number in range(10_000)])
        cache.put({b"huge": np.zeros(MAX_ROW_BYTES // 4 + 1, np.float32)})
        assert events(cache)["dropped"] >= 10_000 - 10 - 128
        wait_for("a failure", lambda: events(cache).get("failed", 0) == 1, timeout=20)
        dropped = events(cache)["dropped"]
        cache.put(rows_of(7))
        assert events(cache)["dropped"] == dropped + 7
        own_valkey.resume()
        clock.now += RETRY_S
        written(cache, {b"new": rows[b"key-0"]})


def test_rows_that_wait_are_bounded_in_bytes() -> None:
    """Nobody listens there; the thread waits for the connection, or has given up."""
    with cached("redis://127.0.0.1:1") as cache:
        size = MAX_ROW_BYTES // 4
        count = MAX_WAITING_BYTES // MAX_ROW_BYTES + 10
        cache.put({b"%d" % n: np.zeros(size, np.float32) for n in range(count)})
        assert events(cache)["dropped"] >= 10
        assert MAX_KEYS * 64 < MAX_WAITING_BYTES


def test_without_room_in_memory_there_is_no_cache(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": None})
    assert feature_cache_of(settings.replace(cache={"local_bytes": 0})) is None
    plain = feature_cache_of(settings)
    assert plain is not None
    assert (plain.max_bytes, plain.store) == (64 << 20, None)


@pytest.mark.redis
def test_settings_say_whether_redis_is_used(valkey: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, redis={"url": valkey}, prefix=f"t{uuid.uuid4().hex[:8]}-")
    alone = feature_cache_of(settings.replace(cache={"redis_bytes": 0}))
    both = feature_cache_of(settings)
    assert alone is not None
    assert both is not None
    try:
        assert alone.store is None
        assert isinstance(both.store, RedisFeatures)
    finally:
        both.close()


@pytest.mark.redis
def test_metrics_show_what_was_looked_up(valkey: str) -> None:
    registry = CollectorRegistry()
    metrics = CacheMetrics(registry)
    assert "braid_cache_bytes" in generate_latest(registry).decode()
    assert metrics.facts() is None
    with cached(valkey) as cache:
        metrics.show(cache)
        rows = rows_of(2)
        written(cache, rows)
        cache.get("image", [*rows, b"other"], 8, 0)
        for name, labels, value in (
            ("braid_cache_features_total", {"modality": "image", "result": "hit"}, 2),
            ("braid_cache_features_total", {"modality": "image", "result": "miss"}, 1),
            ("braid_cache_bytes", {}, cache.nbytes),
            ("braid_cache_redis_total", {"event": "written"}, 2),
            ("braid_cache_redis_total", {"event": "failed"}, 0),
        ):
            assert registry.get_sample_value(name, labels) == value, name
        assert metrics.facts() == {"hits": 2, "misses": 1, "bytes": cache.nbytes}
