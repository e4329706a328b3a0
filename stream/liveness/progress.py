"""Progress of a worker or a reader: whether offsets move while there is lag.

`Progress` is written by the loop and read by whoever watches it: the watchdog, which ends a process
that is stuck, and `/healthz`.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """When a worker's loop last passed, and when its committed offsets last moved.

    Attributes:
        passed: monotonic seconds of the loop's last pass.
        moved_at: of the last commit; also of the last moment without lag, the last assignment, and
            the last pause that was intended.
        lag: records that are not committed, as far as is known.
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
