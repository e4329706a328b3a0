"""`braid.Producer`: sends records from programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from braid.encoders.types import Label

from ..errors import Unreachable
from ..settings import Settings, load
from ..tracing import RecordSpan, Tracing, tracing_of
from .admin import Admin
from .client import HOW, MAX_MESSAGE_BYTES, mapped_aiokafka
from .schemas import Blob, Record, check_id, encode_record
from .security import aiokafka

BlobLike = bytes | str | Path | Blob | None


REASON_S = 5.0


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
        self._tracing: Tracing | None = None
        # Of wait=False; few, since aiokafka waits while a partition's batch is full.
        self._pending: dict[asyncio.Future[Any], str] = {}
        self._unawaited = self._failed = 0
        self._first_failure = ""

    async def __aenter__(self) -> Producer:
        self._tracing = tracing_of(self._settings, "braid-produce")
        self._producer = AIOKafkaProducer(
            **aiokafka(self._settings),
            acks="all",
            enable_idempotence=True,
            max_request_size=MAX_MESSAGE_BYTES,
            linger_ms=5,
        )
        try:
            await self._producer.start()
        except KafkaError as error:
            await self._producer.stop()
            # aiokafka keeps why it did not connect to itself.
            await asyncio.to_thread(Admin(self._settings, timeout_s=REASON_S).partition_counts)
            where = f"no broker at {self._settings.kafka.bootstrap} {HOW}"
            raise mapped_aiokafka(error, where) from error
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until everything sent is acknowledged.

        Raises:
            Unreachable: the broker did not take some of what was sent with wait=False.
        """
        assert self._producer is not None
        await self._producer.stop()
        for future in list(self._pending):  # nothing answers them any more
            self._note(future)
        if kind is None:
            self._raise_failed()

    async def send(
        self,
        *,
        id: str,
        text: str | None = None,
        image: BlobLike = None,
        audio: BlobLike = None,
        video: BlobLike = None,
        labels: Mapping[str, Label] | None = None,
        meta: Mapping[str, Any] | None = None,
        ts: int | None = None,
        wait: bool = True,
    ) -> tuple[int, int] | None:
        """Send one record; returns its partition and offset, or None with wait=False.

        With wait=False the record is batched with others; leaving the context waits for all, and
        raises Unreachable if the broker did not take some of them.

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
            video=as_blob(video),
            labels=labels or {},
            meta=meta or {},
        )
        return await self._send(id, encode_record(record), wait)

    async def delete(self, id: str, *, wait: bool = True) -> tuple[int, int] | None:
        """Send the null value that deletes a record; returns its partition and offset."""
        check_id(id)
        return await self._send(id, None, wait)

    async def flush(self) -> None:
        """Wait until everything sent so far is acknowledged.

        Raises:
            Unreachable: the broker did not take some of it.
        """
        if self._producer is None:
            raise RuntimeError("use the producer inside `async with Producer() as producer:`")
        await self._producer.flush()
        await asyncio.sleep(0)  # what each send came to is noted by now
        self._raise_failed()

    def _raise_failed(self) -> None:
        if self._failed:
            raise Unreachable(
                f"{self._topic} took {self._unawaited - self._failed} of {self._unawaited} records "
                f"sent without waiting; the first that it did not take is {self._first_failure}"
            )

    async def _send(self, id_: str, value: bytes | None, wait: bool) -> tuple[int, int] | None:
        if self._producer is None:
            raise RuntimeError("use the producer inside `async with Producer() as producer:`")
        span = None if self._tracing is None else self._tracing.sent(self._topic, id_)
        headers = None if span is None else span.headers
        try:
            sent = await self._producer.send(
                self._topic, key=id_.encode(), value=value, headers=headers
            )
            if span is not None:
                sent.add_done_callback(partial(_end, span))
            if not wait:
                self._unawaited += 1
                self._pending[sent] = id_
                sent.add_done_callback(self._note)
                return None
            done = await sent
        except KafkaError as error:
            doing = f"{self._topic} did not take {id_!r}"
            needs = f"Write on topic {self._topic}"
            raise mapped_aiokafka(error, doing, needs=needs) from error
        return done.partition, done.offset

    def _note(self, sent: asyncio.Future[Any]) -> None:
        """Note the end of a send that is not waited for; more than once for the same is fine."""
        id_ = self._pending.pop(sent, None)
        if id_ is None:
            return
        error = sent.exception() if sent.done() and not sent.cancelled() else TimeoutError()
        if error is not None:
            self._failed += 1
            self._first_failure = self._first_failure or f"{id_!r}: {type(error).__name__}"


def _end(span: RecordSpan, sent: asyncio.Future[Any]) -> None:
    """End the span of a record whose sending has ended."""
    if sent.cancelled() or sent.exception() is not None:
        span.fail("the broker did not take it")
    else:
        span.note(partition=sent.result().partition, offset=sent.result().offset)
    span.end()


def as_blob(value: BlobLike) -> Blob | None:
    """Bytes, a path's bytes, or a link as a Blob."""
    if value is None or isinstance(value, Blob):
        return value
    if isinstance(value, bytes):
        return Blob(data=value)
    if isinstance(value, Path):
        return Blob(data=value.read_bytes(), uri=value.absolute().as_uri())
    return Blob(uri=value)
