"""The loop of one source: reads its topic, publishes records and offsets in one transaction.

It has the parts of the worker's loop, without its encoders: the consumer and its lease, the offset
ledger, the open transaction on a thread of its own, and the recovery after one that failed.

1. receive   messages of the source's topic, as many as may be in flight
2. convert   each becomes a record, a deletion, nothing, or a dead letter with its reason
3. publish   all that, and the consumed offsets, in one transaction

A message that cannot be decoded since the schema registry is away waits, and all after it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import SchemaRegistryAway, bad_record
from ...failpoints import Failpoints
from ...kafka.client import BY_KEY, Message, Output
from ...kafka.sink import TransactionalSink
from ...kafka.transactions import RecordSource
from ...kafka.waiting import Waiting
from ...liveness.burst import Burst
from ...liveness.progress import Progress
from ...monitoring.ingest_metrics import SourceMetrics
from ...settings import MIB, Settings
from ...sources.converter import Converter
from ...sources.paths import STAGE
from ..bounded_sink import BoundedSink
from ..offsets import OffsetLedger, Run, Ticket
from ..open_transaction import OpenTransaction
from ..outputs import OutputTopics
from ..recovery import Recovery

log = logging.getLogger(__name__)

POLL_MESSAGES = 256
MAX_IN_FLIGHT = 4096  # messages that are read and not committed
MAX_BYTES = 64 * MIB  # of them and of what they became; beyond it reading pauses
IDLE_S, BUSY_S = 0.1, 0.002  # how long a poll waits, with nothing in flight and with something
PAUSE_S = 0.01
CALLBACKS_EVERY_S = 1.0  # rebalance callbacks are served this often while nothing is polled
LAG_EVERY_S = 1.0
DRAIN_S = CLOSE_S = 5.0
FAILING = (
    "did not map",
    "a path in the source's settings, or its producer, is likely at fault",
)
REGISTRY = ("the schema registry", "(schema_registry.url)")


@dataclass(frozen=True, slots=True)
class Converted:
    """What one message became: the outputs, and the event to count."""

    outputs: Sequence[Output]
    event: str


class IngestLoop:
    """One member of a source's group, from its first assignment until `stop`.

    `run` is the loop and owns the consumer; `stop` may be called from any thread.

    Args:
        slot: this process's part of the transactional id, stable across restarts.
        working: called after each transaction that was committed, and while there is nothing to do.
        clock: monotonic seconds.

    Attributes:
        progress: of the loop and the committed offsets.
    """

    def __init__(
        self,
        settings: Settings,
        converter: Converter,
        *,
        slot: str,
        metrics: SourceMetrics,
        working: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source, self.topic = converter.source.title, converter.source.topic
        group = settings.ingest_group(self.source)
        self._converter, self._metrics, self._working = converter, metrics, working
        self._clock = clock
        self._failpoint = Failpoints.from_environment()
        self._topics = OutputTopics(settings, settings.generation)
        self._pending: deque[tuple[Message, Ticket[Converted]]] = deque()
        self._ledger = OffsetLedger[Converted]()
        self._burst = Burst(settings, FAILING)
        self._registry = Waiting(
            settings.schema_registry.url or "no address", clock, server=REGISTRY
        )
        self._stopping = threading.Event()
        self._last_poll = self._last_lag = clock()
        self.progress = Progress(clock)
        self._records = RecordSource(
            settings,
            topic=self.topic,
            group=group,
            on_assigned=self._on_assigned,
            on_revoked=self._on_revoked,
            on_lost=self._on_lost,
        )
        sink = BoundedSink(
            lambda: TransactionalSink(
                settings,
                transactional_id=f"{group}-{slot}",
                source=self.topic,
                group=group,
                topics=[settings.topic(name) for name in ("records", "parts", "dead-letters")],
            ),
            bound_s=settings.worker.publish_timeout_s,
            clock=clock,
        )
        self._recovery = Recovery(
            sink, self._records.rewind, address=settings.kafka.bootstrap, clock=clock
        )
        self._open = OpenTransaction[Converted](
            self._records,
            sink,
            ledger=self._ledger,
            recovery=self._recovery,
            progress=self.progress,
            drop=self._drop,
            committed=self._count,
            refused=metrics.refused,
        )
        self._opened_at = 0.0

    @property
    def owned(self) -> list[int]:
        return list(self._records.owned)

    @property
    def is_member(self) -> bool:
        """Whether the loop has an assignment from the group, possibly empty."""
        return self._records.lease is not None

    @property
    def waits_for(self) -> str | None:
        """Why the loop waits for the broker, or None."""
        return self._recovery.waits_for

    @property
    def waits_for_registry(self) -> str | None:
        """Why the loop waits for the schema registry, or None."""
        return self._registry.reason

    def run(self) -> None:
        """Run until `stop`.

        Raises:
            WorkerError, BrokerError: uncommitted messages are read again.
        """
        try:
            while not self._stopping.is_set():
                self.progress.pass_()
                self._receive()
                self._convert()
                self._publish()
            self.progress.end()
            self._open.finish(DRAIN_S)
            self._publish()
            self._open.finish(DRAIN_S)
        finally:
            self.progress.end()
            self._open.close(CLOSE_S)
            self._records.close(CLOSE_S)

    def stop(self) -> None:
        """Publish what is converted, then leave the group. May be called from any thread."""
        self._stopping.set()

    # The steps.

    def _receive(self) -> None:
        """Step 1: poll. Rebalance callbacks run in here."""
        now = self._clock()
        self._report(now)
        room = MAX_IN_FLIGHT - len(self._ledger)
        full = room <= 0 or self._ledger.nbytes >= MAX_BYTES
        if not self._recovery.step() or full or self._pending:
            if now - self._last_poll > CALLBACKS_EVERY_S:
                self._last_poll = now
                self._records.idle_poll()
            time.sleep(PAUSE_S)
            return
        self._last_poll = now
        wait_s = BUSY_S if len(self._ledger) else IDLE_S
        for message in self._records.poll(min(room, POLL_MESSAGES), wait_s=wait_s):
            ticket = self._ledger.receive(message.partition, message.offset, message.nbytes)
            self._pending.append((message, ticket))

    def _convert(self) -> None:
        """Step 2: messages become outputs, in order."""
        while self._pending and self._registry.due:
            message, ticket = self._pending[0]
            try:
                converted = self._converted(message)
            except SchemaRegistryAway as error:
                self._registry.failed(error)
                break
            self._registry.over()
            self._pending.popleft()
            self._ledger.hold(ticket, sum(len(each.value or b"") for each in converted.outputs))
            ticket.finish(converted)
        if self._pending:  # a wait on purpose
            self.progress.moved()

    def _publish(self) -> None:
        """Step 3: one transaction for the unbroken run of every partition. Commits last."""
        self._open.step()
        if self._burst.holds(self._clock(), at_rest=not self._pending):
            return
        lease = self._records.lease
        if lease is None or self._open.is_open or self._recovery.pending:
            return
        if runs := self._ledger.ready():
            self._opened_at = self._clock()
            self._open.begin(runs, lambda sink: self._transaction(sink, runs, lease))
        elif marks := self._records.take_marks():
            self._open.begin([], lambda sink: sink.publish([], offsets=marks, lease=lease))

    # Callbacks of a rebalance; they run inside a poll.

    def _on_assigned(self, partitions: list[int]) -> None:
        self._drop()
        self._metrics.assigned(len(partitions))
        self.progress.moved()
        log.info("%s: partitions assigned: %s", self.source, partitions)

    def _on_revoked(self, partitions: list[int]) -> None:
        """Publish what is converted while the lease is valid, and drop the rest."""
        self._open.finish()
        if self._records.lease is not None:
            self._publish()
        self._on_lost(partitions)

    def _on_lost(self, partitions: list[int]) -> None:
        """The partitions are already lost: an open transaction can only be refused."""
        self._open.finish()
        self._drop()
        self._metrics.assigned(0)

    # Helpers.

    def _converted(self, message: Message) -> Converted:
        """Raises SchemaRegistryAway, and WorkerError: too many of the last messages failed."""
        try:
            outputs = self._converter.outputs(message)
        except (SchemaRegistryAway, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 (one message must not stop the others)
            bad = bad_record(error, stage=STAGE)
            self._burst.bad(bad, self._clock())
            # Their topic may have more partitions.
            letters = [each._replace(partition=BY_KEY) for each in self._topics.dead(message, bad)]
            return Converted(letters, "dead letter")
        self._burst.good(1, self._clock())
        if not outputs:
            return Converted([], "left out")
        last = outputs[-1]
        if last.value is None:
            return Converted(outputs, "deletion")
        return Converted(outputs, "part" if last.topic == self._topics.parts else "record")

    def _transaction(
        self, sink: TransactionalSink, runs: Sequence[Run[Converted]], lease: object
    ) -> None:
        """On the sink's thread: the outputs and the offsets of each run."""
        self._failpoint("ingest-before-publish")
        sink.publish(
            [output for run in runs for each in run.results for output in each.outputs],
            offsets={run.partition: run.next_offset for run in runs},
            starts={run.partition: run.tickets[0].offset for run in runs},
            lease=lease,
        )
        self._failpoint("ingest-after-publish")

    def _count(self, runs: Sequence[Run[Converted]]) -> None:
        events = Counter(each.event for run in runs for each in run.results)
        self._metrics.published(events, self._clock() - self._opened_at)
        self._working()

    def _drop(self) -> None:
        self._ledger.drop()
        self._pending.clear()

    def _report(self, now: float) -> None:
        if now - self._last_lag > LAG_EVERY_S:
            self._last_lag = now
            self._metrics.show_lag(lags := self._records.lag())
            self._metrics.waits(self.waits_for or self.waits_for_registry)
            behind = sum(lags.values()) + len(self._ledger)
            self.progress.note_lag(behind)
            if not behind and self.is_member:
                self._working()
