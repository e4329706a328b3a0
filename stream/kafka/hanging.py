"""Hanging transactions: messages without an end marker though their transaction ended.

Apache Kafka skips the marker of a partition that has no leader at that moment ("likely deleted
already", TransactionMarkerChannelManager of 4.3.1): a single broker that was killed and aborts, or
ends, transactions while it starts does so for all partitions. Read-committed consumers stop there,
and the next commit of the same producer id exposes the messages, even those of an aborted
transaction. So a sink finds its own before its first transaction and aborts them, in a transaction
of the same producer id.

Each transaction is identified by a header HEADER of the first and of the last message in each
partition: its transactional id and the offsets of its source that it covers.

The same happens to the partition of `__consumer_offsets`: then the offsets that the transaction has
sent stay unsettled, no member of the group learns where to read, and there need not be a message.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from confluent_kafka import KafkaError, TopicPartition

from ..errors import Unreachable
from ..settings import Settings
from .admin import Admin
from .client import BY_KEY, Output, lone_consumer, mapped, to_message
from .schemas import PROGRESS_KEY

HEADER = "braid-transaction"
# For all partitions together, below worker.publish_timeout_s. A transaction that takes longer to
# read has long been open: another producer left it, and this one must not wait for it.
READ_S = 6.0
SHOWN_S = 4.0  # of the tails
TAIL = 64
SETTLE_S = 2.0

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
class Ending:
    """A transaction whose end markers also end the one that the broker has left without.

    Attributes:
        messages: that it writes.
        offsets: partition of the source -> next offset, that it sends; empty: it sends none.
        lease: the group metadata to send them with; None: without offsets.
    """

    messages: Sequence[Output]
    offsets: Mapping[int, int]
    lease: object
    commit: bool


@dataclass(frozen=True, slots=True)
class Hanging:
    """A transaction's messages without an end marker in one partition.

    Attributes:
        last: the last of them with the header.
        repeated: whether the next transaction in the partition covers some of the same offsets;
            None: no other transaction follows.
    """

    topic: str
    partition: int
    covered: Covered
    last: Output
    repeated: bool | None = None


def named(
    outputs: Iterable[Output], id_: str, offsets: Mapping[int, int], starts: Mapping[int, int]
) -> Iterator[Output]:
    """The outputs of a transaction; the first and the last one of each partition get the header.

    So does every output whose partition the client chooses. Order within a partition is kept.

    Args:
        offsets: partition of the source -> next offset.
        starts: partition -> the first covered offset, if it is known.
    """

    def with_header(output: Output) -> Output:
        source = output.partition if output.partition in offsets else min(offsets)
        covered = Covered(id_, source, starts.get(source, offsets[source]), offsets[source])
        return output._replace(headers=[*output.headers, (HEADER, covered.encoded())])

    if not offsets:
        yield from outputs
        return
    latest: dict[tuple[str, int], Output | None] = {}
    for output in outputs:
        place = output.topic, output.partition
        if output.partition == BY_KEY or place not in latest:
            latest[place] = None
            yield with_header(output)
            continue
        if (before := latest[place]) is not None:
            yield before
        latest[place] = output
    for last in latest.values():
        if last is not None:
            yield with_header(last)


def find(settings: Settings, id_: str, topics: Sequence[str]) -> list[Hanging]:
    """The messages of this transactional id without an end marker, on these topics.

    Call it when no transaction of the id is open.

    Raises:
        Unreachable: no answer within kafka.broker_timeout_s.
        BrokerError: the broker refuses.
    """
    open_ends = Admin(settings).open_ends(topics)
    hanging: dict[tuple[str, int], Hanging] = {}
    left = dict(open_ends)
    for place, covered, message in _read(
        settings, left, READ_S, isolation_level="read_uncommitted"
    ):
        if covered.id == id_:
            part = hanging.get(place, Hanging(*place, covered, message))
            hanging[place] = replace(part, last=message)
            continue
        mine = hanging.get(place)
        same_source = mine is not None and covered.partition == mine.covered.partition
        if mine is not None and same_source and mine.repeated is None:
            hanging[place] = replace(mine, repeated=covered.first < mine.covered.next)
    if left:
        log.warning(
            "open transactions that were not read to their end within %g s: %s",
            READ_S,
            sorted(left),
        )
    return list(hanging.values())


def ending(
    settings: Settings, id_: str, topics: Sequence[str], *, group: str, source: str
) -> Ending | None:
    """How to end the transaction of this id of which the broker has lost end markers.

    None: there is none, or the next commit shows its messages. Call it when no transaction of the
    id is open.

    Args:
        topics: that its transactions write to.
        source: the topic whose offsets they commit.

    Raises:
        Unreachable: no answer within kafka.broker_timeout_s.
        BrokerError: the broker refuses.
    """
    # The offsets first: a worker that repeats a transaction and passes its offsets while the
    # messages are read would make it seem committed.
    committed, unsettled = _offsets(settings, group, source)
    parts = find(settings, id_, topics)
    if not parts and not unsettled:
        return None
    where = [f"{part.topic} {part.partition}" for part in parts]
    if parts and not aborted(parts, committed):
        # The next commit shows them, if it ever writes there: another slot may own these by now.
        # Progress may be repeated, outputs may not.
        progress = [part.last for part in parts if part.last.key == PROGRESS_KEY]
        log.warning("committed by %s, shown with its next commit: %s", id_, ", ".join(where))
        return Ending(progress, {}, None, commit=True) if progress else None
    before = {number: committed.get(number, 0) for number in unsettled}
    if before and (passed := _passed(settings, id_, topics, before)):
        log.warning("committed by %s, its offsets now: %s %s", id_, source, passed)
        return Ending([], passed, _lease(settings, group), commit=True)
    where += [f"offsets of {source} {number}" for number in unsettled]
    log.warning("left open by %s, aborted now: %s", id_, ", ".join(where))
    # With a key, without which a compacted topic refuses them.
    nothing = [Output(part.topic, part.partition, HEADER.encode(), None) for part in parts]
    sent = {part.covered.partition for part in parts}.union(unsettled)
    offsets = {number: committed.get(number, 0) for number in sent}
    return Ending(nothing, offsets, _lease(settings, group), commit=False)


def _lease(settings: Settings, group: str) -> object:
    member = lone_consumer(settings, group_id=group)
    try:
        return member.consumer_group_metadata()
    finally:
        member.close()


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


def _offsets(settings: Settings, group: str, topic: str) -> tuple[dict[int, int], list[int]]:
    """The committed offset of each partition that has one; and the partitions with a later one,
    sent in a transaction, that waits for its end marker.

    Offsets that are settled at times within SETTLE_S are those of running transactions.

    Raises:
        Unreachable: no answer within kafka.broker_timeout_s.
    """
    admin = Admin(settings)
    unsettled = admin.unsettled(group, topic, SETTLE_S)
    return admin.committed(group, topic), sorted(unsettled)


def _passed(
    settings: Settings, id_: str, topics: Sequence[str], committed: Mapping[int, int]
) -> dict[int, int]:
    """Partition of the source -> next offset, where committed messages have passed the offsets.

    Then the markers were written to these topics: the transaction was committed. The last TAIL
    offsets of each partition are read: without the group's offsets nobody has written there since.

    Args:
        committed: of the partitions whose offsets are unsettled.

    Raises:
        Unreachable: the ends were not read within SHOWN_S.
    """
    admin, tails = Admin(settings), dict[tuple[str, int], tuple[int, int]]()
    for topic in topics:
        for number, (first, end) in admin.ends(topic).items():
            if first < end:
                tails[topic, number] = max(first, end - TAIL), end
    passed = dict(committed)
    for _, covered, _ in _read(settings, tails, SHOWN_S, isolation_level="read_committed"):
        if covered.id == id_ and covered.partition in passed:
            passed[covered.partition] = max(passed[covered.partition], covered.next)
    if tails:
        raise Unreachable(f"the ends of {sorted(tails)} were not read within {SHOWN_S:g} s")
    return {number: next_ for number, next_ in passed.items() if next_ > committed[number]}


def _read(
    settings: Settings,
    left: dict[tuple[str, int], tuple[int, int]],
    within_s: float,
    *,
    isolation_level: str,
) -> Iterator[tuple[tuple[str, int], Covered, Output]]:
    """The headers between two offsets of each partition with their messages, in order.

    Args:
        left: topic and partition -> first offset and end; those that were read are taken out.

    Raises:
        Unreachable: a partition gave nothing at all.
    """
    if not left:
        return
    silent = set(left)
    consumer = lone_consumer(settings, isolation_level=isolation_level)
    consumer.assign([TopicPartition(*place, first) for place, (first, _) in left.items()])
    deadline = time.monotonic() + within_s
    try:
        while left and time.monotonic() < deadline:
            raw = consumer.poll(0.1)
            if raw is None:
                continue
            place = (raw.topic() or "", raw.partition() or 0)
            silent.discard(place)
            if (error := raw.error()) is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise mapped(error, "looking for hanging transactions")
                left.pop(place, None)
                continue
            message = to_message(raw)
            for name, value in message.headers:
                if name == HEADER and (covered := Covered.decoded(value)) is not None:
                    yield (
                        place,
                        covered,
                        Output(*place, message.key, message.value, message.headers),
                    )
            if (raw.offset() or 0) + 1 >= left.get(place, (0, 0))[1]:
                left.pop(place, None)
    finally:
        consumer.close()
    if silent:
        raise Unreachable(f"nothing was read of {sorted(silent)} within {within_s:g} s")
