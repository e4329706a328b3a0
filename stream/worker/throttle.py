"""The pace of a generation that is being built: live traffic keeps its latency.

While the live worker of the process has records on their way, the builder works for `share` of the
time and rests for the remainder, measured by what its own batches took; with nothing live to do it
never rests.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_REST_S = 2.0


class Throttle:
    """Tells one worker when to go on. Used by its loop alone.

    Args:
        share: of the time that may be worked while others are busy, in (0, 1].
        others_busy: whether the live worker has records on their way.
    """

    def __init__(self, share: float, others_busy: Callable[[], bool]) -> None:
        self._share, self._others_busy = share, others_busy
        self._rest_until = 0.0

    def worked(self, seconds: float, now: float) -> None:
        """A batch took so long, and ended now."""
        rest_s = min(MAX_REST_S, seconds * (1 / self._share - 1))
        self._rest_until = max(self._rest_until, now + rest_s)

    def ready(self, now: float) -> bool:
        return now >= self._rest_until or not self._others_busy()
