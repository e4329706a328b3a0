"""What has just arrived: a ring, a rate and a freshness, by a clock that the test holds."""

from __future__ import annotations

from braid.index.service.recent_writes import FRESH_S, WINDOW_S, Arrivals
from tests.index.oracle import delete, upsert


class Time:
    def __init__(self) -> None:
        self.now = 50.0

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_000_000.0 + self.now


def arrivals_of(time: Time, size: int = 4) -> Arrivals:
    return Arrivals(size, clock=time.clock, wall=time.wall)


def names(arrivals: Arrivals, since: int | None) -> list[str]:
    return [write.id for write in arrivals.since(since)]


def test_the_newest_come_first_and_the_ring_is_small() -> None:
    arrivals = arrivals_of(Time())
    start = arrivals.number
    arrivals.applied([upsert(f"r{number}", number) for number in range(6)])
    assert arrivals.number == start + 6
    assert names(arrivals, None) == ["r5", "r4", "r3", "r2"]
    assert names(arrivals, start + 5) == ["r5"]
    assert names(arrivals, arrivals.number) == []
    arrivals.applied([upsert("r3", 9)])
    assert names(arrivals, None) == ["r3", "r5", "r4", "r2"]  # again: it is the newest now
    arrivals.applied([delete("r5", 10)])
    assert names(arrivals, None) == ["r3", "r4", "r2"]
    assert names(arrivals, arrivals.number) == []


def test_a_number_of_another_life_gets_all() -> None:
    arrivals = arrivals_of(Time())
    arrivals.applied([upsert("a", 1)])
    assert names(arrivals, arrivals.number + 1) == ["a"]
    time = Time()
    time.now += 60
    later = arrivals_of(time)  # restarted a minute after: no number comes twice
    assert later.number > arrivals.number


def test_rate_and_freshness() -> None:
    time = Time()
    arrivals = arrivals_of(time)
    assert (arrivals.rate(), arrivals.freshness_s()) == (0.0, None)
    for late_s in (0.5, 1.0, 9.0):
        ts = int((time.wall() - late_s) * 1000)
        arrivals.applied([upsert(f"late{late_s}", 1, ts=ts)])
        time.now += 1
    arrivals.applied([delete("late9.0", 2)])
    assert arrivals.rate() == 3 / WINDOW_S
    assert arrivals.freshness_s() == 1.0
    time.now += WINDOW_S
    assert arrivals.rate() == 0.0
    assert arrivals.freshness_s() == 1.0
    time.now += FRESH_S
    assert arrivals.freshness_s() is None
