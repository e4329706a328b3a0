"""Discrete events in virtual time, and servers with a queue."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]


class Events:
    """The clock, in seconds, and what is due when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Call]] = []
        self._count = 0

    def after(self, seconds: float, call: Call) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, call))

    def run(self) -> None:
        """Until nothing is due."""
        while self._events:
            self.now, _, call = heapq.heappop(self._events)
            call()


class Server:
    """Does so many pieces of work at a time, the others in order of arrival.

    Args:
        capacity: such as cores.

    Attributes:
        busy_s: seconds of work that began, all of them together.
    """

    def __init__(self, events: Events, capacity: int = 1) -> None:
        self._events, self.capacity, self.busy_s = events, capacity, 0.0
        self._free, self._queue = capacity, deque[tuple[float, Call]]()

    def run(self, seconds: float, then: Call) -> None:
        """Work for so long, and call `then` at its end."""
        self._queue.append((seconds, then))
        self._next()

    def _next(self) -> None:
        while self._free and self._queue:
            seconds, then = self._queue.popleft()
            self._free -= 1
            self.busy_s += seconds
            self._events.after(seconds, lambda then=then: self._ended(then))  # type: ignore[misc]

    def _ended(self, then: Call) -> None:
        self._free += 1
        then()
        self._next()
