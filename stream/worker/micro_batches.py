"""Step 3 of the worker: when a micro-batch closes, and which records are in it.

A batch closes when it is full (a budget of records, tokens, pixels and seconds of sound), when its
*oldest* record has waited long enough, or at a record with another preprocessing, since records are
encoded together only with equal preprocessing.

Order is kept while there is no more than one batch. Of a backlog, a window of several batches is
sorted by size, the largest first: each batch then has records of similar size, with little padding,
and the last ones, which end alone, are small. The next window begins when the last is taken. A
transaction commits unbroken runs of offsets only, so a window is what is committed together at the
latest.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Generic, Protocol, TypeVar

from .bisection import Budget


class Costed(Protocol):
    """What the batcher reads of an item's cost."""

    @property
    def tokens(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    @property
    def seconds(self) -> float: ...


T = TypeVar("T")


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    cost: Costed
    since: float
    kind: str


class MicroBatcher(Generic[T]):
    """Collects prepared records into micro-batches. Used by one thread.

    Args:
        budget: upper bounds of one batch.
        max_wait: seconds after which the oldest item closes its batch.

    Attributes:
        window: how many items of a backlog are sorted by size at a time; may be set at any time.
    """

    def __init__(self, budget: Budget, *, max_wait: float) -> None:
        self._budget = budget
        self._max_wait = max_wait
        self._waiting: deque[_Waiting[T]] = deque()
        self._fits = 0  # how many of the waiting, from the oldest on, fit one batch
        self._used = [0, 0, 0.0]  # tokens, pixels, seconds of those
        self._oldest = math.inf  # when the longest waiting of those was polled
        self._sorted = 0  # how many of the waiting, from the first on, are a sorted window
        self.window = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def limit(self, budget: Budget, *, max_wait: float | None = None) -> None:
        """Close batches by this budget, and after this wait, from here on."""
        self._max_wait = self._max_wait if max_wait is None else max_wait
        if budget != self._budget:
            self._budget = budget
            self._restart()
            self._extend()

    def add(self, item: T, cost: Costed, *, since: float, kind: str = "") -> None:
        """Put one item behind the others; `since` is when its record was polled."""
        self._waiting.append(_Waiting(item, cost, since, kind))
        self._extend()

    def take(self, now: float) -> list[T] | None:
        """The next batch if it is full or its oldest item has waited max_wait, else None."""
        if not self._waiting:
            return None
        full = self._fits < len(self._waiting) or self._fits >= self._budget.records
        if not full and now - self._oldest < self._max_wait:
            return None
        if not self._sorted:
            self._sort()
        self._sorted = max(0, self._sorted - self._fits)
        batch = [self._waiting.popleft().item for _ in range(self._fits)]
        self._restart()
        self._extend()
        return batch

    def due_in(self, now: float) -> float | None:
        """Seconds until the oldest item closes its batch; None when nothing waits."""
        if not self._waiting:
            return None
        return max(0.0, self._max_wait - (now - self._oldest))

    def clear(self) -> None:
        """Drop all waiting items."""
        self._waiting.clear()
        self._sorted = 0
        self._restart()

    def _sort(self) -> None:
        kind = self._waiting[0].kind
        alike = takewhile(lambda one: one.kind == kind, islice(self._waiting, self.window))
        window = sorted(alike, key=lambda one: self._size(one.cost), reverse=True)
        if len(window) <= self._fits:
            return
        for _ in window:
            self._waiting.popleft()
        self._waiting.extendleft(reversed(window))
        self._sorted = len(window)
        self._restart()
        self._extend()

    def _size(self, cost: Costed) -> float:
        """What part of a batch it takes."""
        budget = self._budget
        return (
            cost.tokens / budget.tokens
            + cost.pixels / budget.pixels
            + cost.seconds / budget.seconds
        )

    def _restart(self) -> None:
        self._fits, self._used, self._oldest = 0, [0, 0, 0.0], math.inf

    def _extend(self) -> None:
        while self._fits < min(len(self._waiting), self._budget.records):
            if self._waiting[self._fits].kind != self._waiting[0].kind:
                return
            cost = self._waiting[self._fits].cost
            used = [
                self._used[0] + cost.tokens,
                self._used[1] + cost.pixels,
                self._used[2] + cost.seconds,
            ]
            over = (
                used[0] > self._budget.tokens
                or used[1] > self._budget.pixels
                or used[2] > self._budget.seconds
            )
            if over and self._fits:
                return
            self._oldest = min(self._oldest, self._waiting[self._fits].since)
            self._fits, self._used = self._fits + 1, used
            if over:
                return
