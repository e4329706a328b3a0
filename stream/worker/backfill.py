"""Backfill of a new generation: stored vectors of the old one, mapped by an adapter.

If a version has an adapter from the stored space to its own, the worker of the new generation
backfills each partition before it reads `records` there:

1. the rows of the old generation's partition are mapped in order and published to the same
   partition of the new topic, with their version (offset in `records`) and time
2. each transaction commits the progress in the metadata of an offset at the beginning of `records`;
   the next owner of the partition continues there
3. the last transaction commits the offset in `records` that the rows reflect; from there on the
   worker embeds records

Rows of one partition were published in the order of `records`. A record that precedes a row was
therefore published before it, and a row removed by compaction has a later version behind it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from braid.encoders.errors import CheckpointError

from ..errors import BadRecord, RegistryError, WorkerError
from ..kafka.client import Message, Output, lone_consumer, mapped, to_message
from ..kafka.schemas import (
    PROGRESS_KEY,
    Vector,
    Vector32,
    decode_progress,
    decode_vector,
    encode_vector,
)
from ..kafka.value_format import FORMATS
from ..settings import Settings

if TYPE_CHECKING:
    from ..kafka.transactions import RecordSource
    from ..registry.generations import GenerationRecord
    from ..registry.versions import Registry
    from .bounded_sink import BoundedSink
    from .outputs import OutputTopics

log = logging.getLogger(__name__)

CHUNK_ROWS = 500  # rows of one transaction
WAIT_S = 1.0
IDLE_S = 0.01
MARK = "mapped"

Adapt = Callable[[Vector32], Vector32]
"""Maps vectors of the old space, float32[n, D], to the new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The source of a generation's first rows.

    Attributes:
        topic: the old generation's vectors.
        before: the space of the old vectors.
        space, model: of the mapped vectors.
    """

    topic: str
    before: str
    space: str
    model: str
    adapt: Adapt


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """The rows and offsets of one transaction.

    Attributes:
        offset: to commit in `records`.
        metadata: of that offset: the progress in the old topic; empty: complete.
        next: the next offset in the old topic.
        reached: the offset in `records` that all rows so far reflect.
    """

    partition: int
    rows: Sequence[Output]
    offset: int
    metadata: str
    next: int
    reached: int

    @property
    def last(self) -> bool:
        return not self.metadata


@dataclass(slots=True)
class _Place:
    """The progress of one partition."""

    next: int
    reached: int


class Backfill:
    """Backfills the partitions of one worker from `origin`. Used by its loop alone.

    Args:
        target: the new generation's topic.
    """

    def __init__(self, settings: Settings, origin: Origin, *, target: str) -> None:
        self.origin = origin
        self._settings, self._target = settings, target
        self._left: dict[int, _Place] | None = None
        self._reading: tuple[int, Consumer] | None = None

    @property
    def busy(self) -> bool:
        """Whether any assigned partition is, or may be, incomplete."""
        return self._left is None or bool(self._left)

    def forget(self) -> None:
        """Read the committed progress again: after a rebalance, or after a refused transaction."""
        self._left = None
        self._close()

    def step(self, source: RecordSource, sink: BoundedSink, topics: OutputTopics) -> bool:
        """Publish the next chunk, if there is one. No other transaction may be open.

        Returns:
            Whether one was committed.

        Raises:
            WorkerError: a row is not in the space that the adapter maps.
            PublishRefused, Unreachable, Fenced: not committed; call `forget`, then step again.
            BrokerError: the old topic cannot be read.
        """
        source.idle_poll()  # the group's callbacks
        lease, done = source.lease, False
        if lease is None:
            time.sleep(IDLE_S)
            return done
        chunk = self.next(source.committed)
        if chunk is not None:
            ends = topics.progress({chunk.partition: chunk.offset}) if chunk.last else []
            sink.publish(
                [*chunk.rows, *ends],
                offsets={chunk.partition: chunk.offset},
                lease=lease,
                metadata=chunk.metadata,
            )
            self.published(chunk)
            done = True
        if not self.busy:
            source.rewind()
        return done

    def next(self, committed: Callable[[], Sequence[TopicPartition]]) -> Chunk | None:
        """The next chunk; None: no rows yet, or complete.

        Args:
            committed: reads the committed offsets of the assigned partitions of `records`.
        """
        if self._left is None:
            self._left = {
                position.partition: place
                for position in committed()
                if (place := self._place(position))
            }
        if not self._left:
            return None
        partition = min(self._left)
        messages, ended = self._read(partition, self._left[partition].next)
        return self._chunk(partition, messages, ended) if messages or ended else None

    def published(self, chunk: Chunk) -> None:
        """Note that a chunk was committed."""
        assert self._left is not None
        if not chunk.last:
            self._left[chunk.partition] = _Place(chunk.next, chunk.reached)
            return
        del self._left[chunk.partition]
        self._close()
        log.info(
            "partition %d: what %s held is mapped, records are embedded from %d on",
            chunk.partition,
            self.origin.topic,
            chunk.offset,
        )

    def _place(self, committed: TopicPartition) -> _Place | None:
        """Where to continue; None: the partition is complete."""
        if committed.offset < 0:
            return _Place(0, 0)
        words = (committed.metadata or "").split()
        if len(words) != 4 or words[:2] != [MARK, self.origin.topic]:
            return None
        return _Place(int(words[2]), int(words[3]))

    def _read(self, partition: int, start: int) -> tuple[list[Message], bool]:
        """Up to CHUNK messages from `start` on, and whether these are the last."""
        if self._reading is None or self._reading[0] != partition:
            self._close()
            self._reading = partition, self._consumer(partition, start)
        messages: list[Message] = []
        for raw in self._reading[1].consume(CHUNK_ROWS, timeout=WAIT_S):
            error = raw.error()
            if error is None:
                messages.append(to_message(raw))
            elif error.code() == KafkaError._PARTITION_EOF:
                return messages, True
            elif not error.retriable():
                raise mapped(error, f"reading {self.origin.topic}")
        return messages, False

    def _consumer(self, partition: int, start: int) -> Consumer:
        consumer = lone_consumer(self._settings)
        at = start if start > 0 else OFFSET_BEGINNING
        consumer.assign([TopicPartition(self.origin.topic, partition, at)])
        return consumer

    def _chunk(self, partition: int, messages: Sequence[Message], ended: bool) -> Chunk:
        assert self._left is not None
        place = self._left[partition]
        reached = place.reached
        rows: list[Vector] = []
        gone: list[Output] = []
        for message in messages:
            if message.key == PROGRESS_KEY:
                reached = max(reached, decode_progress(message.value or b""))
            elif message.value is None:
                headers = [(name, value or b"") for name, value in message.headers]
                reached = max(reached, int(dict(headers)["source"]) + 1)
                gone.append(self._output(partition, message.key, None, headers))
            else:
                rows.append(self._decoded(message))
                reached = max(reached, rows[-1].source + 1)
        form = FORMATS[self._settings.worker.vectors_format]
        keyed = [
            self._output(partition, row.id.encode(), encode_vector(row, form=form))
            for row in self._map(rows)
        ]
        following = messages[-1].offset + 1 if messages else place.next
        return Chunk(
            partition=partition,
            rows=_in_order(messages, keyed, gone),
            offset=reached if ended else 0,
            metadata="" if ended else f"{MARK} {self.origin.topic} {following} {reached}",
            next=following,
            reached=reached,
        )

    def _decoded(self, message: Message) -> Vector:
        where = f"{message.topic}[{message.partition}]@{message.offset}"
        try:
            row = decode_vector(message.value or b"")
        except BadRecord as error:
            raise WorkerError(f"{where} is no vector: {error}") from error
        if row.space != self.origin.before:
            raise WorkerError(
                f"{where} is of space {row.space}, the adapter of {self.origin.model} maps "
                f"{self.origin.before}"
            )
        return row

    def _map(self, rows: Sequence[Vector]) -> list[Vector]:
        if not rows:
            return []
        mapped_nD = self.origin.adapt(
            np.stack([vector_D for row in rows for vector_D in (row.fused, *row.by.values())])
        )
        vectors, at = [], 0
        for row in rows:
            fused_D, *by = mapped_nD[at : at + 1 + len(row.by)]
            at += 1 + len(row.by)
            by_modality: Mapping[str, Vector32] = dict(zip(row.by, by, strict=True))
            vectors.append(
                replace(
                    row,
                    fused=fused_D,
                    by=by_modality,
                    space=self.origin.space,
                    model=self.origin.model,
                )
            )
        return vectors

    def _output(
        self,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Output:
        return Output(
            topic=self._target, partition=partition, key=key, value=value, headers=list(headers)
        )

    def _close(self) -> None:
        if self._reading is not None:
            self._reading[1].close()
            self._reading = None


def _in_order(
    messages: Sequence[Message], rows: Sequence[Output], gone: Sequence[Output]
) -> list[Output]:
    """Rows and deletions in the order of their messages: the topic keeps the later one."""
    left, right = iter(rows), iter(gone)
    return [
        next(right) if message.value is None else next(left)
        for message in messages
        if message.key != PROGRESS_KEY
    ]


def backfill_for(
    settings: Settings, registry: Registry, entry: GenerationRecord | None
) -> Backfill | None:
    """The backfill of a generation that is built from another one's vectors, else None.

    Args:
        entry: the new generation's.

    Raises:
        RegistryError: the adapter is missing or damaged.
    """
    if entry is None or entry.source is None or entry.state != "building":
        return None
    from braid.encoders.model.adapter import load_adapter

    manifest = registry.manifest(entry.model)
    try:
        adapter = load_adapter(registry.folder(entry.model), manifest, applied=False)
    except CheckpointError as error:
        raise RegistryError(str(error)) from error
    if adapter is None:
        raise RegistryError(f"{entry.model} has no adapter that maps stored vectors")
    origin = Origin(
        topic=settings.vectors_topic(entry.source),
        before=str(manifest.compatibility["adapter"]["from"]),
        space=manifest.space,
        model=entry.model,
        adapt=adapter.apply,
    )
    return Backfill(settings, origin, target=settings.vectors_topic(entry.generation))
