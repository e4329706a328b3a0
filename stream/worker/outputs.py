"""What one record becomes on the output topics. Pure functions: bytes in, messages out.

What a record becomes goes to its source's partition explicitly, so that a record and its vector
share a partition number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256

from braid.encoders.output_statistics import Tally
from braid.encoders.types import Embedding, Model

from ..errors import BadRecord
from ..kafka.client import BY_KEY, Message, Output
from ..kafka.schemas import (
    MAX_DEAD_LETTER_BYTES,
    PROGRESS_KEY,
    Record,
    Vector,
    dead_letter_headers,
    encode_prediction,
    encode_progress,
    encode_tally,
    encode_vector,
)
from ..settings import Settings
from .canary_shadow import ShadowResult, published_prediction

JOIN_HEADER = "join"
"""On a null that the join sends to `records`: what it keeps of the id is gone already."""
DELETED_HEADER = "deleted"
"""On a null that a deletion on `records` sends to `parts`: its time in ms since 1970."""


class OutputTopics:
    """The names of the output topics, and the messages that go there."""

    def __init__(self, settings: Settings) -> None:
        self.vectors = settings.topic("vectors")
        self.predictions = settings.topic("predictions")
        self.dead_letters = settings.topic("dead-letters")
        self.statistics = settings.topic("statistics")
        self.parts = settings.topic("parts")
        self._generation = settings.generation

    def embedded(
        self,
        message: Message,
        record: Record,
        embedding: Embedding,
        model: Model,
        *,
        now_ms: float,
        shadow_result: ShadowResult | None = None,
    ) -> list[Output]:
        """The vector and the prediction of one record; both name the model that made them.

        Args:
            attempt: a canary's challenger at this record: where it got through, the prediction is
                its, and names it, and the champion's stands beside.
        """
        vector = Vector(
            id=record.id,
            ts=record.ts,
            space=model.space,
            model=model.name,
            fused=embedding.fused,
            by=embedding.by,
            meta=record.meta,
            source=message.offset,
        )
        mine = {name: asdict(task) for name, task in embedding.tasks.items()}
        name, tasks, mark = published_prediction(shadow_result, model.name, mine, record.labels)
        prediction = encode_prediction(
            id=record.id,
            ts=record.ts,
            model=name,
            tasks=tasks,
            source=(message.partition, message.offset),
            latency_ms=max(0.0, now_ms - record.ts),
            canary=mark,
        )
        return [
            self._beside(message, self.vectors, encode_vector(vector)),
            self._beside(message, self.predictions, prediction),
        ]

    def deleted(self, message: Message) -> list[Output]:
        """A null on `records` becomes a null on `vectors`; its version stands in the headers.

        The join gets one on `parts`, in the same transaction: what it keeps of the id goes, too.
        """
        headers = [("source", str(message.offset).encode()), ("ts", str(message.ts).encode())]
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
        """The message as it came, whole, with the reason in its headers.

        Only a batch that was compressed can hold a message that does not fit: the parts that are
        over half the limit are cut, and a header names their size and sha256. The whole stands
        where the headers say, for as long as `records` keeps it.
        """
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
        """The last message of a transaction for each partition: how far `records` is reflected."""
        return [
            Output(
                topic=self.vectors,
                partition=partition,
                key=PROGRESS_KEY,
                value=encode_progress(next_offset),
            )
            for partition, next_offset in offsets.items()
        ]

    def tallied(self, model: str, tally: Tally) -> Output:
        """What a version made of some seconds' records. All tallies of it meet in one partition,
        whichever worker they are from: who adds them up must see them all."""
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


def _cut(name: str, part: bytes | None, headers: list[tuple[str, bytes]]) -> bytes | None:
    if part is None or len(part) <= MAX_DEAD_LETTER_BYTES // 2:
        return part
    headers.append((f"cut-{name}", f"{len(part)} sha256:{sha256(part).hexdigest()}".encode()))
    return part[: MAX_DEAD_LETTER_BYTES // 2]
