"""What the worker writes to: one transaction at a time, and what a rebalance does to it.

A transaction has the outputs of finished records, and their offsets; what its end means is in
`braid.stream.worker.open_transaction`. The callbacks of a rebalance wait for the open transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from braid.encoders.types import Embedding

from ..errors import BrokerError
from ..kafka.client import Output
from ..kafka.sink import TransactionalSink
from ..registry.handover import Ownership
from .in_flight import Outcome
from .offsets import Run
from .open_transaction import OpenTransaction
from .outputs import Tallies
from .shared import Shared

log = logging.getLogger(__name__)

DRAIN_S = 5.0
MAX_HOLD_S = 0.1
SILENT_S = 10.0
"""Then the offsets of partitions that gave neither a message nor their end are looked at."""
FULL = 4
"""A transaction of a quarter of what may be in flight is large: the others are filled meanwhile."""
Runs = Sequence[Run[Outcome]]


class Publisher:
    """The open transaction, on its own thread. Used by the worker's loop alone.

    Args:
        ownership: for which records predictions and dead letters are published; None: for all.
        decide: finishes the records that are encoded by now.
        restart: called when partitions come or go, after everything in flight was dropped; None:
            what is in flight of the others stays.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        ownership: Ownership | None,
        decide: Callable[[], None],
        restart: Callable[[], None] | None,
    ) -> None:
        self._shared, self._records = shared, shared.records
        self._recovery = shared.recovery
        self._ownership = ownership
        self._decide, self._restart = decide, restart
        shared.listener = self
        self._tallies = Tallies(shared.topics, window_s=shared.settings.drift.window_s)
        self._counted: list[Output] = []  # output statistics that are not committed yet
        self._opened_at = 0.0
        self._held_until = float("-inf")
        self._heard_at, self._patience_s = shared.clock(), SILENT_S
        self._full = shared.settings.worker.inflight_records // FULL
        self._open = OpenTransaction[Outcome](
            shared.records,
            shared.sink,
            ledger=shared.ledger,
            recovery=shared.recovery,
            progress=shared.progress,
            drop=self._drop,
            committed=self._measure,
            refused=shared.metrics.refused,
        )

    # The step of the loop.

    def tally(self, model: str, embeddings: Sequence[Embedding]) -> None:
        """Count a batch in the output statistics."""
        self._tallies.add(model, embeddings)

    def publish(self, *, hold: bool = True) -> None:
        """Handle the end of the open transaction, and begin the next one if there is any.

        Args:
            hold: whether it may wait to become larger.
        """
        shared, transaction = self._shared, self._open
        if transaction.is_open:
            transaction.step()
        elif shared.queue.busy or shared.preparation.within_bound:
            shared.progress.moved()  # these have their own time limits
        if shared.burst.holds(shared.clock(), at_rest=not shared.at_work):
            return
        lease = self._records.lease
        if lease is None or transaction.is_open or self._recovery.pending:
            return
        if runs := shared.ledger.ready():
            if hold and self._grows(runs):
                return
            outputs = self._owned_outputs(runs)
            if outputs is None:
                shared.progress.moved()  # a handover is undecided
            else:
                # Those that the lease was stale for are in the next transaction; those of one
                # that was refused are tallied again.
                self._counted += self._tallies.take(shared.clock())
                outputs += self._counted
                for show in (outcome.show for run in runs for outcome in run.results):
                    if show is not None:
                        show()
                self._opened_at = shared.clock()
                transaction.begin(runs, lambda sink: self._transaction(sink, runs, outputs, lease))
        elif marks := self._records.take_marks():
            progress = shared.topics.progress(marks)
            transaction.begin([], lambda sink: sink.publish(progress, offsets=marks, lease=lease))
        elif self._unsettled():
            transaction.begin([], lambda sink: sink.open(doubted=True))

    def drain(self) -> None:
        """Publish what is on the device, before the worker ends; the rest is read again."""
        until = self._shared.clock() + DRAIN_S
        self._shared.queue.wait(DRAIN_S)
        self._decide()
        self._open.finish(max(0.0, until - self._shared.clock()))
        self.publish(hold=False)
        self._open.finish(max(1.0, until - self._shared.clock()))

    def close(self, within_s: float) -> None:
        """Close the producer, after waiting up to `within_s` for the open transaction."""
        self._open.close(within_s)

    # Callbacks of a rebalance; they run inside a poll.

    def on_assigned(self, partitions: list[int]) -> None:
        self._begin_anew(kept=len(self._records.owned) - len(partitions))
        self._shared.metrics.assigned(len(self._records.owned))
        self._shared.progress.moved()
        log.info("partitions assigned: %s", self._records.owned)

    def on_revoked(self, partitions: list[int]) -> None:
        """Publish what is encoded while the lease is valid, and drop the rest of them."""
        self._open.finish()
        if self._records.lease is not None:
            self._decide()
            self.publish(hold=False)
        self.on_lost(partitions)

    def on_lost(self, partitions: list[int]) -> None:
        """The partitions are already lost: an open transaction can only be refused."""
        self._open.finish()
        self._shared.ledger.drop(partitions)
        self._begin_anew(kept=len(self._records.owned))
        self._shared.metrics.assigned(len(self._records.owned))
        if partitions:
            still = f", still assigned: {owned}" if (owned := self._records.owned) else ""
            log.info("partitions gone: %s%s", partitions, still)

    def _unsettled(self) -> bool:
        """Whether the group's offsets of an owned partition cannot be read, and nothing of it came.

        They may be of this slot's last transaction: the broker confirmed its end, and lost the
        markers. Looked at ever more rarely, since another slot may have sent them.
        """
        now = self._shared.clock()
        if not self._records.unheard:
            self._heard_at, self._patience_s = now, SILENT_S
        elif now - self._heard_at >= self._patience_s:
            self._heard_at, self._patience_s = now, 2 * self._patience_s
            try:
                self._records.committed()
            except BrokerError as error:
                log.warning("partitions %s: %s", self._records.unheard, error)
                return True
        return False

    def _begin_anew(self, *, kept: int) -> None:
        """Drop everything, unless partitions were kept whose records may stay in flight."""
        if kept and self._restart is None:
            return
        if self._restart is not None:
            self._open.finish()
        self._drop()
        if self._restart is not None and self._records.owned:
            self._restart()

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
        ended = shared.clock()
        shared.metrics.published(
            records=sum(len(run.tickets) for run in runs), seconds=ended - started
        )
        if shared.tracing is not None:
            for span in (outcome.span for run in runs for outcome in run.results):
                if span is not None:
                    span.step("publish", started, ended)
                    span.end()

    def _grows(self, runs: Runs) -> bool:
        """Whether the next transaction waits for more of a backlog: the calls and markers of one
        cost as much as hundreds of small records. It waits as long as the one before took, and not
        at all under a latency target."""
        shared = self._shared
        return (
            shared.queue.backlog
            and shared.latency is None
            and shared.clock() < self._held_until
            and sum(len(run.tickets) for run in runs) < self._full
        )

    def _measure(self, runs: Runs) -> None:
        """Note when the transaction ended, and the latencies of the records in it."""
        if not runs:
            return
        self._counted = []
        shared, ended = self._shared, self._shared.clock()
        took_s = ended - self._opened_at
        self._held_until = ended + min(MAX_HOLD_S, took_s)
        if shared.latency is not None:
            shared.latency.published(
                [ticket.since for run in runs for ticket in run.tickets], took_s
            )

    def _drop(self) -> None:
        self._shared.drop()
        self._tallies.forget()
        self._counted = []

    def _owned_outputs(self, runs: Runs) -> list[Output] | None:
        """The outputs that this generation publishes; None: a handover is undecided.

        Called right before the transaction: for records read by now, ownership must not change
        before they are published (`braid.stream.registry.handover`). Vectors are always published.
        """
        tickets = [ticket for run in runs for ticket in run.tickets]
        outcomes = [outcome for run in runs for outcome in run.results]
        if self._ownership is None:
            return [output for outcome in outcomes for output in outcome.outputs]
        owned = self._ownership.owns([(ticket.partition, ticket.offset) for ticket in tickets])
        if owned is None:
            return None
        return [
            output
            for outcome, mine in zip(outcomes, owned, strict=True)
            for output in outcome.outputs
            if mine or output.topic == self._shared.topics.vectors
        ]
