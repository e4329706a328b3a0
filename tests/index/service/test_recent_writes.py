"""Recent writes: ring buffer, rate and freshness, with a fake clock."""

from __future__ import annotations

from braid.index.service.recent_writes import FRESH_S, WINDOW_S, RecentWrites
from tests.index.oracle import delete, upsert


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_000_000.0 + self.now


def arrivals_of(time: Time, size: int = 4) -> RecentWrites:
    return RecentWrites(size, clock=time.clock, wall=time.wall)


def names(recent_writes: RecentWrites, since: int | None) -> list[str]:
    return [write.id for write in recent_writes.since(since)]


def test_the_newest_come_first_and_the_ring_is_small() -> None:
    recent_writes = arrivals_of(Time())
    start = recent_writes.number
    recent_writes.applied([upsert(f"r{number}", number) for number in range(6)])
    assert recent_writes.number == start + 6
    assert names(recent_writes, None) == ["r5", "r4", "r3", "r2"]
    assert names(recent_writes, start + 5) == ["r5"]
    assert names(recent_writes, recent_writes.number) == []
    recent_writes.applied([upsert("r3", 9)])
    assert names(recent_writes, None) == ["r3", "r5", "r4", "r2"]  # again: it is the newest now
    recent_writes.applied([delete("r5", 10)])
    assert names(recent_writes, None) == ["r3", "r4", "r2"]
    assert names(recent_writes, recent_writes.number) == []


def test_a_number_of_another_life_gets_all() -> None:
    recent_writes = arrivals_of(Time())
    recent_writes.applied([upsert("a", 1)])
    assert names(recent_writes, recent_writes.number + 1) == ["a"]
    time = Time()
    time.now += 60
    later = arrivals_of(time)  # restarted a minute after: no number comes twice
    assert later.number > recent_writes.number


def test_rate_and_freshness() -> None:
    time = Time()
    recent_writes = arrivals_of(time)
    assert (recent_writes.rate(), recent_writes.freshness_s()) == (0.0, None)
    for late_s in (0.5, 1.0, 9.0):
        ts = int((time.wall() - late_s) * 1000)
        recent_writes.applied([upsert(f"late{late_s}", 1, ts=ts)])
        time.now += 1
    recent_writes.applied([delete("late9.0", 2)])
    assert recent_writes.rate() == 3 / WINDOW_S
    assert recent_writes.freshness_s() == 1.0
    time.now += WINDOW_S
    assert recent_writes.rate() == 0.0
    assert recent_writes.freshness_s() == 1.0
    time.now += FRESH_S
    assert recent_writes.freshness_s() is None
