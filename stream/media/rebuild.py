"""Rebuilds a record's text, thumbnail and snippet from its message in `records`.

Redis may have evicted it, or is not used. One message is read at its partition and offset by a
consumer without a group, with bounded concurrency and time.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from braid.encoders.config import Limits
from braid.index.service.hit_details import Rebuilt

from ..errors import BadRecord, bad_record
from ..kafka.client import lone_consumer
from ..kafka.schemas import Blob, Record, decode_record
from ..settings import Settings
from .links import Links
from .payload_writer import payload_of
from .thumbnails import media_of

log = logging.getLogger(__name__)

READERS = 2
TIMEOUT_S = 4.0
WAITING = 64  # requests in the queue; beyond it the payload is reported as absent


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
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="rebuild")
        self._room = threading.BoundedSemaphore(READERS + WAITING)
        self._closed = False

    async def rebuild(self, id_: str, partition: int, offset: int) -> Rebuilt | None:
        """Implements `braid.index.service.hit_details.Rebuild`."""
        if self._closed or not self._room.acquire(blocking=False):
            return None
        try:
            running = asyncio.get_running_loop().run_in_executor(
                self._threads, self._rebuild, id_, partition, offset, time.monotonic()
            )
        except RuntimeError:  # closed meanwhile
            self._room.release()
            return None
        return await running

    def read(self, partition: int, offset: int) -> tuple[bytes | None, bytes | None] | None:
        """Key and value of the message at an offset; None if it is deleted or no broker answers."""
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
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._consumers.empty():
            self._consumers.get_nowait().close()
        self._links.close()

    def _rebuild(self, id_: str, partition: int, offset: int, since: float) -> Rebuilt | None:
        try:
            if time.monotonic() - since > self._timeout_s:  # the request has timed out in the queue
                return None
            message = self.read(partition, offset)
            if message is None or message[1] is None:
                return None
            record = decode_record(message[0], message[1])
            if record.id != id_:  # the topic was recreated
                return None
            image, audio = self._bytes(record, "image"), self._bytes(record, "audio")
            return Rebuilt(payload=payload_of(record), media=media_of(image, audio, self._limits))
        except KafkaException as error:
            log.warning("records[%d]@%d cannot be read: %s", partition, offset, error)
            return None
        except Exception as error:  # noqa: BLE001 (whatever the record causes: it is not shown)
            bad = bad_record(error, stage="show")
            log.warning("records[%d]@%d cannot be shown: %s", partition, offset, bad)
            return None
        finally:
            self._room.release()

    def _bytes(self, record: Record, name: str) -> bytes | None:
        blob: Blob | None = getattr(record, name)
        if blob is None or blob.data is not None:
            return None if blob is None else blob.data
        try:
            return self._links.fetch(f"{name}.uri", blob.uri or "")
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
        return None

    def _make(self) -> Consumer:
        return lone_consumer(
            self._settings,
            auto_offset_reset="error",
            fetch_wait_max_ms=20,
            queued_max_messages_kbytes=1024,
        )
