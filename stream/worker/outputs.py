"""The output messages of records: vectors, predictions, dead letters and output statistics.

Outputs go to the partition number of their record, so that a record and its vector share it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from braid.encoders.output_statistics import Tally
from braid.encoders.types import Embedding, Model

from ..errors import BadRecord
from ..kafka.arrays import FLOAT16, FLOAT32
from ..kafka.client import BY_KEY, Message, Output
from ..kafka.schemas import (
    MAX_DEAD_LETTER_BYTES,
    MAX_ID_BYTES,
    PROGRESS_KEY,
    Record,
    dead_letter_headers,
    encode_prediction,
    encode_progress,
    encode_row,
    encode_tally,
)
from ..kafka.value_format import FORMATS
from ..logs import FIELDS
from ..settings import Settings
from .canary_shadow import published_prediction
from .in_flight import Item, record_of

# Of a window of output statistics: its edges are sharp, and a message is seldom.
PARTS = 100
MOST_FILTERED = 256  # characters of a label; longer ones are captions, which nobody filters by
LEAST_S, MOST_S = 1.0, 10.0
JOIN_HEADER = "join"
"""Header of a null that the join sends to `records`: the join has dropped the id already."""
DELETED_HEADER = "deleted"
"""Header of a null sent to `parts` by a deletion on `records`: its time in ms since 1970."""


log = logging.getLogger(__name__)


class OutputTopics:
    """The output topics, and the messages for them."""

    def __init__(self, settings: Settings, generation: str) -> None:
        self.vectors = settings.vectors_topic(generation)
        self.predictions = settings.topic("predictions")
        self.dead_letters = settings.topic("dead-letters")
        self.statistics = settings.topic("statistics")
        self.parts = settings.topic("parts")
        self._generation = generation
        self._vectors_form = FORMATS[settings.worker.vectors_format]
        self._predictions_form = FORMATS[settings.worker.predictions_format]
        self._dtype = {"float32": FLOAT32, "float16": FLOAT16}[settings.worker.vectors]

    @property
    def committed(self) -> list[str]:
        """Those that are read committed; `statistics` is read uncommitted."""
        return [self.vectors, self.predictions, self.dead_letters, self.parts]

    def embedded(
        self,
        item: Item,
        embedding: Embedding,
        model: Model,
        *,
        now_ms: float,
    ) -> list[Output]:
        """The vector and the prediction of one record; both name the model that made them.

        If a canary's challenger succeeded, its prediction is published, with the champion's in
        the mark.
        """
        message, record = item.message, record_of(item)
        vector = encode_row(
            id=record.id,
            ts=record.ts,
            space=model.space,
            model=model.name,
            fused=embedding.fused,
            by=embedding.by,
            meta=filtered_meta(record),
            source=message.offset,
            dtype=self._dtype,
            engine=embedding.engine,
            form=self._vectors_form,
        )
        mine = {name: task.to_map() for name, task in embedding.tasks.items()}
        name, tasks, mark = published_prediction(
            item.shadow_result, model.name, mine, record.labels
        )
        prediction = encode_prediction(
            id=record.id,
            ts=record.ts,
            model=name,
            tasks=tasks,
            source=(message.partition, message.offset),
            latency_ms=max(0.0, now_ms - record.ts),
            canary=mark,
            form=self._predictions_form,
        )
        trace = item.trace
        return [
            Output(self.vectors, message.partition, message.key, vector, trace),
            Output(self.predictions, message.partition, message.key, prediction, trace),
        ]

    def deleted(self, message: Message, *, trace: Sequence[tuple[str, bytes]] = ()) -> list[Output]:
        """A null on `records` becomes a null on `vectors`, with its version in the headers.

        The same transaction sends a null to `parts`, so that the join drops the id.
        """
        version = [("source", str(message.offset).encode()), ("ts", str(message.ts).encode())]
        headers = [*version, *trace]
        outputs = [self._beside(message, self.vectors, None, headers)]
        if JOIN_HEADER not in dict(message.headers):
            when = (DELETED_HEADER, str(message.ts).encode())
            outputs.append(
                Output(
                    topic=self.parts, partition=BY_KEY, key=message.key, value=None, headers=[when]
                )
            )
        return outputs

    def dead(self, message: Message, error: BadRecord, *, model: str | None = None) -> list[Output]:
        """The original message, with the reason in its headers; logs its place, but no content.

        A message from a compressed batch may exceed the limit: key and value over half the limit
        are cut, and headers give their size and sha256. `records` has the original at the offset
        in the headers, within its retention.
        """
        _log_dead_letter(message, error)
        headers = dead_letter_headers(
            error,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            ts=message.ts,
            model=model,
        )
        key, value = message.key, message.value
        if message.nbytes > MAX_DEAD_LETTER_BYTES:
            key, value = _cut("key", key, headers), _cut("value", value, headers)
        return [
            Output(
                topic=self.dead_letters,
                partition=message.partition,
                key=key,
                value=value,
                headers=headers,
            )
        ]

    def progress(self, offsets: Mapping[int, int]) -> list[Output]:
        """The last message of each partition in a transaction: the offset of `records` reached."""
        return [
            Output(
                topic=self.vectors,
                partition=partition,
                key=PROGRESS_KEY,
                value=encode_progress(next_offset, form=self._vectors_form),
            )
            for partition, next_offset in offsets.items()
        ]

    def tallied(self, model: str, tally: Tally) -> Output:
        """Output statistics of a version over some seconds. Keyed by version, so that one agent
        reads the tallies of all workers."""
        return Output(
            topic=self.statistics,
            partition=BY_KEY,
            key=f"{self._generation}/{model}".encode(),
            value=encode_tally(tally),
        )

    def _beside(
        self,
        message: Message,
        topic: str,
        value: bytes | None,
        headers: list[tuple[str, bytes]] | None = None,
    ) -> Output:
        return Output(
            topic=topic,
            partition=message.partition,
            key=message.key,
            value=value,
            headers=headers or (),
        )


def filtered_meta(record: Record) -> Mapping[str, Any]:
    """The meta of a record's row: its own, and each label as `labels.TASK`.

    Filters thus have one rule for both (`braid.index.filters`).
    """
    if not record.labels:
        return record.meta
    labels = {
        f"labels.{task}": label
        for task, label in record.labels.items()
        if not (isinstance(label, str) and len(label) > MOST_FILTERED)
    }
    return {**record.meta, **labels}


def every_s(window_s: float) -> float:
    """The interval between tallies: a hundredth of a window, so that window edges are sharp, but
    between 1 and 10 s."""
    return min(max(window_s / PARTS, LEAST_S), MOST_S)


class Tallies:
    """Output statistics since the last message, by model version."""

    def __init__(self, topics: OutputTopics, *, window_s: float) -> None:
        self._topics = topics
        self._every_s = every_s(window_s)
        self._by_model: dict[str, Tally] = {}
        self._due = float("-inf")

    def add(self, model: str, embeddings: Sequence[Embedding]) -> None:
        """Count a batch."""
        self._by_model.setdefault(model, Tally()).add_all(embeddings)

    def take(self, now: float) -> list[Output]:
        """The messages to publish, if they are due; resets the statistics.

        Args:
            now: monotonic seconds.
        """
        if now < self._due or not self._by_model:
            return []
        self._due = now + self._every_s
        outputs = [self._topics.tallied(model, tally) for model, tally in self._by_model.items()]
        self._by_model.clear()
        return outputs

    def forget(self) -> None:
        """Reset the statistics: records in flight were dropped and are counted when read again.

        Committed records since the last message are lost from the statistics, about a second of
        one worker at a rebalance.
        """
        self._by_model.clear()


def _log_dead_letter(message: Message, error: BadRecord) -> None:
    place = f"{message.topic}[{message.partition}]@{message.offset}"
    id_ = None if message.key is None else message.key[:MAX_ID_BYTES].decode(errors="replace")
    record = {
        "topic": message.topic,
        "partition": message.partition,
        "offset": message.offset,
        "id": id_,
    }
    fields = {"record": record, "stage": error.stage, "field": error.field, "kind": error.kind}
    log.warning("dead letter %s: %s", place, error.brief, extra={FIELDS: fields})
    log.debug("dead letter %s: %s", place, error.reason)


def _cut(name: str, part: bytes | None, headers: list[tuple[str, bytes]]) -> bytes | None:
    if part is None or len(part) <= MAX_DEAD_LETTER_BYTES // 2:
        return part
    headers.append((f"cut-{name}", f"{len(part)} sha256:{sha256(part).hexdigest()}".encode()))
    return part[: MAX_DEAD_LETTER_BYTES // 2]
