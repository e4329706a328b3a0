"""Hanging transactions: messages without an end marker though their transaction ended.

Apache Kafka skips the marker of a partition that has no leader at that moment ("likely deleted
already", TransactionMarkerChannelManager of 4.3.1): a single broker that was killed and aborts, or
ends, transactions while it starts does so for all partitions. Read-committed consumers stop there,
and the next commit of the same producer id exposes the messages, even those of an aborted
transaction. So a sink finds its own before its first transaction and aborts them, in a transaction
of the same producer id.

Each transaction is identified by a header HEADER of the first message in each partition: its
transactional id and the offsets of its source that it covers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import KafkaError, TopicPartition

from ..settings import Settings
from .admin import Admin
from .client import BY_KEY, Output, lone_consumer, mapped, to_message

HEADER = "braid-transaction"
# For all partitions together, below worker.publish_timeout_s. A transaction that takes longer to
# read has long been open: another producer left it, and this one must not wait for it.
READ_S = 8.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Covered:
    """The offsets `first` to `next` - 1 of one source partition, which a transaction covers."""

    id: str
    partition: int
    first: int
    next: int

    def encoded(self) -> bytes:
        return f"{self.partition} {self.first} {self.next} {self.id}".encode()

    @classmethod
    def decoded(cls, header: bytes | None) -> Covered | None:
        """The covered offsets in a header; None: not one of braid's."""
        try:
            partition, first, next_, id_ = (header or b"").decode().split(" ", 3)
            return cls(id_, int(partition), int(first), int(next_))
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Hanging:
    """A transaction's messages without an end marker in one partition.

    Attributes:
        repeated: whether the next transaction in the partition covers some of the same offsets;
            None: no other transaction follows.
    """

    topic: str
    partition: int
    covered: Covered
    repeated: bool | None = None


def named(
    outputs: Iterable[Output], id_: str, offsets: Mapping[int, int], starts: Mapping[int, int]
) -> Iterator[Output]:
    """The outputs of a transaction; the first one of each partition gets the header.

    So does every output whose partition the client chooses.

    Args:
        offsets: partition of the source -> next offset.
        starts: partition -> the first covered offset, if it is known.
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
    """The messages of this transactional id without an end marker, on these topics.

    Call it when no transaction of the id is open.

    Raises:
        Unreachable: no answer within kafka.broker_timeout_s.
        BrokerError: the broker refuses.
    """
    open_ends = Admin(settings).open_ends(topics)
    hanging: dict[tuple[str, int], Hanging] = {}
    for place, covered in _read(settings, open_ends):
        if covered.id == id_:
            hanging.setdefault(place, Hanging(*place, covered))
            continue
        mine = hanging.get(place)
        same_source = mine is not None and covered.partition == mine.covered.partition
        if mine is not None and same_source and mine.repeated is None:
            hanging[place] = replace(mine, repeated=covered.first < mine.covered.next)
    return list(hanging.values())


def aborted(hanging: Sequence[Hanging], committed: Mapping[int, int]) -> bool:
    """Whether the transaction that left these messages was aborted.

    It was committed only if the group's offsets have passed those that it covers, and no later
    transaction covers them again.

    Args:
        committed: partition of the source -> the group's committed offset.
    """
    return any(
        part.repeated or part.covered.next > committed.get(part.covered.partition, 0)
        for part in hanging
    )


def _read(
    settings: Settings, open_ends: Mapping[tuple[str, int], tuple[int, int]]
) -> Iterator[tuple[tuple[str, int], Covered]]:
    """The headers between the last stable offset and the end of each partition, in order."""
    left = {place: end for place, (_, end) in open_ends.items()}
    if not left:
        return
    consumer = lone_consumer(settings, isolation_level="read_uncommitted")
    consumer.assign([TopicPartition(*place, stable) for place, (stable, _) in open_ends.items()])
    deadline = time.monotonic() + READ_S
    try:
        while left and time.monotonic() < deadline:
            raw = consumer.poll(0.1)
            if raw is None:
                continue
            place = (raw.topic() or "", raw.partition() or 0)
            if (error := raw.error()) is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise mapped(error, "looking for hanging transactions")
                left.pop(place, None)
                continue
            for name, value in to_message(raw).headers:
                if name == HEADER and (covered := Covered.decoded(value)) is not None:
                    yield place, covered
            if (raw.offset() or 0) + 1 >= left.get(place, 0):
                left.pop(place, None)
    finally:
        consumer.close()
    if left:
        log.warning(
            "open transactions that were not read to their end within %g s: %s",
            READ_S,
            sorted(left),
        )
