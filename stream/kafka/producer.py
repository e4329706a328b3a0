"""`braid.Producer`: sends records from programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from braid.encoders.types import Label

from ..errors import Unreachable
from ..settings import Settings, load
from .client import MAX_MESSAGE_BYTES
from .schemas import Blob, Record, check_id, encode_record

BlobLike = bytes | str | Path | Blob | None


class Producer:
    """Sends records to `records`, which it validates first.

        async with Producer() as producer:
            await producer.send(id="bird-1", text="a red bird", image=Path("bird.png"))

    Pictures and sounds are bytes, a Path to read, or a link (a string with a scheme, which the
    workers fetch). The partition is murmur2 of the id, as in Java's clients.

    Args:
        settings: Kafka's address; by default from the environment.
        wall: seconds since 1970, for records without a `ts`.
    """

    def __init__(
        self, settings: Settings | None = None, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings or load()
        self._wall = wall
        self._topic = self._settings.topic("records")
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Producer:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka.bootstrap,
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_MESSAGE_BYTES,
            linger_ms=5,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            await self._producer.stop()
            raise Unreachable(
                f"no broker at {self._settings.kafka.bootstrap}: {error!r}"
            ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until everything sent is acknowledged."""
        assert self._producer is not None
        await self._producer.stop()

    async def send(
        self,
        *,
        id: str,
        text: str | None = None,
        image: BlobLike = None,
        audio: BlobLike = None,
        labels: Mapping[str, Label] | None = None,
        meta: Mapping[str, Any] | None = None,
        ts: int | None = None,
        wait: bool = True,
    ) -> tuple[int, int] | None:
        """Send one record; returns its partition and offset, or None with wait=False.

        With wait=False the record is batched with others; leaving the context waits for all.

        Raises:
            BadRecord: names the field and the limit; nothing was sent.
            Unreachable: the broker did not take it.
        """
        record = Record(
            id=id,
            ts=int(self._wall() * 1000) if ts is None else ts,
            text=text,
            image=as_blob(image),
            audio=as_blob(audio),
            labels=labels or {},
            meta=meta or {},
        )
        return await self._send(id, encode_record(record), wait)

    async def delete(self, id: str, *, wait: bool = True) -> tuple[int, int] | None:
        """Send the null value that deletes a record; returns its partition and offset."""
        check_id(id)
        return await self._send(id, None, wait)

    async def _send(self, id_: str, value: bytes | None, wait: bool) -> tuple[int, int] | None:
        if self._producer is None:
            raise RuntimeError("use the producer inside `async with Producer() as producer:`")
        try:
            sent = await self._producer.send(self._topic, key=id_.encode(), value=value)
            if not wait:
                return None
            done = await sent
        except KafkaError as error:
            raise Unreachable(f"{self._topic} did not take {id_!r}: {error!r}") from error
        return done.partition, done.offset


def as_blob(value: BlobLike) -> Blob | None:
    """Bytes, a path's bytes, or a link as a Blob."""
    if value is None or isinstance(value, Blob):
        return value
    if isinstance(value, bytes):
        return Blob(data=value)
    if isinstance(value, Path):
        return Blob(data=value.read_bytes(), uri=value.absolute().as_uri())
    return Blob(uri=value)
