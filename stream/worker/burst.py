"""Whether so many records fail that something else than the records must be at fault.

A broken model, a link server that is away or a producer gone wrong makes every record fail. Each
would become a dead letter, and a topic would be emptied within minutes. So the worker stops where
more than a share of the last records failed.

While the window is not full yet and holds more failures than that, publishing waits: a worker that
is started again within such a burst stops at the same offset, without having committed any of it.
"""

from __future__ import annotations

from collections import deque

from ..errors import BadRecord, WorkerError
from ..settings import Settings

HOLD_S = 2.0  # without a new record; then these are too few to judge by, and are published
SHOWN = 3  # reasons in the message


class Burst:
    """The outcomes of the last records that were decoded. Used by one thread."""

    def __init__(self, settings: Settings) -> None:
        self._share = settings.poison_share
        self._window = settings.poison_window
        self._outcomes: deque[bool] = deque()
        self._failed = 0
        self._reasons: deque[str] = deque(maxlen=SHOWN)
        self._last = 0.0

    def good(self, count: int, now: float) -> None:
        """So many records got their outputs."""
        for _ in range(count):
            self._add(False, now)

    def bad(self, error: BadRecord, now: float) -> None:
        """A record became a dead letter.

        Raises:
            WorkerError: they are too many.
        """
        self._add(True, now)
        if str(error) not in self._reasons:
            self._reasons.append(str(error))
        if len(self._outcomes) == self._window and self._too_many():
            raise WorkerError(
                f"{self._failed} of the last {self._window} records could not be prepared or "
                f"encoded, the limit is a share of {self._share:g}: the model, the device, a link "
                "server or a producer is likely at fault. Nothing more is committed; mend it, or "
                "let them all become dead letters by BRAID_POISON_SHARE=1. The last reasons: "
                + "; ".join(self._reasons)
            )

    def holds(self, now: float, *, at_rest: bool) -> bool:
        """Whether nothing is to be published, because the first records failed so far.

        Args:
            at_rest: no outcome is to be expected of what has been read.
        """
        waited = at_rest and now - self._last > HOLD_S
        return len(self._outcomes) < self._window and self._too_many() and not waited

    def _too_many(self) -> bool:
        return self._failed > self._share * len(self._outcomes)

    def _add(self, failed: bool, now: float) -> None:
        if len(self._outcomes) == self._window:
            self._failed -= self._outcomes.popleft()
        self._outcomes.append(failed)
        self._failed += failed
        self._last = now
