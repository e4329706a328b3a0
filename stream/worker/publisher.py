"""What the worker writes to: one transaction at a time, and what a rebalance does to it.

A transaction has the outputs of finished records, and their offsets. If it is refused, everything
in flight is dropped, and records are read again from the committed offsets
(`braid.stream.worker.recovery`). The callbacks of a rebalance wait for the open transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from braid.encoders.types import Embedding

from ..kafka.client import Output
from ..kafka.sink import TransactionalSink
from ..registry.handover import Ownership
from .offsets import Run
from .outputs import Tallies
from .recovery import NOT_PUBLISHED
from .shared import Shared

log = logging.getLogger(__name__)

DRAIN_S = 5.0
Runs = list[Run[list[Output]]]


class Publisher:
    """The open transaction, on its own thread. Used by the worker's loop alone.

    Args:
        ownership: for which records predictions and dead letters are published; None: for all.
        decide: finishes the records that are encoded by now.
        restart: called when partitions are assigned, after everything in flight was dropped.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        ownership: Ownership | None,
        decide: Callable[[], None],
        restart: Callable[[], None],
    ) -> None:
        self._shared, self._records = shared, shared.records
        self._sink, self._recovery = shared.sink, shared.recovery
        self._ownership = ownership
        self._decide, self._restart = decide, restart
        shared.listener = self
        self._tallies = Tallies(shared.topics, window_s=shared.settings.drift.window_s)
        self._open: Runs | None = None  # what the open transaction publishes; empty: offsets only

    # The step of the loop.

    def tally(self, model: str, embeddings: Sequence[Embedding]) -> None:
        """Count a batch in the output statistics."""
        self._tallies.add(model, embeddings)

    def publish(self) -> None:
        """Handle the end of the open transaction, and begin the next one if there is any."""
        shared = self._shared
        if self._open is None:
            if shared.queue.busy or shared.preparation.within_bound:
                shared.progress.moved()  # these have their own time limits
        elif self._sink.ended:
            self._finish(self._open)
        if shared.burst.holds(shared.clock(), at_rest=not shared.at_work):
            return
        lease = self._records.lease
        if lease is None or self._open is not None or self._recovery.pending:
            return
        if runs := shared.ledger.ready():
            outputs = self._owned_outputs(runs)
            if outputs is None:
                shared.progress.moved()  # a handover is undecided
            else:
                # Taken even if the transaction is refused: its records are tallied again.
                outputs += self._tallies.take(shared.clock())
                self._open = runs
                self._sink.submit(lambda sink: self._transaction(sink, runs, outputs, lease))
        elif marks := self._records.take_marks():
            progress = shared.topics.progress(marks)
            self._open = []
            self._sink.submit(lambda sink: sink.publish(progress, offsets=marks, lease=lease))

    def drain(self) -> None:
        """Publish what is on the device, before the worker ends; the rest is read again."""
        until = self._shared.clock() + DRAIN_S
        self._shared.queue.wait(DRAIN_S)
        self._decide()
        self._finish_open(max(0.0, until - self._shared.clock()))
        self.publish()
        self._finish_open(max(1.0, until - self._shared.clock()))

    def close(self, within_s: float) -> None:
        """Close the producer, after waiting up to `within_s` for the open transaction."""
        self._sink.close(0.0 if self._open is None else within_s)
        self._open = None
        self._drop()  # the revocation callback must have nothing to publish

    # Callbacks of a rebalance; they run inside a poll.

    def on_assigned(self, partitions: list[int]) -> None:
        self._drop()
        self._restart()
        self._shared.metrics.assigned(len(partitions))
        self._shared.progress.moved()
        log.info("partitions assigned: %s", partitions)

    def on_revoked(self, partitions: list[int]) -> None:
        """Publish what is encoded while the lease is valid, and drop the rest."""
        self._finish_open()
        if self._records.lease is not None:
            self._decide()
            self.publish()
        self.on_lost(partitions)

    def on_lost(self, partitions: list[int]) -> None:
        """The partitions are already lost: an open transaction can only be refused."""
        self._finish_open()
        self._drop()
        self._shared.metrics.assigned(0)
        if partitions:
            log.info("partitions gone: %s", partitions)

    def _transaction(
        self, sink: TransactionalSink, runs: Runs, outputs: list[Output], lease: object
    ) -> None:
        """On the sink's thread: the outputs, then the progress and the offsets of each run."""
        shared, offsets = self._shared, {run.partition: run.next_offset for run in runs}
        shared.failpoint("before-publish")
        started = shared.clock()
        sink.publish(
            outputs + shared.topics.progress(offsets),
            offsets=offsets,
            starts={run.partition: run.tickets[0].offset for run in runs},
            lease=lease,
        )
        shared.failpoint("after-publish")
        shared.metrics.published(
            records=sum(len(run.tickets) for run in runs), seconds=shared.clock() - started
        )

    def _finish_open(self, within_s: float | None = None) -> None:
        """Wait for the open transaction, within its bound.

        The group may continue before it ends: the broker returns committed offsets to the next
        owner only after the transaction has ended.
        """
        if self._open is not None:
            self._sink.wait(within_s)
            self._finish(self._open)

    def _finish(self, runs: Runs) -> None:
        """Forget the records of the open transaction, or drop everything and read it again."""
        self._open = None
        try:
            self._sink.result()
        except NOT_PUBLISHED as error:
            self._shared.metrics.refused()
            self._drop()
            self._recovery.begin(error)
        else:
            self._recovery.committed()
            self._shared.ledger.committed(runs)
            self._records.note_committed({run.partition: run.next_offset for run in runs})
            self._shared.progress.moved()

    def _drop(self) -> None:
        self._shared.drop()
        self._tallies.forget()

    def _owned_outputs(self, runs: Runs) -> list[Output] | None:
        """The outputs that this generation publishes; None: a handover is undecided.

        Called right before the transaction: for records read by now, ownership must not change
        before they are published (`braid.stream.registry.handover`). Vectors are always published.
        """
        tickets = [ticket for run in runs for ticket in run.tickets]
        results = [ticket.result or [] for ticket in tickets]
        if self._ownership is None:
            return [output for result in results for output in result]
        owned = self._ownership.owns([(ticket.partition, ticket.offset) for ticket in tickets])
        if owned is None:
            return None
        return [
            output
            for result, mine in zip(results, owned, strict=True)
            for output in result
            if mine or output.topic == self._shared.topics.vectors
        ]
