"""The open transaction of a loop, and what its end means for the messages in flight.

A transaction publishes the finished runs of an offset ledger on the sink's thread. If it is
refused, everything in flight is dropped and read again from the committed offsets
(`braid.stream.worker.recovery`); if only its lease was stale, the runs stay and are published with
the next. The worker's publisher and the loops that turn other topics into
`records` have one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from ..errors import StaleLease
from ..kafka.sink import TransactionalSink
from ..liveness.progress import Progress
from .bounded_sink import BoundedSink
from .offsets import OffsetLedger, Run
from .recovery import NOT_PUBLISHED, Recovery

T = TypeVar("T")

MAX_STALE = 3  # in a row; each time the loop has taken the present epoch of the member


class Committing(Protocol):
    """What is told of committed offsets: the consumer."""

    def note_committed(self, offsets: Mapping[int, int]) -> None: ...


class OpenTransaction(Generic[T]):
    """At most one transaction at a time. Used by one loop alone.

    Args:
        records: the consumer.
        drop: forgets everything in flight, in the ledger too.
        committed: called with the runs of a committed transaction, before they leave the ledger.
        refused: called when a transaction was refused.
    """

    def __init__(
        self,
        records: Committing,
        sink: BoundedSink,
        *,
        ledger: OffsetLedger[T],
        recovery: Recovery,
        progress: Progress,
        drop: Callable[[], None],
        committed: Callable[[Sequence[Run[T]]], None],
        refused: Callable[[], None],
    ) -> None:
        self._records, self._sink, self._ledger = records, sink, ledger
        self._recovery, self._progress = recovery, progress
        self._drop, self._committed, self._refused = drop, committed, refused
        self._runs: Sequence[Run[T]] | None = None  # empty: offsets only
        self._stale = 0

    @property
    def is_open(self) -> bool:
        return self._runs is not None

    def begin(self, runs: Sequence[Run[T]], publish: Callable[[TransactionalSink], None]) -> None:
        """Publish on the sink's thread; `runs` are what the transaction covers."""
        self._runs = runs
        self._sink.submit(publish)

    def step(self) -> None:
        """Handle its end, if it has ended."""
        if self._runs is not None and self._sink.ended:
            self._finish(self._runs)

    def finish(self, within_s: float | None = None) -> None:
        """Wait for its end, within its bound, and handle it.

        The group may continue before it ends: the broker returns committed offsets to the next
        owner only after the transaction has ended.
        """
        if self._runs is not None:
            self._sink.wait(within_s)
            self._finish(self._runs)

    def close(self, within_s: float) -> None:
        """Close the producer, after waiting up to `within_s` for the open transaction."""
        self._sink.close(0.0 if self._runs is None else within_s)
        self._runs = None
        self._drop()  # the revocation callback must have nothing to publish

    def _finish(self, runs: Sequence[Run[T]]) -> None:
        self._runs = None
        try:
            self._sink.result()
        except NOT_PUBLISHED as error:
            self._refused()
            self._stale += 1
            if isinstance(error, StaleLease) and runs and self._stale <= MAX_STALE:
                return
            self._drop()
            self._recovery.begin(error)
        else:
            self._stale = 0
            self._recovery.committed()
            self._committed(runs)
            self._ledger.committed(runs)
            self._records.note_committed({run.partition: run.next_offset for run in runs})
            self._progress.moved()
