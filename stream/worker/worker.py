"""The embed worker: processes records in six steps.

1. decode    bytes from `records` become a Record, or a dead letter with its reason
2. prepare   on CPU threads: picture decoded and resized, sound resampled, text tokenised
3. collect   a micro-batch closes when it is full or its oldest record has waited long enough
4. encode    on the device threads, two batches at a time; the model also fuses and decides there
5. decide    embeddings become vectors and predictions
6. publish   vectors, predictions, dead letters and the consumed offsets, in one transaction

A record ends in one of three ways: outputs, a dead letter, or the worker stops and the record is
read again. It stops if no single record is at fault (`batcher`, `burst`). `source` decides what a
poll returns, `publisher` what a transaction holds, on a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from braid.encoders.types import Model

from ..errors import BadRecord, RegistryError, bad_record
from ..kafka.schemas import check_deletion, decode_record
from ..monitoring.metrics import WorkerMetrics
from ..monitoring.steps import step
from ..registry.handover import Ownership
from ..settings import Settings
from . import in_flight
from .backfill import Backfill
from .canary_shadow import CanaryShadow
from .in_flight import Item, NoShowcase, Showcase, prepared_of, record_of
from .publisher import Publisher
from .shared import Shared
from .source import Intake, Throttle, source_for

log = logging.getLogger(__name__)

CLOSE_S = 5.0  # for leaving the group, also if the broker does not answer


class Worker:
    """Reads `records` as one member of the group and publishes the outputs.

    `run` is the loop and owns the consumer. `stop` and `offer` may be called from any thread.

    Args:
        generation: names its group and the topic of its vectors.
        transactional_id: stable per worker slot.
        showcase: where records are kept for display; None: nowhere.
        ownership: for which records it publishes predictions and dead letters; None: for all.
        throttle, backfill: of a generation that is being built; see `source`.
        clock, wall: monotonic seconds, and those since 1970.

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
            settings, generation, transactional_id, lanes=model.lanes, metrics=metrics, clock=clock
        )
        self.progress, self.steps, self._metrics = shared.progress, shared.steps, shared.metrics
        self._topics, self._burst, self._ledger = shared.topics, shared.burst, shared.ledger
        self._preparation, self._queue = shared.preparation, shared.queue
        self._source = source_for(shared, throttle=throttle, backfill=backfill)
        self._intake = Intake(shared, self._source)
        anew = None if backfill is None else self._source.forget
        self._publisher = Publisher(shared, ownership=ownership, decide=self._decide, restart=anew)
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
        """Switch between two micro-batches; what is prepared for the old model stays with it.

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
        self._showcase: Showcase = showcase or NoShowcase()

    @property
    def busy(self) -> bool:
        """Whether records are in flight."""
        return len(self._ledger) > 0

    @property
    def owned(self) -> list[int]:
        return list(self._shared.records.owned)

    @property
    def is_member(self) -> bool:
        """Whether the worker has an assignment from the group, possibly empty."""
        return self._shared.records.lease is not None

    @property
    def waits_for(self) -> str | None:
        """Why the worker waits for the broker, or None."""
        return self._shared.recovery.waits_for

    # The steps.

    @step("poll")
    def _receive(self) -> list[Item]:
        """Poll as many records as there is room for. Rebalance callbacks run in here."""
        now, receive = self._clock(), self._ledger.receive
        return [
            Item(each, receive(each.partition, each.offset, each.nbytes, since=now), now)
            for each in self._intake.receive(now)
        ]

    @step("decode")
    def _decode(self, items: Sequence[Item]) -> None:
        """Step 1: bytes become a Record, a deletion or a dead letter."""
        began = self._clock()
        in_flight.begin_spans(self._shared.tracing, items, self._shared.generation)
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
        in_flight.trace_step(items, "decode", began, self._clock())
        self._metrics.take_unknown(self._unknown)

    @step("prepare")
    def _prepare(self, items: Sequence[Item]) -> None:
        """Step 2: hand the records to the CPU threads."""
        self._preparation.add(items, self.model)

    @step("collect")
    def _collect(self) -> None:
        """Step 3: prepared records enter the micro-batcher, in order of arrival."""
        for item in self._preparation.finished():
            error = item.prepared
            if isinstance(error, Exception):
                self._to_dead_letter(item, bad_record(error, stage="prepare"))
            else:
                self._queue.add(item)
                self._ledger.hold(item.ticket, prepared_of(item).nbytes)

    @step("encode")
    def _encode(self) -> None:
        """Step 4: closed micro-batches go to the device threads; models are switched in between."""
        if self._offered is not None:
            self.model, self._offered = self._offered, None
            self._metrics.model(self.model.name)
            log.info("model %s serves from here on", self.model.name)
        self._queue.submit(self.model)

    @step("decide")
    def _decide(self) -> None:
        """Step 5: embeddings become output messages."""
        for batch in self._queue.finished():
            self._source.encoded(batch.took_s)
            if batch.condemned is not None:
                self._to_dead_letter(*batch.condemned)
            self._publisher.tally(batch.model.name, [embedding for _, embedding in batch.made])
            self._burst.good(len(batch.made), self._clock())
            batch.trace()
            now_ms = self._wall() * 1000
            for item, embedding in batch.made:
                outputs = self._topics.embedded(item, embedding, batch.model, now_ms=now_ms)
                show = partial(self._showcase.put, record_of(item), embedding)
                item.finish(outputs, show)

    @step("publish")
    def _publish(self) -> None:
        """Step 6: one transaction for the unbroken run of every partition. Commits last."""
        self._publisher.publish()

    # Helpers of the steps.

    def _to_dead_letter(self, item: Item, error: BadRecord) -> None:
        self._metrics.dead_letter(error.stage, error.kind)
        letter = self._topics.dead(item.message, error, model=item.model_name)
        item.finish(letter, failure=error.brief)
        if error.stage != "decode":  # decode errors depend on the message alone, not on the model
            self._burst.bad(error, self._clock())

    def _delete(self, item: Item) -> None:
        drop = partial(self._showcase.drop, check_deletion(item.message.key))
        item.finish(self._topics.deleted(item.message, trace=item.trace), drop)

    def _close(self) -> None:
        self._publisher.close(CLOSE_S)
        self._shared.records.close(CLOSE_S)
        self._queue.close()
        self._preparation.close()
        self._source.forget()
