"""Hanging transactions: messages without an end marker though their transaction ended.

Apache Kafka skips the marker of a partition that has no leader at that moment ("likely deleted
already", TransactionMarkerChannelManager of 4.3.1): a single broker that was killed and aborts, or
ends, transactions while it starts does so for all partitions. Readers stop there, and the next
commit of the same producer id shows the messages, even those of an aborted transaction. So a sink
looks for its own before its first transaction and aborts them, in a transaction of the same
producer id.

Each transaction names itself: the first message in each partition carries the header HEADER with
its transactional id and the offsets of its source that it covers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import KafkaError, TopicPartition

from ..settings import Settings
from .client import BY_KEY, Admin, Output, lone_consumer, mapped, to_message

HEADER = "braid-transaction"
READ_S = 20.0  # of one partition's open end: beyond that it is another one's that is read

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Covered:
    """What a transaction covers of one partition of its source: offsets `first` to `next` - 1."""

    id: str
    partition: int
    first: int
    next: int

    def encoded(self) -> bytes:
        return f"{self.partition} {self.first} {self.next} {self.id}".encode()

    @classmethod
    def decoded(cls, header: bytes | None) -> Covered | None:
        """None: it is not one of ours."""
        try:
            partition, first, next_, id_ = (header or b"").decode().split(" ", 3)
            return cls(id_, int(partition), int(first), int(next_))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Hanging:
    """A transaction's messages without an end in one partition.

    Attributes:
        repeated: another transaction after it covers some of the same offsets.
    """

    topic: str
    partition: int
    covered: Covered
    repeated: bool


def named(
    outputs: Iterable[Output], id_: str, offsets: Mapping[int, int], starts: Mapping[int, int]
) -> Iterator[Output]:
    """The outputs of a transaction; the first one of each partition gets the header.

    One whose partition the client chooses gets it in any case.

    Args:
        offsets: partition of the source -> next offset.
        starts: partition -> the first offset that is covered, where it is known.
    """
    seen: set[tuple[str, int]] = set()
    for output in outputs:
        place = output.topic, output.partition
        if offsets and (output.partition == BY_KEY or place not in seen):
            seen.add(place)
            source = output.partition if output.partition in offsets else min(offsets)
            next_ = offsets[source]
            covered = Covered(id_, source, starts.get(source, next_), next_)
            output = replace(output, headers=[*output.headers, (HEADER, covered.encoded())])
        yield output


def find(settings: Settings, id_: str, topics: Sequence[str]) -> list[Hanging]:
    """The messages of this transactional id that have no end, on these topics.

    To be called when no transaction of the id is open.

    Raises:
        Unreachable: no answer within broker_timeout_s.
        BrokerError: the broker refuses.
    """
    hanging = []
    for place, (stable, end) in Admin(settings).open_ends(topics).items():
        hanging += _in_partition(settings, id_, place, stable, end)
    return hanging


def aborted(hanging: Sequence[Hanging], committed: Mapping[int, int]) -> bool:
    """Whether the transaction that left these messages was aborted.

    It was committed only if the group's offsets have passed what it covers, and nobody covered
    that again.

    Args:
        committed: partition of the source -> the group's committed offset.
    """
    return any(
        its.repeated or its.covered.next > committed.get(its.covered.partition, 0)
        for its in hanging
    )


def _in_partition(
    settings: Settings, id_: str, place: tuple[str, int], start: int, end: int
) -> list[Hanging]:
    """Reads on to the first transaction after ours: a handful of messages."""
    topic, partition = place
    mine: Covered | None = None
    for covered in _read(settings, TopicPartition(topic, partition, start), end):
        if covered.id == id_:
            mine = mine or covered
        elif mine is not None and covered.partition == mine.partition:
            return [Hanging(topic, partition, mine, repeated=covered.first < mine.next)]
    return [] if mine is None else [Hanging(topic, partition, mine, repeated=False)]


def _read(settings: Settings, position: TopicPartition, end: int) -> Iterator[Covered]:
    consumer = lone_consumer(settings, isolation_level="read_uncommitted")
    consumer.assign([position])
    deadline = time.monotonic() + READ_S
    try:
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise mapped(error, "looking for hanging transactions")
            for name, value in to_message(message).headers:
                if name == HEADER and (covered := Covered.decoded(value)) is not None:
                    yield covered
            if (message.offset() or 0) + 1 >= end:
                return
    finally:
        consumer.close()
    log.warning(
        "%s %d is open from offset %d on, and not all of it could be read within %g s",
        position.topic,
        position.partition,
        position.offset,
        READ_S,
    )
