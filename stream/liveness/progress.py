"""Progress of a worker or a reader: whether offsets move while there is lag.

The loop writes `Progress`; the watchdog, which ends a stuck process, and `/healthz` read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """When a worker's loop last passed, and when its committed offsets last moved.

    Attributes:
        passed: monotonic seconds of the loop's last pass.
        moved_at: monotonic seconds of the last commit, the last moment without lag, the last
            assignment, or the last intended pause.
        lag: the known number of records that are not committed.
        ended: the loop has been left.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.passed = self.moved_at = clock()
        self.lag = 0
        self.ended = False

    def pass_(self) -> None:
        self.passed = self._clock()

    def moved(self) -> None:
        self.moved_at = self._clock()

    def note_lag(self, lag: int) -> None:
        self.lag = lag
        if not lag:
            self.moved()

    def end(self) -> None:
        self.ended = True

    @property
    def age_s(self) -> float:
        """Seconds since the last progress."""
        return self._clock() - self.moved_at
