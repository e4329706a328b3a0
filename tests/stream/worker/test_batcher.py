"""When a micro-batch closes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.stream.worker.batcher import MicroBatcher
from braid.stream.worker.bisection import Budget


@dataclass(frozen=True)
class Cost:
    tokens: int = 0
    pixels: int = 0
    seconds: float = 0.0


BUDGET = Budget(records=4, tokens=100, pixels=1000, seconds=10.0)


def batcher() -> MicroBatcher[str]:
    return MicroBatcher(BUDGET, max_wait=0.5)


def test_it_closes_when_the_count_is_reached() -> None:
    queue = batcher()
    for name in "abcde":
        queue.add(name, Cost(tokens=1), since=0.0)
    assert queue.take(0.0) == ["a", "b", "c", "d"]
    assert queue.take(0.0) is None
    assert len(queue) == 1


def test_it_closes_when_one_of_another_kind_comes() -> None:
    """And not before: what comes alone waits as ever."""
    queue = batcher()
    for name, kind in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "x"), ("e", "x")):
        queue.add(name, Cost(tokens=1), since=0.0, kind=kind)
    assert [queue.take(0.0), queue.take(0.0), queue.take(0.0)] == [["a", "b"], ["c"], None]
    queue.add("f", Cost(tokens=1), since=0.4, kind="x")
    assert queue.take(0.5) == ["d", "e", "f"]


def test_it_closes_when_any_budget_is_reached() -> None:
    for cost in (Cost(tokens=60), Cost(pixels=600), Cost(seconds=6.0)):
        queue = batcher()
        queue.add("a", cost, since=0.0)
        assert queue.take(0.0) is None
        queue.add("b", cost, since=0.0)
        assert queue.take(0.0) == ["a"]


@pytest.mark.parametrize(
    ("first", "fits", "over"),
    [
        (Cost(tokens=50), Cost(tokens=50), Cost(tokens=51)),
        (Cost(pixels=500), Cost(pixels=500), Cost(pixels=501)),
        (Cost(seconds=5.0), Cost(seconds=5.0), Cost(seconds=5.5)),
    ],
)
def test_a_budget_may_be_used_up_and_not_exceeded(first: Cost, fits: Cost, over: Cost) -> None:
    queue = batcher()
    queue.add("a", first, since=0.0)
    queue.add("b", over, since=0.0)
    assert queue.take(0.0) == ["a"]
    queue = batcher()
    for _ in range(2):  # the second batch starts from a cost of 0 as the first one
        queue.add("a", first, since=0.0)
        queue.add("b", fits, since=0.0)
        assert queue.take(0.0) is None
        queue.add("c", first, since=0.0)
        assert queue.take(0.0) == ["a", "b"]
        queue.clear()
    queue.add("a", first, since=0.0)
    queue.add("b", over, since=0.0)
    assert queue.take(0.0) == ["a"]
    assert queue.take(0.5) == ["b"]


def test_another_budget_holds_for_what_waits_already() -> None:
    queue = batcher()
    for name in "abc":
        queue.add(name, Cost(tokens=10), since=0.0)
    queue.limit(BUDGET)
    assert queue.take(0.0) is None
    queue.limit(replace(BUDGET, tokens=20))
    assert queue.take(0.0) == ["a", "b"]
    queue.limit(replace(BUDGET, records=1))
    assert queue.take(0.0) == ["c"]


def test_nothing_of_what_is_dropped_counts_afterwards() -> None:
    queue = batcher()
    for name in "abc":
        queue.add(name, Cost(tokens=30), since=0.0)
    queue.clear()
    assert (len(queue), queue.due_in(9.0), queue.take(9.0)) == (0, None, None)
    for name in "def":
        queue.add(name, Cost(tokens=30), since=9.0)
    assert queue.due_in(9.1) == pytest.approx(0.4)
    assert queue.take(9.4) is None
    assert queue.take(9.5) == ["d", "e", "f"]


def test_an_overdue_batch_is_due_now() -> None:
    queue = batcher()
    queue.add("a", Cost(tokens=1), since=0.0)
    assert queue.due_in(0.5) == 0.0
    assert queue.due_in(3.0) == 0.0


def test_it_closes_when_the_oldest_has_waited_long_enough_whatever_came_later() -> None:
    queue = batcher()
    queue.add("late", Cost(tokens=1), since=1.4)
    queue.add("old", Cost(tokens=1), since=1.0)
    assert queue.due_in(1.4) == 0.5 - (1.4 - 1.0)
    assert queue.take(1.49) is None
    assert queue.take(1.5) == ["late", "old"]
    assert queue.due_in(1.5) is None


def test_an_item_over_the_budget_travels_alone() -> None:
    queue = batcher()
    queue.add("huge", Cost(tokens=1000), since=0.0)
    queue.add("small", Cost(tokens=1), since=0.0)
    assert queue.take(0.0) == ["huge"]
    assert queue.take(0.5) == ["small"]


@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 1200), st.floats(0, 12)), max_size=40)
)
def test_batches_keep_order_and_budget_and_lose_nothing(
    costs: list[tuple[int, int, float]],
) -> None:
    queue: MicroBatcher[int] = MicroBatcher(BUDGET, max_wait=0.5)
    taken: list[list[int]] = []
    for number, cost in enumerate(costs):
        queue.add(number, Cost(*cost), since=0.0)
        if number % 3 == 0 and (batch := queue.take(0.0)):
            taken.append(batch)
    while batch := queue.take(1.0):
        taken.append(batch)
    assert [number for batch in taken for number in batch] == list(range(len(costs)))
    for batch in taken:
        assert len(batch) <= BUDGET.records
        if len(batch) > 1:
            assert sum(costs[number][0] for number in batch) <= BUDGET.tokens
            assert sum(costs[number][1] for number in batch) <= BUDGET.pixels
            assert sum(costs[number][2] for number in batch) <= BUDGET.seconds
