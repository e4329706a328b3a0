"""When an index node is behind: by the age of the ends that it has not reached."""

from __future__ import annotations

from braid.stream.index_node.lag import Lag


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_old_end_that_is_not_reached_is_behind() -> None:
    clock = Clock()
    lag = Lag(10.0, clock=clock)
    assert lag.behind() is None
    lag.seen(0, 5, 50, age_s=0.0)
    clock.now += 9
    lag.seen(0, 20, 90, age_s=0.0)
    assert lag.behind() is None
    clock.now += 2
    lag.seen(0, 49, 200, age_s=0.0)
    assert lag.behind() == "behind: partition 0 of vectors is read to 49, its end was 50 11 s ago"
    lag.seen(0, 50, 300, age_s=0.0)  # that end is reached; the next one is young
    assert lag.behind() is None


def test_steady_writes_are_not_behind() -> None:
    clock = Clock()
    lag = Lag(10.0, clock=clock)
    for second in range(100):
        clock.now += 1
        lag.seen(0, 100 * second, 100 * second + 90, age_s=0.01)  # never quite at the end
        lag.seen(1, 7, 7, age_s=0.01)
        assert lag.behind() is None


def test_a_broker_that_does_not_answer_leaves_it_behind() -> None:
    clock = Clock()
    lag = Lag(10.0, clock=clock)
    lag.seen(0, 7, 7, age_s=0.0)
    lag.seen(1, 7, 7, age_s=None)
    clock.now += 11
    lag.seen(0, 7, 7, age_s=0.0)
    lag.seen(1, 7, 7, age_s=None)
    assert lag.behind() == "behind: partition 1 of vectors was last read 11 s ago"
    lag.seen(1, 7, 7, age_s=0.0)
    assert lag.behind() is None
