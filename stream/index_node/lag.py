"""The age of what a reader has applied, measured at the ends of its partitions."""

from __future__ import annotations

import time
from collections.abc import Callable


class Lag:
    """Whether a partition's end of some seconds ago has been reached.

    An offset says nothing of time, and under steady writes the newest end is never reached; so an
    end is noted, and the next one only when that has been reached.

    Args:
        limit_s: how long ago an end may have been noted that is not reached yet.
        clock: monotonic seconds.
    """

    def __init__(self, limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._clock = limit_s, clock
        self._ends: dict[int, tuple[int, float]] = {}
        self._at: dict[int, int] = {}
        self._answered: dict[int, float] = {}  # when the broker answered last

    def seen(self, partition: int, at: int, end: int, *, age_s: float | None) -> None:
        """What is known of a partition now.

        Args:
            at: the next offset to read.
            end: of what is committed, as of the broker's last answer.
            age_s: how long ago that answer came; None: none has come.
        """
        now = self._clock()
        noted = self._ends.get(partition)
        if noted is None or at >= noted[0]:
            self._ends[partition] = end, now
        self._at[partition] = at
        if age_s is None:
            self._answered.setdefault(partition, now)
        else:
            self._answered[partition] = now - age_s

    def behind(self) -> str | None:
        """Names a partition that is too late, and its offsets; None if there is none."""
        now = self._clock()
        for partition, (end, since) in sorted(self._ends.items()):
            at = self._at[partition]
            if at < end and now - since > self._limit_s:
                return (
                    f"behind: partition {partition} of vectors is read to {at}, its end was {end} "
                    f"{now - since:.0f} s ago"
                )
        oldest = min(self._answered, key=self._answered.__getitem__, default=None)
        if oldest is not None and now - self._answered[oldest] > self._limit_s:
            silent_s = now - self._answered[oldest]
            return f"behind: partition {oldest} of vectors was last read {silent_s:.0f} s ago"
        return None
