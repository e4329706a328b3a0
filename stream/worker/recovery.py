"""Recovery after a failed transaction: a new producer, then the committed offsets.

Recovery is needed at the start and after each failed transaction. The order matters: opening the
producer commits or aborts earlier transactions, and only then are the group's committed offsets
final. While the broker does not answer, recovery is repeated with exponential backoff.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from ..errors import BrokerError, Fenced, PublishRefused, Unreachable, WorkerError
from ..kafka.waiting import Waiting
from .bounded_sink import BoundedSink

log = logging.getLogger(__name__)

NOT_PUBLISHED = (PublishRefused, Unreachable, Fenced)

MAX_REFUSALS = 5  # in a row without one success: not a rebalance, something is broken
# Two workers with one slot fence each other in turn; the first one reaches the limit first and
# stops. A single fencing, after a transaction timeout, does not end a worker.
MAX_FENCINGS = 3
FENCINGS_WITHIN_S = 600.0


class Recovery:
    """The recovery of one worker. Used by its loop alone.

    Args:
        rewind: seeks to the committed offsets of the owned partitions; raises Unreachable.
        address: the broker's, for messages.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sink: BoundedSink,
        rewind: Callable[[], None],
        *,
        address: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink, self._rewind, self._clock = sink, rewind, clock
        self._waiting = Waiting(address, clock)
        self._refusals = 0
        self._fencings: deque[float] = deque(maxlen=MAX_FENCINGS)
        self._unread = False  # whether the committed offsets were not there to read
        self.pending = True

    @property
    def waits_for(self) -> str | None:
        """Why recovery waits for the broker, or None."""
        return self._waiting.reason if self.pending else None

    def begin(self, error: BrokerError) -> None:
        """Begin after a failed transaction; everything in flight has been dropped.

        Raises:
            Fenced: too often: another process has this worker's slot.
            WorkerError: too many refusals in a row.
        """
        if isinstance(error, Fenced):
            self._fenced(error)
        elif not isinstance(error, Unreachable):
            self._refusals += 1
            log.warning("transaction refused, its records are read again: %s", error)
            if self._refusals >= MAX_REFUSALS:
                raise WorkerError(f"{self._refusals} refusals in a row: {error}") from error
        self.pending = True

    def committed(self) -> None:
        """Note that a transaction was committed."""
        self._refusals = 0

    def step(self) -> bool:
        """Take the next step, if one is due. Returns whether the worker may read and publish.

        Raises:
            Fenced: see `begin`.
            BrokerError: the broker refuses this worker permanently.
        """
        if not self.pending:
            return True
        if self._sink.future is None:
            if not self._waiting.due:
                return False
            # Offsets that stay unsettled may be of a transaction whose end the broker confirmed
            # and then lost.
            doubted = self._unread
            self._sink.submit(lambda sink: sink.open(doubted=doubted))
        if not self._sink.ended:
            return False
        self._unread = False
        try:
            self._sink.result()
            self._unread = True
            self._rewind()
            self._unread = False
        except Fenced as error:
            self._fenced(error)
        except (Unreachable, PublishRefused) as error:
            self._waiting.failed(error)
        else:
            self._waiting.over()
            self.pending = False
        return not self.pending

    def _fenced(self, error: Fenced) -> None:
        now = self._clock()
        self._fencings.append(now)
        full = len(self._fencings) == MAX_FENCINGS
        if full and now - self._fencings[0] < FENCINGS_WITHIN_S:
            raise error
        log.warning("a new producer is made, records are read again: %s", error)
