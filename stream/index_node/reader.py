"""The reader of one generation: applies its `vectors` topic, read committed, to the store.

It has no group: it begins at the offsets inside the store, or at the beginning of the topic when
those cannot be trusted (`braid.stream.index_node.snapshot_check`). Offsets are applied with what
was read, in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, UnsupportedCodecError
from confluent_kafka import OFFSET_BEGINNING

from braid.index.metrics import GenerationMetrics
from braid.index.store import Delete, Upsert

from ..errors import BadRecord, BrokerError, Unreachable
from ..failpoints import Failpoints
from ..kafka import security
from ..kafka.admin import Admin
from ..kafka.client import mapped_aiokafka
from ..kafka.schemas import PROGRESS_KEY, Vector, decode_progress, decode_vector
from ..kafka.waiting import Waiting
from ..liveness.progress import Progress
from ..liveness.progress_watch import readable
from ..settings import Settings
from ..tracing import has_context, tracing_of
from .lag import Lag
from .snapshot_check import SnapshotFacts, TopicFacts, stale_reason
from .stores import DurableStore

log = logging.getLogger(__name__)

READ_MS = 200
READ_RECORDS = 2000
STOP_S = 5.0  # for closing the consumer, which may wait for a broker that is away


@dataclass
class Applied:
    """What one read of `vectors` says, in the store's terms."""

    writes: list[Upsert | Delete] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)
    progress: dict[int, int] = field(default_factory=dict)
    unreadable: int = 0


def translate(messages: Sequence[ConsumerRecord], *, space: str, dim: int) -> Applied:
    """Messages of `vectors` as writes, positions and progress.

    What is not a vector of this space and length is left out and counted: it must never be
    searched beside the others, and stopping at it would mean stopping for good.
    """
    applied = Applied()
    for message in messages:
        partition = message.partition
        applied.positions[partition] = message.offset + 1
        try:
            if message.key == PROGRESS_KEY:
                applied.progress[partition] = decode_progress(message.value)
            elif message.value is None:
                headers = dict(message.headers)
                applied.writes.append(
                    Delete(
                        id=message.key.decode(),
                        partition=partition,
                        version=int(headers["source"]),
                        ts=int(headers["ts"]),
                    )
                )
            else:
                vector = decode_vector(message.value)
                _check_fits(vector, space, dim)
                applied.writes.append(
                    Upsert(
                        id=vector.id,
                        partition=partition,
                        version=vector.source,
                        ts=vector.ts,
                        model=vector.model,
                        fused=vector.fused,
                        by=dict(vector.by),
                        meta=dict(vector.meta),
                    )
                )
        except (BadRecord, KeyError, ValueError, AttributeError) as error:
            # Only our own workers write here: something else did. It is said aloud, and shown
            # in /v1/status.
            applied.unreadable += 1
            log.error("vectors[%d]@%d is not a vector: %s", partition, message.offset, error)
    return applied


def _check_fits(vector: Vector, space: str, dim: int) -> None:
    if vector.space != space:
        raise BadRecord("space", f"is {vector.space!r}, this index holds {space!r}")
    for name, array_D in {"fused": vector.fused, **vector.by}.items():
        if array_D.shape != (dim,) or not np.isfinite(array_D).all():
            raise BadRecord(name, f"must be {dim} finite values, its shape is {array_D.shape}")


class Reader:
    """Feeds one store.

    Args:
        generation: whose vectors are read.
        applied: called with each batch of writes once it is searchable, on a thread.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        generation: str,
        kept: DurableStore,
        *,
        metrics: GenerationMetrics,
        failpoint: Failpoints,
        applied: Callable[[Sequence[Upsert | Delete]], None] = lambda writes: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings, self.kept = settings, kept
        self.topic = settings.vectors_topic(generation)
        self._metrics, self._failpoint, self._applied = metrics, failpoint, applied
        self._wall = wall
        self._ends: dict[int, int] = {}
        self._unread: dict[int, int] = {}  # messages of `vectors` that are not applied yet
        self._current_ms: dict[int, int] = dict(kept.known.current_ms)
        self._facts: TopicFacts | None = None
        self._kept_at = time.monotonic()
        self.caught_up = False
        self._lag = Lag(settings.index.ready_lag_s)
        self.progress = Progress()
        self._tracing = tracing_of(settings, "braid-index")
        self.unreadable = 0
        self.rebuilt: str | None = None

    async def run(self, partitions: int, stopping: asyncio.Event) -> None:
        """Read until `stopping`; the store is kept every `index.snapshot_every_s`, and at the end.

        A broker that is away is waited for.
        """
        waiting = Waiting(self.settings.kafka.bootstrap)
        self.kept.start()
        try:
            while not stopping.is_set():
                try:
                    await self._read(partitions, stopping, waiting)
                except Unreachable as error:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopping.wait(), waiting.failed(error))
        finally:
            self.progress.end()
            await asyncio.to_thread(self._end)

    async def _read(self, partitions: int, stopping: asyncio.Event, waiting: Waiting) -> None:
        """Read from where the store is. Raises Unreachable, or BrokerError for an unknown codec.

        The store is kept beside the reading: writing a snapshot takes a second for some ten
        thousand rows, and as long would a record wait until it is searchable.
        """
        keeping: asyncio.Task[None] | None = None
        parts = [TopicPartition(self.topic, number) for number in range(partitions)]
        consumer = AIOKafkaConsumer(
            **security.aiokafka(self.settings),
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=4 * 1024 * 1024,
        )
        try:
            await consumer.start()
            consumer.assign(parts)
            await self._seek(consumer, parts)
            waiting.over()
            while not stopping.is_set():
                batches = await consumer.getmany(timeout_ms=READ_MS, max_records=READ_RECORDS)
                messages = [message for batch in batches.values() for message in batch]
                if messages:
                    began, store = time.monotonic(), self.kept.store
                    applied = translate(messages, space=store.space, dim=store.dim)
                    await asyncio.to_thread(self._write, applied)
                    if self._tracing is not None:
                        self._trace(messages, began)
                    self.progress.moved()
                    self._failpoint("after-apply")
                await self._note(consumer, batches)
                self.kept.check()
                if keeping is not None and keeping.done():
                    keeping.result()
                    keeping = None
                age_s = time.monotonic() - self._kept_at
                self._metrics.snapshot_age(age_s)
                if age_s > self.settings.index.snapshot_every_s and keeping is None:
                    self._kept_at = time.monotonic()
                    keeping = asyncio.create_task(asyncio.to_thread(self.kept.keep, self._known()))
        except UnsupportedCodecError as error:
            raise BrokerError(f"reading {self.topic}: {error} (the package cramjam)") from error
        except KafkaError as error:
            raise mapped_aiokafka(error, f"reading {self.topic}") from error
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(consumer.stop(), STOP_S)
            if keeping is not None:  # the next reading may renew the store
                await keeping

    def behind(self) -> str | None:
        """Why what is searched is too old to be answered from, or None."""
        if not self.caught_up:
            return "still reading vectors up to where they were at start"
        return self._lag.behind()

    def readable(self) -> bool:
        """Whether an independent client reads a message that is not applied yet, for the watchdog.

        Raises:
            KafkaException: no answer.
        """
        positions = self.kept.store.positions
        starts = {number: positions.get(number, OFFSET_BEGINNING) for number in self._ends}
        return readable(self.settings, self.topic, starts)

    def status(self) -> dict[str, Any]:
        """What `/v1/status` says of it."""
        return {
            "topic": self.topic,
            "caught_up": self.caught_up,
            "lag": {str(number): lag for number, lag in sorted(self._unread.items())},
            "unreadable": self.unreadable,
            "rebuilt": self.rebuilt,
        }

    async def _seek(self, consumer: AIOKafkaConsumer, parts: list[TopicPartition]) -> None:
        beginnings = await consumer.beginning_offsets(parts)
        ends = await consumer.end_offsets(parts)
        ranges = {part.partition: (beginnings[part], ends[part]) for part in parts}
        self._facts = await asyncio.to_thread(self._described, ranges)
        now_ms = 1000 * self._wall()
        stale = stale_reason(self.kept.store.positions, self.kept.known, self._facts, now_ms=now_ms)
        if stale is not None:
            self.rebuilt = stale  # kept when the consumer begins again: the status shows it
            log.warning("the snapshot is not used: %s; rebuilding from the beginning", stale)
            await asyncio.to_thread(self.kept.renew)
            self._current_ms = {}
        positions = self.kept.store.positions
        for part in parts:
            consumer.seek(part, max(positions.get(part.partition, 0), beginnings[part]))
        self._ends = {part.partition: ends[part] for part in parts}

    def _described(self, ranges: Mapping[int, tuple[int, int]]) -> TopicFacts:
        topic_id, retention_ms = Admin(self.settings).identity(self.topic)
        return TopicFacts(id=topic_id, delete_retention_ms=retention_ms, ranges=ranges)

    def _write(self, applied: Applied) -> None:
        self.unreadable += applied.unreadable
        self.kept.store.apply(
            applied.writes, positions=applied.positions, progress=applied.progress
        )
        now_s = self._wall()
        self._metrics.applied(len(applied.writes))
        for write in applied.writes:
            self._metrics.fresh(now_s - write.ts / 1000)
        self._applied(applied.writes)

    def _trace(self, messages: Sequence[ConsumerRecord], began: float) -> None:
        """The spans of the messages that belong to a trace, which are searchable now."""
        assert self._tracing is not None
        for message in filter(lambda each: has_context(each.headers), messages):
            span = self._tracing.received(
                f"apply {self.topic}",
                message.headers,
                began=began,
                topic=self.topic,
                partition=message.partition,
                offset=message.offset,
                id=message.key.decode(errors="replace"),
            )
            if span is not None:
                span.end()

    async def _note(
        self, consumer: AIOKafkaConsumer, batches: Mapping[TopicPartition, Sequence[ConsumerRecord]]
    ) -> None:
        """Until when each partition has been read, for the guard; and whether we caught up."""
        behind = 0
        for part in sorted(consumer.assignment()):
            at = await consumer.position(part)
            end = consumer.highwater(part) or 0
            number = part.partition
            self._unread[number] = max(0, end - at)
            self._metrics.lag(number, self._unread[number])
            polled_ms = consumer.last_poll_timestamp(part)
            age_s = max(0.0, self._wall() - polled_ms / 1000) if polled_ms else None
            self._lag.seen(number, at, consumer.last_stable_offset(part) or 0, age_s=age_s)
            if polled_ms and at >= end:
                self._current_ms[number] = int(polled_ms)
            elif batch := batches.get(part):
                self._current_ms[number] = int(batch[-1].timestamp)
            behind += at < self._ends[number]
        if not behind and not self.caught_up:
            self.caught_up = True
            log.info("caught up: %d records are searchable", len(self.kept.store))

    def _known(self) -> SnapshotFacts:
        """No newer than the store is, whenever that is read."""
        return SnapshotFacts(
            topic_id=self._facts.id if self._facts else None,
            partitions=len(self._facts.ranges) if self._facts else 0,
            current_ms=dict(self._current_ms),
        )

    def _end(self) -> None:
        self.kept.stop()
        if self._facts is not None:  # else nothing was read, and nothing is known
            self.kept.keep(self._known())
