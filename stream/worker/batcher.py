"""The micro-batcher: collects records until a budget is full or the oldest has waited long enough.

A batch closes when it is full (a budget of records, tokens, pixels and seconds of sound), when its
*oldest* record has waited long enough, or at a record with another preprocessing, since records are
encoded together only with equal preprocessing. Order is kept. The clock is passed in.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Costed(Protocol):
    """What the batcher reads of an item's cost."""

    @property
    def tokens(self) -> int: ...
    @property
    def pixels(self) -> int: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Upper bounds of one micro-batch. An item over the budget is a batch of its own."""

    records: int
    tokens: int
    pixels: int
    seconds: float


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
    """

    def __init__(self, budget: Budget, *, max_wait: float) -> None:
        self._budget = budget
        self._max_wait = max_wait
        self._waiting: deque[_Waiting[T]] = deque()
        self._fits = 0  # how many of the waiting, from the oldest on, fit one batch
        self._used = [0, 0, 0.0]  # tokens, pixels, seconds of those
        self._oldest = math.inf  # when the longest waiting of those was polled

    def __len__(self) -> int:
        return len(self._waiting)

    def limit(self, budget: Budget) -> None:
        """Close batches by this budget from here on."""
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
        self._restart()

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
