"""Thumbnails and snippets keep one budget for all writers, on a real Valkey."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from braid.index.media_cache import (
    OVERHEAD,
    PREFIX,
    SHARED_PREFIX,
    Media,
    MediaCache,
)
from braid.index.payloads import KEPT_S, Payloads

AGES, SIZES, SUM = (PREFIX + name for name in ("ages", "sizes", "sum"))
PICTURE = Media(data=b"RIFF\0\xff", type="image/webp")
SOUND = Media(data=b"\xff\xfb\0", type="audio/mpeg")


def media(nbytes: int, fill: bytes = b"x") -> Media:
    return Media(data=fill * nbytes, type="image/webp")


def test_without_redis_there_are_none() -> None:
    media_cache = MediaCache(Payloads(None))
    assert not media_cache.put_many({("thumb", "a"): PICTURE})
    assert not media_cache.drop_many([("thumb", "a")])
    assert media_cache.get("thumb", "a") is None
    assert media_cache.nbytes() is None


@pytest.mark.redis
def test_media_are_kept_found_and_dropped(valkey: str) -> None:
    media_cache = MediaCache(Payloads(valkey))
    assert media_cache.put_many({("thumb", "a"): PICTURE, ("snippet", "ü/☃"): SOUND})
    assert media_cache.get("thumb", "a") == PICTURE
    assert media_cache.get("snippet", "ü/☃") == SOUND
    assert media_cache.get("snippet", "a") is None
    assert media_cache.has("thumb", "a")
    assert not media_cache.has("snippet", "a")
    assert media_cache.drop_many([("thumb", "a"), ("snippet", "nobody")])
    assert media_cache.get("thumb", "a") is None
    assert media_cache.drop_many([("snippet", "ü/☃")])
    with redis.Redis.from_url(valkey) as server:
        assert server.keys(PREFIX + "*") == [SUM.encode()]
    assert media_cache.nbytes() == 0


@pytest.mark.redis
def test_each_prefix_has_a_budget_of_its_own(valkey: str) -> None:
    payloads = Payloads(valkey)
    records, shared = MediaCache(payloads), MediaCache(payloads, prefix=SHARED_PREFIX, budget=3000)
    assert records.put_many({("thumb", "a"): media(2000)})
    for number in range(5):
        assert shared.put_many({("query", str(number)): media(1000)})
    assert [n for n in range(5) if shared.get("query", str(n)) is not None] == [3, 4]
    assert records.get("thumb", "a") is not None
    assert records.get("query", "4") is None
    with redis.Redis.from_url(valkey) as server:
        assert 0 < server.ttl(f"{SHARED_PREFIX}query:4") <= KEPT_S


@pytest.mark.redis
def test_the_oldest_make_room(valkey: str) -> None:
    payloads = Payloads(valkey)
    budget = 5 * 1500  # room for four of 1000 bytes, their keys and what Redis spends beside them
    media_cache = MediaCache(payloads, budget=budget)
    for number in range(10):
        assert media_cache.put_many({("thumb", str(number)): media(1000)})
    kept = [str(n) for n in range(10) if media_cache.get("thumb", str(n)) is not None]
    assert kept == ["5", "6", "7", "8", "9"]
    counted = media_cache.nbytes()
    assert counted is not None
    assert 5 * 1000 < counted <= budget
    assert media_cache.put_many({("thumb", "5"): media(1000, b"y")})  # anew: now the youngest
    assert media_cache.put_many({("thumb", "10"): media(1000)})
    assert media_cache.get("thumb", "6") is None
    assert media_cache.get("thumb", "5") == media(1000, b"y")
    assert media_cache.put_many(
        {("snippet", "large"): media(budget)}
    )  # over the budget all by itself
    assert media_cache.nbytes() == 0
    with redis.Redis.from_url(valkey) as server:
        assert server.zcard(AGES) == server.hlen(SIZES) == 0


@pytest.mark.redis
def test_what_is_counted_is_what_is_there(valkey: str) -> None:
    """Several writers at once, over each other's ids: the sum stays the sum."""
    budget = 40_000

    def write(writer: int) -> None:
        media_cache = MediaCache(Payloads(valkey), budget=budget)
        for number in range(60):
            name = str((number * 7 + writer) % 20)
            assert media_cache.put_many({("thumb", name): media(100 * (writer + 1) + number)})
            if number % 9 == 0:
                assert media_cache.drop_many([("thumb", name)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with redis.Redis.from_url(valkey) as server:
        keys = server.keys(PREFIX + "thumb:*")
        sizes = {key: int(size) for key, size in server.hgetall(SIZES).items()}
        assert sorted(keys) == sorted(sizes) == sorted(server.zrange(AGES, 0, -1))
        assert sum(sizes.values()) == int(server.get(SUM) or 0) <= budget
        for key in keys:
            assert sizes[key] == server.strlen(key) + 2 * len(key) + OVERHEAD
            used = server.memory_usage(key)
            assert used is not None
            assert used <= sizes[key] + 64 + server.strlen(key) // 4  # the allocator rounds up


@pytest.mark.redis
def test_a_medium_belongs_to_one_version_and_the_newest_stays(valkey: str) -> None:
    media_cache = MediaCache(Payloads(valkey))
    media_cache.put_many({("thumb", "a"): PICTURE}, version=10)
    older = media(10)
    assert media_cache.put_many({("thumb", "a"): older, ("thumb", "b"): older}, version=9)
    assert media_cache.get("thumb", "a", version=10) == PICTURE
    assert media_cache.get("thumb", "a", version=9) is None
    assert media_cache.get("thumb", "b", version=9) == older
    assert media_cache.get("thumb", "b", version=10) is None
    newer = media(12)
    assert media_cache.put_many({("thumb", "b"): newer}, version=10)
    assert media_cache.get("thumb", "b", version=10) == newer


@pytest.mark.redis
def test_a_count_without_ages_starts_again(valkey: str) -> None:
    """Redis itself may evict any of the keys under its own limit."""
    media_cache = MediaCache(Payloads(valkey), budget=2000)
    media_cache.put_many({("thumb", "a"): media(100)})
    with redis.Redis.from_url(valkey) as server:
        server.delete(AGES)
        server.set(SUM, 5000)
    assert media_cache.put_many({("thumb", "b"): media(100)})
    assert media_cache.put_many({("thumb", "c"): media(100)})
    assert media_cache.get("thumb", "c") is not None
    counted = media_cache.nbytes()
    assert counted is not None
    assert 0 < counted <= 2000


@pytest.mark.redis
def test_a_budget_of_nothing_keeps_nothing(valkey: str) -> None:
    media_cache = MediaCache(Payloads(valkey), budget=0)
    assert media_cache.put_many({("thumb", "a"): PICTURE})
    with redis.Redis.from_url(valkey) as server:
        assert server.keys("*") == []


@pytest.mark.redis
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no type",
        b"image/webp\0no version",
        b"image/webp\01\0another version",
        b"text/html\00\0<script>",
        b"image/svg+xml\n\00\0x",
    ],
)
def test_what_something_else_wrote_is_not_served(valkey: str, value: bytes) -> None:
    with redis.Redis.from_url(valkey) as server:
        server.set(PREFIX + "thumb:a", value)
    assert MediaCache(Payloads(valkey)).get("thumb", "a") is None
