"""Stops the worker when more than a share of the last records failed.

A broken model, an unreachable link server or a faulty producer makes every record fail, and each
would become a dead letter. The worker stops instead.

Until the window is full, publishing waits while it holds more failures than the share allows. A
worker that is restarted within a burst therefore stops at the same offset and commits none of it.
"""

from __future__ import annotations

from collections import deque

from ..errors import BadRecord, WorkerError
from ..settings import Settings

HOLD_S = 2.0  # without a new record; then the few that there are get published
SHOWN = 3  # reasons in the message


ENCODING = (
    "could not be prepared or encoded",
    "the model, the device, a link server or a producer is likely at fault",
)


class Burst:
    """The outcomes of the last records that were decoded. Used by one thread.

    Args:
        words: for the error: what failed, and what is likely at fault.
    """

    def __init__(self, settings: Settings, words: tuple[str, str] = ENCODING) -> None:
        self._words = words
        self._share = settings.worker.poison_share
        self._window = settings.worker.poison_window
        self._outcomes: deque[bool] = deque()
        self._failed = 0
        self._kinds: deque[str] = deque(maxlen=SHOWN)
        self._last = 0.0

    def good(self, count: int, now: float) -> None:
        """Count records that were encoded."""
        for _ in range(count):
            self._add(False, now)

    def bad(self, error: BadRecord, now: float) -> None:
        """Count a record that became a dead letter.

        Raises:
            WorkerError: too many of the last records failed.
        """
        self._add(True, now)
        if error.brief not in self._kinds:
            self._kinds.append(error.brief)
        if len(self._outcomes) == self._window and self._too_many():
            failed, fault = self._words
            raise WorkerError(
                f"{self._failed} of the last {self._window} records {failed}, the limit is a "
                f"share of {self._share:g}: {fault}. Nothing more is committed; mend it, or "
                "let them all become dead letters by BRAID_WORKER__POISON_SHARE=1. Reasons are "
                "logged with log_level = debug. The last errors: " + "; ".join(self._kinds)
            )

    def holds(self, now: float, *, at_rest: bool) -> bool:
        """Whether publishing must wait, because too many of the first records failed.

        Args:
            at_rest: no record is being prepared or encoded.
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
