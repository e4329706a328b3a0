"""Ring buffer of the last applied writes, with their rate and freshness."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from statistics import median

from ..store import Delete, Upsert

SIZE = 64
WINDOW_S = 10.0  # window of the rate
FRESH_S = 60.0  # window of the freshness
FRESH = 512  # most samples of the freshness


class RecentWrites:
    """A ring buffer of upserts, the newest last; deletions remove their record.

    One thread calls `applied`, any thread may read. Each upsert has a number that only grows, also
    across restarts: the first is the time in milliseconds since 1970.

    Args:
        size: number of upserts.
        clock: monotonic seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        size: int = SIZE,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._size = size
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._number = int(wall() * 1000)
        self._ring: OrderedDict[str, tuple[int, Upsert]] = OrderedDict()
        self._counts: deque[tuple[float, int]] = deque()
        self._fresh: deque[tuple[float, float]] = deque(maxlen=FRESH)

    @property
    def number(self) -> int:
        """The number of the newest upsert."""
        return self._number

    def applied(self, writes: Sequence[Upsert | Delete]) -> None:
        """Add writes that have just become searchable."""
        now, now_s = self._clock(), self._wall()
        with self._lock:
            number = self._number
            for write in writes:
                self._ring.pop(write.id, None)
                if isinstance(write, Upsert):
                    number += 1
                    self._ring[write.id] = (number, write)
            while len(self._ring) > self._size:
                self._ring.popitem(last=False)
            upserts = number - self._number
            if upserts:
                self._counts.append((now, upserts))
                for _, write in list(self._ring.values())[-min(upserts, self._size) :]:
                    self._fresh.append((now, max(0.0, now_s - write.ts / 1000)))
            self._forget(now)
            self._number = number  # last: a reader that sees the number finds the upserts

    def since(self, number: int | None) -> list[Upsert]:
        """The upserts after `number`, newest first; all of them for None or an unknown
        number.
        """
        with self._lock:
            if number is None or number > self._number:
                number = -1
            return [write for at, write in reversed(self._ring.values()) if at > number]

    def rate(self) -> float:
        """Upserts a second over the last WINDOW_S seconds."""
        with self._lock:
            self._forget(self._clock())
            return sum(count for _, count in self._counts) / WINDOW_S

    def freshness_s(self) -> float | None:
        """Median seconds from a record's `ts` to being searchable, over the last minute."""
        oldest = self._clock() - FRESH_S
        with self._lock:
            seconds = [age for at, age in self._fresh if at >= oldest]
        return median(seconds) if seconds else None

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - WINDOW_S:
            self._counts.popleft()
