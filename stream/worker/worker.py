"""The embed worker: processes records in six steps.

1. decode    bytes from `records` become a Record, or a dead letter with its reason
2. prepare   on CPU threads: picture decoded and resized, sound resampled, text tokenised
3. collect   a micro-batch closes when it is full or its oldest record has waited long enough
4. encode    on the device thread, one batch prefetched; the model also fuses and decides there
5. decide    embeddings become vectors and predictions
6. publish   vectors, predictions, dead letters and the consumed offsets, in one transaction

Each record ends in exactly one of three ways: outputs, a dead letter, or the worker stops and the
record is read again. The worker stops if no single record is at fault, as decided by
`braid.stream.worker.batcher` and `braid.stream.worker.burst`. The transaction of one batch runs on
its own thread while the next batches are prepared and encoded. What a poll may return is decided by
`braid.stream.worker.source`, what a transaction holds by `braid.stream.worker.publisher`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from braid.encoders.types import Model

from ..errors import BadRecord, RegistryError, WorkerError, bad_record
from ..kafka.schemas import check_deletion, decode_record
from ..monitoring.metrics import WorkerMetrics
from ..registry.handover import Ownership
from ..settings import Settings
from .backfill import Backfill
from .canary_shadow import CanaryShadow
from .in_flight import Item, NoShowcase, Showcase, future_of, record_of, where
from .publisher import Publisher
from .shared import Shared
from .source import Intake, Throttle, source_for

log = logging.getLogger(__name__)

CLOSE_S = 5.0  # for leaving the group, also if the broker does not answer


class Worker:
    """Reads `records` as one member of the group and publishes the outputs.

    `run` is the loop and owns the consumer; preparation, encoding and publishing have threads.
    `stop` and `offer` may be called from any thread.

    Args:
        generation: names its group and the topic of its vectors.
        transactional_id: stable per worker slot.
        showcase: where records are kept for display; None: nowhere.
        ownership: for which records it publishes predictions and dead letters; None: for all.
        throttle: limits a generation that is being built; None: no limit.
        backfill: fills the partitions from another generation before it reads `records`.
        clock: monotonic seconds.
        wall: seconds since 1970.

    Attributes:
        model: what new records are prepared for.
        progress: of the loop and the committed offsets.
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
        self.model = model
        self._offered: Model | None = None
        self._clock, self._wall = clock, wall
        self._unknown: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._shared = shared = Shared(
            settings, generation, transactional_id=transactional_id, metrics=metrics, clock=clock
        )
        self.progress, self._metrics = shared.progress, shared.metrics
        self._topics, self._burst = shared.topics, shared.burst
        self._ledger, self._preparation = shared.ledger, shared.preparation
        self._queue, self._records = shared.queue, shared.records
        self._source = source_for(shared, throttle=throttle, backfill=backfill)
        self._intake = Intake(shared, self._source)
        self._publisher = Publisher(
            shared, ownership=ownership, decide=self._decide, restart=self._source.forget
        )
        self.show(showcase)
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
            self._publisher.drain()
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
        if model.space != self.model.space:
            raise RegistryError(
                f"{model.name} lives in space {model.space}, this worker feeds {self.model.space}"
            )
        self._offered = model

    def set_shadow(self, shadow: CanaryShadow | None) -> None:
        """Set the canary from the next micro-batch on; None: no canary."""
        self._queue.shadow = self._preparation.shadow = shadow

    def show(self, showcase: Showcase | None) -> None:
        """Set where records are kept for display; None: nowhere."""
        self._showcase: Showcase = NoShowcase() if showcase is None else showcase

    @property
    def busy(self) -> bool:
        """Whether records are in flight."""
        return len(self._ledger) > 0

    @property
    def owned(self) -> list[int]:
        return list(self._records.owned)

    @property
    def is_member(self) -> bool:
        """Whether the worker has an assignment from the group, possibly empty."""
        return self._records.lease is not None

    @property
    def waits_for(self) -> str | None:
        """Why the worker waits for the broker, or None."""
        return self._shared.recovery.waits_for

    # The steps.

    def _receive(self) -> list[Item]:
        """Poll as many records as there is room for. Rebalance callbacks run in here."""
        now, receive = self._clock(), self._ledger.receive
        return [
            Item(message, receive(message.partition, message.offset, message.nbytes), now)
            for message in self._intake.receive(now)
        ]

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
        self._preparation.add(items, self.model)

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
            self.model, self._offered = self._offered, None
            self._metrics.model(self.model.name)
            log.info("model %s serves from here on", self.model.name)
        self._queue.submit(self.model)

    def _decide(self) -> None:
        """Step 5: embeddings become output messages."""
        for batch in self._queue.finished():
            self._source.encoded(batch.took_s)
            if batch.condemned is not None:
                self._to_dead_letter(*batch.condemned)
            self._publisher.tally(batch.model.name, [embedding for _, embedding in batch.made])
            self._burst.good(len(batch.made), self._clock())
            now_ms = self._wall() * 1000
            for item, embedding in batch.made:
                self._showcase.put(record_of(item), embedding)
                item.ticket.finish(
                    self._topics.embedded(item, embedding, batch.model, now_ms=now_ms)
                )

    def _publish(self) -> None:
        """Step 6: one transaction for the unbroken run of every partition. Commits last."""
        self._publisher.publish()

    # Helpers of the steps.

    def _to_dead_letter(self, item: Item, error: BadRecord) -> None:
        self._metrics.dead_letter(error.stage, error.kind)
        log.warning("dead letter %s: %s", where(item), error)
        model = None if item.model is None else item.model.name
        item.ticket.finish(self._topics.dead(item.message, error, model=model))
        if error.stage != "decode":  # decode errors depend on the message alone, not on the model
            self._burst.bad(error, self._clock())

    def _delete(self, item: Item) -> None:
        self._showcase.drop(check_deletion(item.message.key))
        item.ticket.finish(self._topics.deleted(item.message))

    def _close(self) -> None:
        self._publisher.close(CLOSE_S)
        self._records.close(CLOSE_S)
        self._queue.close()
        self._preparation.close()
        self._source.forget()
