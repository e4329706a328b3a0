"""Rebuilds a record's text, thumbnail and snippet, or its large media, from `records`.

Redis may have evicted it, or is not used. One message is read at its partition and offset by a
consumer without a group, with bounded concurrency and time. A record that cannot be read now is an
error, and only one that is gone is None, so that no caller remembers the first as the second.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from braid.encoders.config import Limits
from braid.index.errors import BadQuery, Busy
from braid.index.media_cache import Media
from braid.index.service.hit_details import Large, Rebuilt
from braid.modalities import MEDIA

from ..errors import BadRecord, bad_record
from ..kafka.client import lone_consumer
from ..kafka.schemas import Record, decode_record
from ..settings import Settings
from .links import Links
from .payload_writer import payload_of
from .thumbnails import LARGE_SIDE, LONG_S, media_of, snippet, still, thumb

log = logging.getLogger(__name__)

T = TypeVar("T")

READERS = 2
WAITING = 64  # requests in the queue; beyond it Busy
LARGE_READERS, LARGE_WAITING = 2, 16  # of whole texts, large pictures and sounds
TIMEOUT_S = 4.0
RETRY_S = 5


class _Lane:
    """Threads for one kind of request, with a bounded queue."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threading.BoundedSemaphore(threads + waiting)

    async def run(self, call: Callable[[], T]) -> T:
        """Raises Busy: the queue is full, or the lane is closed."""
        if not self._room.acquire(blocking=False):
            raise Busy("many records are being read back; try again")
        try:
            running = self._threads.submit(call)
        except RuntimeError:
            self._room.release()
            raise Busy("this node is stopping; try again") from None
        running.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class Rebuilder:
    """Reads records back on threads of its own; consumers are made on first use."""

    def __init__(
        self, settings: Settings, *, timeout_s: float = TIMEOUT_S, limits: Limits | None = None
    ) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._limits = limits or Limits()
        self._links = Links(settings)
        self._consumers: queue.Queue[Consumer] = queue.Queue()
        self._small = _Lane("rebuild", READERS, WAITING)
        self._large = _Lane("enlarge", LARGE_READERS, LARGE_WAITING)

    async def rebuild(self, id_: str, partition: int, offset: int) -> Rebuilt | None:
        """Implements `braid.index.service.hit_details.Rebuild`."""
        return await self._shown(self._small, id_, partition, offset, self._rebuilt)

    async def enlarge(self, what: Large, id_: str, partition: int, offset: int) -> Media | None:
        """Implements `braid.index.service.hit_details.Enlarge`."""
        make = {"picture": self._picture, "sound": self._sound, "text": _text}[what]
        return await self._shown(self._large, id_, partition, offset, make)

    def read(self, partition: int, offset: int) -> tuple[bytes | None, bytes | None] | None:
        """Key and value of the message at an offset; None if it is deleted.

        Raises:
            BadQuery: no broker answers (503).
        """
        try:
            consumer = self._consumers.get_nowait()
        except queue.Empty:
            consumer = self._make()
        try:
            return self._read(consumer, partition, offset)
        finally:
            consumer.unassign()
            self._consumers.put(consumer)

    def close(self) -> None:
        self._small.close()
        self._large.close()
        while not self._consumers.empty():
            self._consumers.get_nowait().close()
        self._links.close()

    async def _shown(
        self,
        lane: _Lane,
        id_: str,
        partition: int,
        offset: int,
        make: Callable[[Record], T | None],
    ) -> T | None:
        """What `make` makes of a record, on a thread; None if it is gone or cannot be made."""
        since = time.monotonic()
        return await lane.run(lambda: self._made(id_, partition, offset, make, since))

    def _rebuilt(self, record: Record) -> Rebuilt:
        contents = {name: self._bytes(record, name) for name in MEDIA}
        return Rebuilt(payload=payload_of(record), media=media_of(contents, self._limits))

    def _picture(self, record: Record) -> Media | None:
        image = self._bytes(record, "image")
        if image is not None:
            return thumb(image, self._limits, side=LARGE_SIDE)
        video = self._bytes(record, "video")
        return None if video is None else still(video, self._limits, side=LARGE_SIDE)

    def _sound(self, record: Record) -> Media | None:
        audio = self._bytes(record, "audio")
        return None if audio is None else snippet(audio, self._limits, seconds=LONG_S)

    def _made(
        self,
        id_: str,
        partition: int,
        offset: int,
        make: Callable[[Record], T | None],
        since: float,
    ) -> T | None:
        try:
            if time.monotonic() - since > self._timeout_s:
                raise Busy("this record waited too long to be read back; try again")
            message = self.read(partition, offset)
            if message is None or message[1] is None:
                return None
            record = decode_record(message[0], message[1])
            if record.id != id_:  # the topic was recreated
                return None
            return make(record)
        except BadQuery:
            raise
        except KafkaException as error:
            log.warning("records[%d]@%d cannot be read: %s", partition, offset, error)
            raise _no_answer() from error
        except Exception as error:  # noqa: BLE001 (whatever the record causes: it is not shown)
            bad = bad_record(error, stage="show")
            log.warning("records[%d]@%d cannot be shown: %s", partition, offset, bad.brief)
            return None

    def _bytes(self, record: Record, name: str) -> bytes | None:
        try:
            return self._links.content(name, getattr(record, name))
        except BadRecord as error:
            log.debug("%s: %s", record.id, error)
            return None

    def _read(
        self, consumer: Consumer, partition: int, offset: int
    ) -> tuple[bytes | None, bytes | None] | None:
        topic = self._settings.topic("records")
        consumer.assign([TopicPartition(topic, partition, offset)])
        deadline = time.monotonic() + self._timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = consumer.poll(left)
            if message is None:
                break
            if (error := message.error()) is not None:
                if error.code() in (
                    KafkaError._PARTITION_EOF,
                    KafkaError.OFFSET_OUT_OF_RANGE,
                    KafkaError._AUTO_OFFSET_RESET,
                ):
                    return None
                log.debug("records[%d]@%d: %s", partition, offset, error)
                continue
            if message.offset() != offset:  # compacted away: this is the next message
                return None
            return message.key(), message.value()
        log.info("records[%d]@%d: no answer within %g s", partition, offset, self._timeout_s)
        raise _no_answer()

    def _make(self) -> Consumer:
        return lone_consumer(
            self._settings,
            auto_offset_reset="error",
            fetch_wait_max_ms=20,
            queued_max_messages_kbytes=1024,
        )


def _no_answer() -> BadQuery:
    reason = "does not answer: records cannot be read back"
    return BadQuery("broker", reason, status=503, retry_after_s=RETRY_S)


def _text(record: Record) -> Media | None:
    if record.text is None:
        return None
    return Media(data=record.text.encode("utf-8", "replace"), type="text/plain")
