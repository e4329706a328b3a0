"""The worker's consumer: `records` as a member of the consumer group.

A transaction is fenced by the group's generation (KIP-447), which is taken with the partitions. By
the protocol of KIP-848 the generation, there the epoch of the member, also changes while partitions
stay: see `Lease`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from ..errors import Unreachable
from ..settings import Settings
from .client import (
    MAX_MESSAGE_BYTES,
    REQUEST_TIMEOUT_MS,
    UNREACHABLE,
    Message,
    create,
    mapped,
    to_message,
    topic_partitions,
)
from .waiting import attempt_s

log = logging.getLogger(__name__)

# Its session timeout and heartbeats are the broker's, or those of `Admin.set_group_timeouts`.
INCREMENTAL = {"group.protocol": "consumer", "group.remote.assignor": "uniform"}

MAX_POLL_S = 45.0  # between two polls; a revocation during a hanging publish takes about 20 s


class Lease:
    """The group metadata under which partitions are owned, for the sink's thread.

    By the protocol of KIP-848 it is renewed while no partition is taken away, by the loop alone. A
    member that was fenced gets no other epoch before its loop has served the callback that ends
    the lease, so that an old lease never holds the metadata of a later membership. When any
    partition goes away the lease ends, and those that stay get another one: a transaction that was
    given up, and whose thread goes on, finds None.
    """

    __slots__ = ("metadata", "renewed")

    def __init__(self, metadata: bytes, *, renewed: bool = False) -> None:
        self.metadata: bytes | None = metadata
        self.renewed = renewed  # while it lasts


def generation_of(metadata: bytes) -> int:
    """The generation, or the epoch of the member; 0 or -1: it is no member."""
    head = b"CGMDv2:"  # rd_kafka_consumer_group_metadata_write
    assert metadata.startswith(head)
    return int.from_bytes(metadata[len(head) : len(head) + 4], sys.byteorder, signed=True)


class RecordSource:
    """A topic, by default `records`, as a member of a consumer group.

    The group metadata, the *lease*, is fetched when partitions are assigned and not again at
    commit. The broker checks its generation, not the owner of a partition: metadata that a worker
    fetched after a pause longer than its session would pass.

    Attributes:
        lease: under which the owned partitions were assigned.

    Args:
        on_assigned: called with the new partitions, before their first message.
        on_revoked: called before partitions are reassigned; may still publish.
        on_lost: called after they were reassigned; must not publish.
        group: the consumer group.
        topic: its full name; by default `records`.
        incremental: whether to take `kafka.group_protocol`. By "consumer" the callbacks get those
            partitions alone that come or go.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_assigned: Callable[[list[int]], None],
        on_revoked: Callable[[list[int]], None],
        on_lost: Callable[[list[int]], None],
        group: str,
        topic: str | None = None,
        incremental: bool = False,
    ) -> None:
        self._incremental = incremental and settings.kafka.group_protocol == "consumer"
        self._settings = settings
        self.topic = topic or settings.topic("records")
        self._polled: dict[int, int] = {}  # partition -> offset after the last message polled
        self._committed: dict[int, int] = {}  # committed by this member
        self._ends: dict[int, int] = {}  # partition -> its end, if all before it has been polled
        self._callbacks = (on_assigned, on_revoked, on_lost)
        self._failure: BaseException | None = None
        self.lease: Lease | None = None
        self.owned: list[int] = []
        self._paused = False
        self._consumer = create(
            Consumer,
            settings,
            {
                "group.id": group,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                **(INCREMENTAL if self._incremental else _eager(settings)),
                # Also how long a rebalance waits for a hanging member.
                "max.poll.interval.ms": int(
                    max(MAX_POLL_S, settings.kafka.session_timeout_s) * 1000
                ),
                "queued.max.messages.kbytes": 64 * 1024,
                "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
                "fetch.wait.max.ms": 50,
                "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            },
        )
        self._consumer.subscribe(
            [self.topic],
            on_assign=lambda _, parts: self._assigned([part.partition for part in parts]),
            on_revoke=lambda _, parts: self._gone(1, [part.partition for part in parts]),
            on_lost=lambda _, parts: self._gone(2, [part.partition for part in parts]),
        )

    @property
    def at_end(self) -> list[int]:
        """The owned partitions that are polled to their end."""
        return list(self._ends)

    @property
    def unheard(self) -> list[int]:
        """The owned partitions that gave neither a message nor their end, since they were assigned
        or read again."""
        return [n for n in self.owned if n not in self._polled and n not in self._ends]

    def note_committed(self, offsets: Mapping[int, int]) -> None:
        """Note the offsets that a transaction has committed."""
        self._committed.update(offsets)

    def take_marks(self) -> dict[int, int]:
        """The ends before which only transaction markers are left, to be committed now.

        Markers are not read, so that the group would seem to lag for ever. Partitions with polled
        messages that are not committed yet are left out. Each end is returned once; if the
        transaction is refused, `rewind` starts over.
        """
        marks = {
            number: end
            for number, end in self._ends.items()
            if number in self._polled
            and self._committed.get(number) == self._polled[number]
            and self._polled[number] < end
        }
        self._polled.update(marks)
        self._committed.update(marks)
        return marks

    def poll(self, limit: int, *, wait_s: float) -> list[Message]:
        """Up to `limit` messages; returns at once if there are any, else after wait_s at most.

        Rebalance callbacks run inside this call and nowhere else.
        """
        if self._paused:
            self._consumer.resume(topic_partitions(self.topic, self.owned))
            self._paused = False
        first = self._consumer.poll(wait_s)
        raw = [] if first is None else [first]
        if first is not None and limit > 1:
            raw += self._consumer.consume(limit - 1, timeout=0)
        if self._failure is not None:
            raise self._failure
        self._renew()
        messages = [message for message in map(self._message, raw) if message is not None]
        # A callback may have run while the messages were collected.
        return [message for message in messages if message.partition in self.owned]

    def idle_poll(self) -> None:
        """Run the callbacks without polling messages, for a worker that is full."""
        if not self._paused and self.owned:
            self._consumer.pause(topic_partitions(self.topic, self.owned))
            self._paused = True
        message = self._consumer.poll(0)
        if self._failure is not None:
            raise self._failure
        self._renew()
        self._mark_end(message)
        if message is not None and message.error() is None:  # fetched before the pause
            self._consumer.seek(
                TopicPartition(self.topic, message.partition() or 0, message.offset() or 0)
            )

    def committed(self) -> list[TopicPartition]:
        """The committed offset of each owned partition, negative if there is none."""
        if not self.owned:
            return []
        timeout_s = attempt_s(self._settings)
        try:
            positions: list[TopicPartition] = self._consumer.committed(
                topic_partitions(self.topic, self.owned), timeout=timeout_s
            )
        except KafkaException as error:
            raise mapped(error, f"committed offsets of {self.topic}") from error
        for position in positions:
            if position.error is not None:
                raise mapped(position.error, f"committed offset of {self.topic}")
        return positions

    def rewind(self) -> None:
        """Seek to the committed offsets of all owned partitions."""
        self._forget_positions()
        for position in self.committed():
            offset = position.offset if position.offset >= 0 else OFFSET_BEGINNING
            try:
                self._consumer.seek(TopicPartition(self.topic, position.partition, offset))
            except KafkaException as error:
                if error.args[0].code() == KafkaError._STATE:  # not fetched yet
                    raise Unreachable(
                        f"going back in {self.topic}: {error.args[0].str()}"
                    ) from error
                raise mapped(error, f"going back in {self.topic}") from error

    def lag(self) -> dict[int, int]:
        """The number of offsets between each owned partition's position and its end.

        0 once the end was reached: only transaction markers may follow the position.
        """
        lags = {}
        for position in self._consumer.position(topic_partitions(self.topic, self.owned)):
            low, high = self._consumer.get_watermark_offsets(position, cached=True)
            if high >= 0:
                at = position.offset if position.offset >= 0 else max(low, 0)
                behind = 0 if position.partition in self._ends else max(0, high - at)
                lags[position.partition] = behind
        return lags

    def close(self, within_s: float) -> None:
        """Leave the group; given up after `within_s` if no broker answers."""
        closing = threading.Thread(target=self._consumer.close, name="leave", daemon=True)
        closing.start()
        closing.join(within_s)
        if closing.is_alive():
            log.warning("the group of %s was not left in order within %g s", self.topic, within_s)

    def _mark_end(self, raw: Any) -> None:
        error = None if raw is None else raw.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            self._ends[raw.partition()] = raw.offset()
        elif raw is not None and error is None:
            self._ends.pop(raw.partition(), None)
            self._polled[raw.partition()] = raw.offset() + 1

    def _message(self, raw: Any) -> Message | None:
        self._mark_end(raw)
        if (error := raw.error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                return None
            if error.code() in UNREACHABLE or error.code() == KafkaError._MAX_POLL_EXCEEDED:
                log.warning("reading %s: %s", self.topic, error.str())
                return None
            raise mapped(error, f"reading {self.topic}")
        return to_message(raw)

    def _assigned(self, partitions: list[int]) -> None:
        self._guard(self._take_lease, partitions)

    def _take_lease(self, partitions: list[int]) -> None:
        if self._incremental:
            self._forget_positions(partitions)
            self.owned = sorted({*self.owned, *partitions})
            self._renew()
            self._callbacks[0](partitions)
            return
        self.owned = sorted(partitions)
        self._forget_positions()
        # The same non-empty member id before and after: the metadata in between is this member's.
        # An empty one would carry no generation, and the broker would not check it at all.
        before = self._consumer.memberid()
        lease = self._consumer.consumer_group_metadata()
        valid = before and before == self._consumer.memberid()
        self.lease = Lease(lease) if valid else None
        self._callbacks[0](self.owned)

    def _renew(self) -> None:
        """Put the metadata of the present epoch into the lease. Only after callbacks were run."""
        if not self._incremental:
            return
        metadata = self._consumer.consumer_group_metadata()
        if generation_of(metadata) <= 0:
            return
        if self.lease is None:
            self.lease = Lease(metadata, renewed=True)
        else:
            self.lease.metadata = metadata

    def _forget_positions(self, partitions: Iterable[int] | None = None) -> None:
        for positions in (self._ends, self._polled, self._committed):
            for number in list(positions) if partitions is None else partitions:
                positions.pop(number, None)

    def _gone(self, callback: int, partitions: list[int]) -> None:
        def forget() -> None:
            gone = partitions if self._incremental else self.owned
            self._forget_positions(gone)
            self.owned = [number for number in self.owned if number not in gone]
            if self._paused:  # librdkafka keeps partitions paused across assignments
                self._consumer.resume(topic_partitions(self.topic, gone))
            lease, lost = self.lease, callback == 2
            if lost and self._incremental and lease is not None:
                lease.metadata = None
            self._callbacks[callback](gone)
            if lease is not None:
                lease.metadata = None
            self.lease = None
            if not lost:
                self._renew()
            self._paused = self._paused and self._incremental

        self._guard(forget)

    def _guard(self, function: Callable[..., None], *args: Any) -> None:
        # librdkafka's callback would drop an exception: poll raises it again.
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001
            self._failure = self._failure or error


def _eager(settings: Settings) -> dict[str, Any]:
    """Of the classic protocol. The generation cannot change under a lease without both callbacks in
    between."""
    timeout_ms = int(settings.kafka.session_timeout_s * 1000)
    return {
        "partition.assignment.strategy": "roundrobin",
        "session.timeout.ms": timeout_ms,
        "heartbeat.interval.ms": max(100, timeout_ms // 5),
    }
