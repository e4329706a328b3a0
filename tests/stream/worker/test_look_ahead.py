"""Batches of a backlog: similar in size, and nothing overtakes by more than a window."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from braid.stream.worker.bisection import Budget
from braid.stream.worker.micro_batches import MicroBatcher


@dataclass(frozen=True)
class Cost:
    tokens: int = 0
    pixels: int = 0
    seconds: float = 0.0


BUDGET = Budget(records=2, tokens=100, pixels=1000, seconds=10.0)


def batcher(window: int) -> MicroBatcher[int]:
    queue: MicroBatcher[int] = MicroBatcher(BUDGET, max_wait=0.5)
    queue.window = window
    return queue


def fill(queue: MicroBatcher[int], sizes: list[int]) -> None:
    for size in sizes:
        queue.add(size, Cost(tokens=size), since=0.0)


def all_of(queue: MicroBatcher[int], now: float = 0.0) -> list[list[int]]:
    batches = []
    while (batch := queue.take(now)) is not None:
        batches.append(batch)
    return batches


def test_a_window_is_sorted_over_its_batches_and_the_next_begins_behind_it() -> None:
    queue = batcher(4)
    fill(queue, [3, 9, 1, 7, 30, 20, 40, 10, 50])
    assert all_of(queue) == [[9, 7], [3, 1], [40, 30], [20, 10]]
    assert all_of(queue, 1.0) == [[50]]


def test_what_comes_later_waits_behind_the_window_that_is_being_taken() -> None:
    queue = batcher(4)
    fill(queue, [3, 9, 1, 7])
    assert queue.take(0.0) == [9, 7]
    fill(queue, [40, 50])
    assert queue.take(0.0) == [3, 1]
    fill(queue, [45])
    assert queue.take(0.0) == [50, 45]


def test_one_batch_is_no_backlog_and_keeps_its_order() -> None:
    queue = batcher(4)
    fill(queue, [3, 9])
    assert queue.take(0.0) == [3, 9]
    fill(queue, [3, 9, 1])
    queue.window = 2
    assert queue.take(0.0) == [3, 9]
    assert queue.take(0.0) is None


def test_an_overdue_batch_that_is_not_full_keeps_its_order() -> None:
    queue = MicroBatcher[int](replace(BUDGET, records=4), max_wait=0.5)
    queue.window = 4
    fill(queue, [3, 9, 1])
    assert queue.take(0.5) == [3, 9, 1]


def test_records_of_equal_size_keep_their_order() -> None:
    queue = batcher(4)
    for number in range(4):
        queue.add(number, Cost(tokens=5), since=0.0)
    assert all_of(queue) == [[0, 1], [2, 3]]


def test_sizes_are_shares_of_the_budget() -> None:
    queue = batcher(6)
    costs = [Cost(tokens=10), Cost(pixels=200), Cost(seconds=3.0), Cost(tokens=5, seconds=3.0)]
    for number, cost in enumerate(costs):
        queue.add(number, cost, since=0.0)
    assert all_of(queue) == [[3, 2], [1, 0]]


def test_a_part_of_the_seconds_counts_as_much_as_a_part_of_the_tokens() -> None:
    queue = batcher(4)
    for item, cost in enumerate((Cost(seconds=4.0), Cost(tokens=50), Cost(seconds=6.0))):
        queue.add(item, cost, since=0.0)
    queue.add(3, Cost(pixels=1), since=0.0)
    assert all_of(queue) == [[2, 1], [0, 3]]


def test_a_backlog_after_a_batch_that_was_not_full_is_sorted() -> None:
    queue = batcher(4)
    fill(queue, [5])
    assert queue.take(1.0) == [5]
    fill(queue, [3, 9, 1, 7])
    assert all_of(queue) == [[9, 7], [3, 1]]


def test_another_wait_holds_for_what_waits_already() -> None:
    queue = batcher(4)
    fill(queue, [5])
    queue.limit(BUDGET)
    assert queue.take(0.4) is None
    queue.limit(BUDGET, max_wait=0.3)
    assert queue.take(0.4) == [5]


def test_another_kind_ends_the_window() -> None:
    queue = batcher(9)
    for number, kind in enumerate("xxxyyyy"):
        queue.add(number, Cost(tokens=number), since=0.0, kind=kind)
    assert all_of(queue) == [[2, 1], [0], [6, 5], [4, 3]]


def test_the_oldest_of_a_window_closes_its_batch() -> None:
    queue = batcher(4)
    fill(queue, [1, 2])
    queue.add(30, Cost(tokens=30), since=1.0)
    assert queue.take(1.0) == [30, 2]
    assert queue.due_in(0.2) == 0.3
    assert queue.take(0.4) is None
    assert queue.take(0.5) == [1]


def test_nothing_of_a_window_is_left_after_a_drop() -> None:
    queue = batcher(4)
    fill(queue, [1, 2, 3, 4])
    assert queue.take(0.0) == [4, 3]
    queue.clear()
    fill(queue, [1, 2, 3, 4])
    assert queue.take(0.0) == [4, 3]


@given(
    sizes=st.lists(st.integers(0, 120), max_size=60),
    window=st.integers(0, 12),
    arrivals=st.lists(st.integers(1, 7), min_size=1, max_size=60),
)
def test_nothing_is_lost_and_nothing_overtakes_by_more_than_a_window(
    sizes: list[int], window: int, arrivals: list[int]
) -> None:
    queue: MicroBatcher[int] = MicroBatcher(BUDGET, max_wait=0.5)
    queue.window = window
    left, taken = list(enumerate(sizes)), list[int]()
    for count in arrivals:
        for number, size in left[:count]:
            queue.add(number, Cost(tokens=size), since=0.0)
        left = left[count:]
        if (batch := queue.take(0.0)) is not None:
            taken += batch
            used = sum(sizes[number] for number in batch)
            assert len(batch) == 1 or (len(batch) <= 2 and used <= BUDGET.tokens)
    for number, size in left:
        queue.add(number, Cost(tokens=size), since=0.0)
    while (batch := queue.take(1.0)) is not None:
        taken += batch
    assert sorted(taken) == list(range(len(sizes)))
    for place, number in enumerate(taken):
        assert abs(place - number) <= max(0, window - 1)
