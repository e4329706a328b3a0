"""The embed worker: processes records in six steps.

1. decode    bytes from `records` become a Record, or a dead letter with its reason
2. prepare   on CPU threads: picture decoded and resized, sound resampled, text tokenised
3. collect   a micro-batch closes when it is full or its oldest record has waited long enough
4. encode    on the device thread, one batch prefetched; the model also fuses and decides there
5. decide    embeddings become vectors and predictions
6. publish   vectors, predictions, dead letters and the consumed offsets, in one transaction

Each record ends in exactly one of three ways: outputs, a dead letter, or the worker stops and the
record is read again. The worker stops if no single record is at fault, as decided by
`braid.stream.worker.encoding` and `braid.stream.worker.burst`. The transaction of one batch runs on
its own thread while the next batches are prepared and encoded. At most one is open at a time, and
the callbacks of a rebalance wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from braid.encoders.types import Model

from ..errors import BadRecord, RegistryError, WorkerError, bad_record
from ..failpoints import Failpoints
from ..kafka.client import Message, Output
from ..kafka.schemas import check_deletion, decode_record
from ..kafka.sink import TransactionalSink
from ..kafka.transactions import RecordSource
from ..liveness.progress import Progress
from ..monitoring.metrics import WorkerMetrics
from ..registry.handover import Ownership
from ..settings import Settings
from .backfill import Backfill
from .burst import Burst
from .canary_shadow import CanaryShadow
from .encoding import EncodeQueue
from .in_flight import Item, Showcase, future_of, record_of, where
from .offsets import OffsetLedger, Run, Ticket
from .outputs import OutputTopics
from .preparation import Preparation
from .publishing import NOT_PUBLISHED, Transactions, owned_outputs
from .tallying import Tallies
from .throttle import Throttle

log = logging.getLogger(__name__)

CALLBACKS_EVERY_S = 1.0  # rebalance callbacks are served this often by a full worker
LAG_EVERY_S = 1.0
DRAIN_S = 5.0  # after a stop; unfinished records are read again
CLOSE_S = 5.0  # for leaving the group, also if the broker does not answer
PAUSE_S = 0.005


class Worker:
    """Reads `records` as one member of the group and publishes the outputs.

    `run` is the loop and owns the consumer; preparation, encoding and publishing have threads.
    `stop` and `offer` may be called from any thread.

    Args:
        generation: names its group and the topic of its vectors.
        transactional_id: stable per worker slot.
        ownership: for which records it publishes predictions and dead letters; None: for all.
        throttle: limits a generation that is being built; None: no limit.
        backfill: fills the partitions from another generation before it reads `records`.
        clock: monotonic seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        *,
        generation: str,
        transactional_id: str,
        metrics: WorkerMetrics,
        showcase: Showcase | None = None,
        ownership: Ownership | None = None,
        throttle: Throttle | None = None,
        backfill: Backfill | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._group = settings, settings.group(generation)
        self._model = model
        self._offered: Model | None = None
        self._shadow: CanaryShadow | None = None
        self._metrics = metrics.of(generation)
        self._showcase = showcase
        self._ownership, self._throttle, self._backfill = ownership, throttle, backfill
        self._clock, self._wall = clock, wall
        self._topics = OutputTopics(settings, generation)
        self._tallies = Tallies(self._topics, window_s=settings.drift.window_s)
        self._failpoint = Failpoints.from_environment()
        self._unknown: Counter[str] = Counter()
        self._ledger = OffsetLedger[list[Output]]()
        self._burst = Burst(settings)
        self._preparation = Preparation(settings, clock=clock)
        self._queue = EncodeQueue(
            settings, metrics=self._metrics, failpoint=self._failpoint, clock=clock
        )
        self._last_poll = clock()
        self._last_lag = clock()
        self._stopping = threading.Event()
        self._source = self.make_source()
        self._transactions = Transactions(
            settings, lambda: self.make_sink(transactional_id), self._source.rewind, clock
        )
        self.progress = Progress(clock)
        self._metrics.model(model.name)

    # The loop.

    def run(self) -> None:
        """Run until `stop`, or until an error that is not a record's.

        Raises:
            WorkerError, BrokerError: uncommitted records are read again.
        """
        try:
            while not self._stopping.is_set():
                self.progress.pass_()
                arrivals = self._receive()
                self._decode(arrivals)
                self._prepare(arrivals)
                self._collect()
                self._encode()
                self._decide()
                self._publish()
            self.progress.end()
            self._drain()
        finally:
            self.progress.end()
            self._close()

    def stop(self) -> None:
        """Publish what is encoded, then leave the group."""
        self._stopping.set()

    def offer(self, model: Model) -> None:
        """Switch to `model` between two micro-batches; records prepared for the previous model's
        preprocessing are still encoded by it.

        Raises:
            RegistryError: its space differs; a generation must be built for it.
        """
        if model.space != self._model.space:
            raise RegistryError(
                f"{model.name} lives in space {model.space}, this worker feeds {self._model.space}"
            )
        self._offered = model

    def set_shadow(self, shadow: CanaryShadow | None) -> None:
        """Set the canary from the next micro-batch on; None: no canary."""
        self._shadow = shadow

    def show(self, showcase: Showcase | None) -> None:
        """Set where records are kept for display; None: nowhere."""
        self._showcase = showcase

    @property
    def model(self) -> Model:
        return self._model

    @property
    def busy(self) -> bool:
        """Whether records are in flight."""
        return len(self._ledger) > 0

    @property
    def owned(self) -> list[int]:
        return list(self._source.owned)

    @property
    def is_member(self) -> bool:
        """Whether the worker has an assignment from the group, possibly empty."""
        return self._source.lease is not None

    @property
    def waits_for(self) -> str | None:
        """Why the worker waits for the broker, or None."""
        return self._transactions.recovery.waits_for

    # Overridden by the negative controls of the tests.

    def make_source(self) -> RecordSource:
        return RecordSource(
            self._settings,
            group=self._group,
            on_assigned=self._on_assigned,
            on_revoked=self._on_revoked,
            on_lost=self._on_lost,
        )

    def make_sink(self, transactional_id: str) -> TransactionalSink:
        return TransactionalSink(
            self._settings,
            transactional_id=transactional_id,
            group=self._group,
            topics=self._topics.committed,
        )

    # The steps.

    def _receive(self) -> list[Item]:
        """Poll as many records as there is room for. Rebalance callbacks run in here."""
        now = self._clock()
        if now - self._last_lag > LAG_EVERY_S:
            self._last_lag = now
            self._metrics.lag(lags := self._source.lag())
            self.progress.note_lag(sum(lags.values()) + len(self._ledger))
        if not self._transactions.recovery.step():
            return self._rest(now)
        room = self._settings.worker.inflight_records - len(self._ledger)
        if room <= 0 or self._ledger.nbytes >= self._settings.worker.inflight_bytes:
            self._wait_for_room()
            if now - self._last_poll > CALLBACKS_EVERY_S:
                self._last_poll = now
                self._source.idle_poll()
            return []
        if self._throttle is not None and not self._throttle.ready(now):
            self.progress.moved()
            return self._rest(now)
        if self._backfill is not None and self._backfill.busy:
            self._backfill_step(self._backfill, now)
            return []
        self._last_poll = now
        messages = self._source.poll(min(room, 64), wait_s=self._patience(now))
        if self._backfill is not None and self._backfill.busy:
            return []  # polled with a new assignment; read again after the backfill
        return [Item(message, self._ticket(message), now) for message in messages]

    def _backfill_step(self, backfill: Backfill, now: float) -> None:
        """One transaction of the backfill."""
        try:
            done = backfill.step(self._source, self._transactions.publisher, self._topics)
        except NOT_PUBLISHED as error:
            backfill.forget()
            self._transactions.recovery.begin(error)
            return
        self.progress.moved()
        if done:
            self._transactions.recovery.committed()
            self._failpoint("after-chunk")
            if self._throttle is not None:
                self._throttle.worked(self._clock() - now, self._clock())

    def _decode(self, items: Sequence[Item]) -> None:
        """Step 1: bytes become a Record, a deletion or a dead letter."""
        for item in items:
            message = item.message
            try:
                if message.value is None:
                    self._delete(item)
                else:
                    item.record = decode_record(
                        message.key, message.value, default_ts=message.ts, unknown=self._unknown
                    )
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 (one record must not stop the others)
                self._to_dead_letter(item, bad_record(error, stage="decode"))
        if self._unknown:
            self._metrics.unknown(self._unknown.total())
            log.debug("unknown fields left out: %s", dict(self._unknown))
            self._unknown.clear()

    def _prepare(self, items: Sequence[Item]) -> None:
        """Step 2: hand the records to the CPU threads."""
        self._preparation.add(items, self._model, self._shadow)

    def _collect(self) -> None:
        """Step 3: prepared records enter the micro-batcher, in order of arrival."""
        for item in self._preparation.finished():
            try:
                prepared = future_of(item).result()
            except MemoryError as error:
                raise WorkerError(f"preparing record {where(item)}: out of memory") from error
            except Exception as error:  # noqa: BLE001 (as in _decode)
                self._to_dead_letter(item, bad_record(error, stage="prepare"))
            else:
                self._queue.add(item, prepared)

    def _encode(self) -> None:
        """Step 4: closed micro-batches go to the device thread; models are switched in between."""
        if self._offered is not None:
            self._model, self._offered = self._offered, None
            self._metrics.model(self._model.name)
            log.info("model %s serves from here on", self._model.name)
        self._queue.submit(self._model, self._shadow)

    def _decide(self) -> None:
        """Step 5: embeddings become output messages."""
        for batch in self._queue.finished():
            if self._throttle is not None:
                self._throttle.worked(batch.took_s, self._clock())
            if batch.condemned is not None:
                self._to_dead_letter(*batch.condemned)
            self._tallies.add(batch.model.name, [embedding for _, embedding in batch.made])
            self._burst.good(len(batch.made), self._clock())
            now_ms = self._wall() * 1000
            for item, embedding in batch.made:
                record = record_of(item)
                if self._showcase is not None:
                    self._showcase.put(record, embedding)
                outputs = self._topics.embedded(
                    item.message,
                    record,
                    embedding,
                    batch.model,
                    now_ms=now_ms,
                    shadow_result=item.shadow_result,
                )
                item.ticket.finish(outputs)

    def _publish(self) -> None:
        """Step 6: one transaction for the unbroken run of every partition. Commits last."""
        if self._transactions.ended:
            self._finish_transaction()
        elif self._transactions.future is None and (
            self._queue.busy or self._preparation.within_bound
        ):
            self.progress.moved()  # the device and the decoders have their own time limits
        if self._burst.holds(self._clock(), at_rest=not self._at_work):
            return
        lease = self._source.lease
        if lease is None or not self._transactions.free:
            return
        if runs := self._ledger.ready():
            outputs = owned_outputs(runs, self._ownership, self._topics.vectors)
            if outputs is None:
                self.progress.moved()  # a handover is undecided
            else:
                # Taken even if the transaction is refused: its records are tallied again.
                outputs += self._tallies.take(self._clock())
                self._transactions.begin(
                    runs, lambda sink: self._transaction(sink, runs, outputs, lease)
                )
        elif marks := self._source.take_marks():
            progress = self._topics.progress(marks)
            self._transactions.begin(
                [], lambda sink: sink.publish(progress, offsets=marks, lease=lease)
            )

    # Helpers of the steps.

    def _transaction(
        self,
        sink: TransactionalSink,
        runs: list[Run[list[Output]]],
        outputs: list[Output],
        lease: object,
    ) -> None:
        offsets = {run.partition: run.next_offset for run in runs}
        self._failpoint("before-publish")
        started = self._clock()
        sink.publish(
            outputs + self._topics.progress(offsets),
            offsets=offsets,
            starts={run.partition: run.tickets[0].offset for run in runs},
            lease=lease,
        )
        self._failpoint("after-publish")
        self._metrics.published(
            records=sum(len(run.tickets) for run in runs), seconds=self._clock() - started
        )

    def _finish_transaction(self) -> None:
        """Handle the end of the open transaction: forget its records, or read them again."""
        try:
            runs = self._transactions.finish()
        except NOT_PUBLISHED as error:
            self._metrics.refused()
            self._drop()
            self._transactions.recovery.begin(error)
        else:
            self._ledger.committed(runs)
            self._source.note_committed({run.partition: run.next_offset for run in runs})
            self.progress.moved()

    def _drop(self) -> None:
        """Forget everything in flight; results of the threads are dropped."""
        self._ledger.drop()
        self._tallies.forget()
        self._preparation.clear()
        self._queue.clear()

    def _on_assigned(self, partitions: list[int]) -> None:
        self._drop()
        if self._backfill is not None:
            self._backfill.forget()
        self._metrics.assigned(len(partitions))
        self.progress.moved()
        log.info("partitions assigned: %s", partitions)

    def _on_revoked(self, partitions: list[int]) -> None:
        """Publish what is encoded while the lease is valid, and drop the rest."""
        self._finish_open()
        if self._source.lease is not None:
            self._decide()
            self._publish()
            self._finish_open()
        self._on_lost(partitions)

    def _on_lost(self, partitions: list[int]) -> None:
        """The partitions are already lost: an open transaction can only be refused."""
        self._finish_open()
        self._drop()
        self._metrics.assigned(0)
        if partitions:
            log.info("partitions gone: %s", partitions)

    def _finish_open(self, within_s: float | None = None) -> None:
        """Wait for the open transaction, within its bound.

        The group may continue before it ends: the broker returns committed offsets to the next
        owner only after the transaction has ended.
        """
        if self._transactions.future is not None:
            self._transactions.wait(within_s)
            self._finish_transaction()

    def _drain(self) -> None:
        """On a graceful stop: publish what is on the device; the rest is read again."""
        until = self._clock() + DRAIN_S
        self._queue.wait(DRAIN_S)
        self._decide()
        self._finish_open(max(0.0, until - self._clock()))
        self._publish()
        self._finish_open(max(1.0, until - self._clock()))

    def _close(self) -> None:
        self._stopping.set()
        self._transactions.close(CLOSE_S)
        self._drop()  # the revocation callback must have nothing to publish
        self._source.close(CLOSE_S)
        self._queue.close()
        self._preparation.close()
        if self._backfill is not None:
            self._backfill.forget()

    def _to_dead_letter(self, item: Item, error: BadRecord) -> None:
        self._metrics.dead_letter(error.stage, error.kind)
        log.warning("dead letter %s: %s", where(item), error)
        model = None if item.model is None else item.model.name
        item.ticket.finish(self._topics.dead(item.message, error, model=model))
        if error.stage != "decode":  # decode errors depend on the message alone, not on the model
            self._burst.bad(error, self._clock())

    def _delete(self, item: Item) -> None:
        id_ = check_deletion(item.message.key)
        if self._showcase is not None:
            self._showcase.drop(id_)
        item.ticket.finish(self._topics.deleted(item.message))

    def _ticket(self, message: Message) -> Ticket[list[Output]]:
        return self._ledger.receive(message.partition, message.offset, message.nbytes)

    @property
    def _at_work(self) -> bool:
        """Whether a record is being prepared or encoded."""
        return self._preparation.next is not None or self._queue.busy

    def _patience(self, now: float) -> float:
        """The timeout of the next poll, in seconds."""
        if self._at_work or self._transactions.future is not None:
            return 0.002
        due = self._queue.due_in(now)
        return 0.1 if due is None else min(0.1, due)

    def _rest(self, now: float) -> list[Item]:
        """Pause shortly; rebalance callbacks are still served."""
        if now - self._last_poll > CALLBACKS_EVERY_S:
            self._last_poll = now
            self._source.idle_poll()
        time.sleep(PAUSE_S)
        return []

    def _wait_for_room(self) -> None:
        waiting: list[Future] = [*self._queue.futures]
        if (publishing := self._transactions.future) is not None:
            waiting.append(publishing)
        elif (preparing := self._preparation.next) is not None:
            waiting.append(preparing)
        if waiting:
            wait(waiting, timeout=0.01, return_when="FIRST_COMPLETED")
        else:  # all records wait for the micro-batch to close
            time.sleep(0.002)
