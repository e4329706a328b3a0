"""Limits a generation that is being built to a share of the time while live traffic runs.

While the live worker of the process has records in flight, the building worker is active for
`share` of the time, measured by the duration of its own batches. Otherwise it is not limited.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_REST_S = 2.0


class Throttle:
    """Whether one worker may process the next batch. Used by its loop alone.

    Args:
        share: of the time while others are busy, in (0, 1].
        others_busy: whether the live worker has records in flight.
    """

    def __init__(self, share: float, others_busy: Callable[[], bool]) -> None:
        self._share, self._others_busy = share, others_busy
        self._rest_until = 0.0

    def worked(self, seconds: float, now: float) -> None:
        """Count a batch that took `seconds` and ended at `now`."""
        rest_s = min(MAX_REST_S, seconds * (1 / self._share - 1))
        self._rest_until = max(self._rest_until, now + rest_s)

    def ready(self, now: float) -> bool:
        """Whether the next batch may be processed."""
        return now >= self._rest_until or not self._others_busy()
