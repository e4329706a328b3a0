"""librdkafka's clients on the model of Kafka: they answer late, twice or not at all.

A request is processed after a delay, or its connection breaks: before it arrived, after it was
processed, or with the request on its way, to arrive much later. The client then sends it again, as
librdkafka does, after at least half a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from braid.stream.errors import Unreachable
from braid.stream.kafka.client import mapped
from braid.stream.settings import Settings
from tests.simulation.broker import Broker, Entry, Place, refusal
from tests.simulation.kernel import LEAST_S, Kernel

R = TypeVar("R")
HANGS_S = 40.0  # beyond any bound of the caller (librdkafka#5456, #5511)
LATE_S = 6.0
IDLE_S = 5.0
SPINS = 100  # polls without waiting at one moment
"""A poll that waits for messages takes so long: news wake it."""


class Network:
    """Between the clients and the broker.

    Attributes:
        bad: the share of requests with a fault.
    """

    def __init__(self, kernel: Kernel, broker: Broker) -> None:
        self.kernel, self.broker, self.bad = kernel, broker, 0.0

    def call(
        self, request: Callable[[], R], timeout_s: float, *, doing: str = "", late: bool = False
    ) -> R:
        """Send a request until it is answered.

        Args:
            doing: its name, for the log.
            late: a lost one may arrive later; then it may hang as well.

        Raises:
            KafkaException: the broker's error, or no answer within `timeout_s`.
        """
        kernel, rng = self.kernel, self.kernel.rng
        deadline = kernel.now + timeout_s
        while kernel.now < deadline:
            fault = rng.choice(FAULTS[late]) if rng.random() < self.bad else None
            kernel.pause(rng.expovariate(300))
            if fault == "hangs":
                kernel.note(f"{kernel.process.name}: {doing} hangs")
                kernel.pause(HANGS_S)
            elif fault == "late":
                kernel.note(f"{kernel.process.name}: {doing} is delayed")
                kernel.after(rng.uniform(0, LATE_S), self._late, request, doing)
            try:
                if fault not in ("lost", "late"):
                    answer = request()
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                kernel.pause(rng.uniform(0.05, 0.2))
                continue
            if fault is None:
                kernel.pause(rng.expovariate(300))
                return answer
            kernel.note(f"{kernel.process.name}: no answer to {doing}")
            kernel.pause(rng.uniform(0.5, 1.2))
        raise refusal(KafkaError._TIMED_OUT, passes=True)

    def _late(self, request: Callable[[], object], doing: str) -> None:
        self.kernel.note(f"the delayed {doing} arrives")
        try:
            request()
        except KafkaException as error:
            self.kernel.note(f"and is refused: {error.args[0].name()}")


FAULTS = {False: ("lost", "unanswered"), True: ("lost", "unanswered", "late", "late", "hangs")}


class Producer:
    """A transactional producer."""

    def __init__(self, network: Network, config: Mapping[str, Any]) -> None:
        self._network, self._broker = network, network.broker
        self._id, self._epoch = config["transactional.id"], -1
        self._queue: dict[Place, list[Entry]] = {}
        self._error: KafkaException | None = None
        self._open = self._sent = False

    def init_transactions(self, timeout: float) -> None:
        _, self._epoch = self._call(lambda: self._broker.init(self._id), timeout, "InitProducerId")

    def begin_transaction(self) -> None:
        self._check()
        self._open, self._sent = True, False

    def produce(
        self, topic: str, *, partition: int, key: Any, value: Any = None, headers: Any = None
    ) -> None:
        self._check()
        place = topic, max(0, partition)
        self._queue.setdefault(place, []).append(Entry(key, value, tuple(headers or ())))

    def poll(self, timeout: float) -> int:
        return 0

    def flush(self, timeout: float) -> int:
        """Send what is queued, each partition's in one or two requests."""
        for place, entries in list(self._queue.items()):
            size = self._network.kernel.rng.choice((len(entries), 1 + len(entries) // 2))
            while entries:
                try:
                    self._produce(place, entries[:size], timeout)
                except KafkaException as error:
                    if not error.args[0].retriable():
                        raise
                    return len(entries)
                del entries[:size]
            del self._queue[place]
        return 0

    def _produce(self, place: Place, entries: Sequence[Entry], timeout: float) -> None:
        sent: list[None] = []

        def once() -> None:  # the sequence numbers of an idempotent producer
            if not sent:
                self._broker.produce(self._id, self._epoch, place, entries)
                sent.append(None)

        self._call(once, timeout, f"Produce to {place}")

    def send_offsets_to_transaction(
        self, positions: Sequence[TopicPartition], lease: Any, timeout: float
    ) -> None:
        self._check()
        group, generation, member = lease
        known = None if generation is None else (generation, member)
        offsets = {position.partition: position.offset for position in positions}
        id_, epoch = self._id, self._epoch
        self._call(
            lambda: self._broker.send_offsets(id_, epoch, group, known, offsets),
            timeout,
            f"TxnOffsetCommit {offsets}",
            late=True,
        )

    def commit_transaction(self, timeout: float) -> None:
        self._check()
        self.flush(timeout)
        self._end(timeout, True)

    def abort_transaction(self, timeout: float) -> None:
        self._queue.clear()
        self._end(timeout, False)

    def purge(self, *, blocking: bool) -> None: ...

    def _end(self, timeout: float, commit: bool) -> None:
        id_, epoch = self._id, self._epoch
        if not self._open:
            raise refusal(KafkaError._STATE)
        if self._sent:
            name = "EndTxn commit" if commit else "EndTxn abort"
            self._call(lambda: self._broker.end(id_, epoch, commit), timeout, name, late=True)
        self._open = False

    def _call(
        self, request: Callable[[], R], timeout: float, doing: str, *, late: bool = False
    ) -> R:
        try:
            self._sent = True
            return self._network.call(request, timeout, doing=f"{doing} of {self._id}", late=late)
        except KafkaException as error:
            if not error.args[0].retriable():
                self._error = error
            raise

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Raw:
    """A message or the end of a partition, as a consumer returns it."""

    __slots__ = ("_entry", "_error", "_offset", "_place")

    def __init__(self, place: Place, offset: int, entry: Entry | None) -> None:
        self._place, self._offset, self._entry = place, offset, entry

    def error(self) -> KafkaError | None:
        return EOF if self._entry is None else None

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return None if self._entry is None else self._entry.key

    def value(self) -> bytes | None:
        return None if self._entry is None else self._entry.value

    def headers(self) -> Any:
        return None if self._entry is None else list(self._entry.headers)

    def timestamp(self) -> tuple[int, int]:
        return 1, 0 if self._entry is None else self._entry.ts


EOF = KafkaError(KafkaError._PARTITION_EOF)


class Consumer:
    """A consumer, of a group or with partitions that are assigned by hand."""

    def __init__(self, network: Network, config: Mapping[str, Any]) -> None:
        self._network, self._broker, self._kernel = network, network.broker, network.kernel
        self._committed_only = config.get("isolation.level", "") != "read_uncommitted"
        self._group = str(config.get("group.id", ""))
        self._positions: dict[Place, int | None] = {}  # None: the committed offset
        self._ended: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._topic, self._member, self._generation = "", "", -1
        self._polled = (0.0, 0)  # when, and how often since without waiting
        self._callbacks: dict[str, Callable[..., None]] = {}

    def subscribe(self, topics: Sequence[str], **callbacks: Callable[..., None]) -> None:
        (self._topic,), self._callbacks = topics, callbacks

    def assign(self, positions: Sequence[TopicPartition]) -> None:
        self._positions = {(at.topic, at.partition): max(0, at.offset) for at in positions}

    def memberid(self) -> str:
        return self._member

    def consumer_group_metadata(self) -> tuple[str, int | None, str]:
        return self._group, self._generation if self._member else None, self._member

    def poll(self, timeout: float) -> Raw | None:
        """One message, or None after a while."""
        timeout_s = max(timeout, LEAST_S if timeout < 0.1 else IDLE_S)
        deadline = self._kernel.now + (timeout_s if timeout else 0.0)
        while True:
            if self._callbacks:
                self._rebalance()
            if raws := self.consume(1, timeout=0):
                return raws[0]
            left_s = deadline - self._kernel.now
            if left_s <= 0:
                self._give_way()
                return None
            self._broker.news((self._topic, self._group), self._kernel.waker())
            self._kernel.pause(left_s)

    def _give_way(self) -> None:
        """Let time pass for a loop that polls without waiting, as it does on a real machine."""
        now = self._kernel.now
        self._polled = (now, self._polled[1] + 1 if self._polled[0] == now else 1)
        if self._polled[1] >= SPINS:
            self._kernel.pause(LEAST_S)

    def consume(self, limit: int, *, timeout: float) -> list[Raw]:
        if not (self._broker.up and self._broker.leads):
            return []
        raws: list[Raw] = []
        for place in self._positions:
            if place not in self._paused and len(raws) < limit:
                raws += self._fetched(place, limit - len(raws))
        return raws

    def _fetched(self, place: Place, limit: int) -> Iterator[Raw]:
        log, at = self._broker.log(*place), self._at(place)
        if at is None:
            return
        end = log.stable if self._committed_only else log.end
        while at < end and limit:
            entry = log.entries[at]
            at += 1
            self._positions[place] = at
            if not entry.marker and (entry.shown or not self._committed_only):
                limit -= 1
                yield Raw(place, at - 1, entry)
        if limit and at >= end and self._ended.get(place) != at:
            self._ended[place] = at
            yield Raw(place, at, None)

    def _at(self, place: Place) -> int | None:
        """The position; None: the committed offset is not settled."""
        if self._positions[place] is None:
            group = self._broker.group(self._group)
            if place[1] in group.unsettled():
                return None
            self._positions[place] = group.committed.get(place[1], 0)
        return self._positions[place]

    def seek(self, at: TopicPartition) -> None:
        place = at.topic, at.partition
        if place not in self._positions:
            raise refusal(KafkaError._STATE)
        self._positions[place] = max(0, at.offset)
        self._ended.pop(place, None)

    def pause(self, parts: Sequence[TopicPartition]) -> None:
        self._paused.update((at.topic, at.partition) for at in parts)

    def resume(self, parts: Sequence[TopicPartition]) -> None:
        self._paused.difference_update((at.topic, at.partition) for at in parts)

    def position(self, parts: Sequence[TopicPartition]) -> list[TopicPartition]:
        at = [self._positions.get((part.topic, part.partition)) for part in parts]
        return [
            TopicPartition(part.topic, part.partition, -1001 if where is None else where)
            for part, where in zip(parts, at, strict=True)
        ]

    def get_watermark_offsets(self, at: TopicPartition, *, cached: bool) -> tuple[int, int]:
        return 0, self._broker.log(at.topic, at.partition).stable

    def committed(self, parts: Sequence[TopicPartition], *, timeout: float) -> list[TopicPartition]:
        """The committed offsets, once they are settled."""
        group = self._broker.group(self._group)

        def request() -> list[TopicPartition]:
            self._broker.check()
            if group.unsettled().intersection(part.partition for part in parts):
                raise refusal(KafkaError.UNSTABLE_OFFSET_COMMIT, passes=True)
            return [
                TopicPartition(
                    part.topic, part.partition, group.committed.get(part.partition, -1001)
                )
                for part in parts
            ]

        return self._network.call(request, timeout, doing=f"OffsetFetch of {self._group}")

    def close(self) -> None:
        if self._member:
            self._gone("on_revoke")
            self._broker.leave(self._group, self._member)
            self._member = ""

    def _rebalance(self) -> None:
        """Take part in the group: the callbacks run in here."""
        if not self._broker.up:
            return
        group = self._broker.group(self._group)
        known = group.members.get(self._member)
        if known is None:
            if self._member:
                self._gone("on_lost")
            if self._broker.up:  # the callback may have taken long
                process = self._kernel.process
                self._member = f"{process.name}-{self._kernel.rng.randrange(10**6)}"
                process.members.append((self._group, self._member))
                self._broker.join(self._group, self._member)
        elif not group.stable and not known.joined:
            if self._generation >= 0:
                self._gone("on_revoke")
            if self._broker.up and self._member in group.members:  # not given up meanwhile
                self._broker.join(self._group, self._member)
        if group.stable and self._member in group.members and self._generation != group.generation:
            self._generation = group.generation
            numbers = group.members[self._member].partitions
            self._positions = {(self._topic, number): None for number in numbers}
            self._ended.clear()
            parts = [TopicPartition(self._topic, number) for number in numbers]
            self._kernel.note(f"{self._member}: assigned {numbers} by {group.generation}")
            self._callbacks["on_assign"](self, parts)

    def _gone(self, name: str) -> None:
        self._kernel.note(f"{self._member}: {name} {[place[1] for place in self._positions]}")
        parts = [TopicPartition(*place) for place in self._positions]
        self._callbacks[name](self, parts)
        self._positions.clear()
        self._generation = -1


class Admin:
    """braid.stream.kafka.admin.Admin, as far as `hanging` needs it."""

    def __init__(self, network: Network) -> None:
        self._network, self._broker = network, network.broker

    def open_ends(self, topics: Sequence[str]) -> dict[Place, tuple[int, int]]:
        def request() -> dict[Place, tuple[int, int]]:
            self._broker.check(leader=True)
            return {
                place: (log.stable, log.end)
                for place, log in self._broker.logs.items()
                if place[0] in topics and log.stable < log.end
            }

        return self._call(request)

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        def request() -> dict[int, tuple[int, int]]:
            self._broker.check(leader=True)
            return {
                number: (0, self._broker.log(topic, number).stable)
                for number in range(self._broker.partitions)
            }

        return self._call(request)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        def request() -> dict[int, int]:
            self._broker.check()
            return dict(self._broker.group(group).committed)

        return self._call(request)

    def unsettled(self, group: str, topic: str, within_s: float) -> set[int]:
        def request() -> set[int]:
            self._broker.check()
            return self._broker.group(group).unsettled()

        kernel, waiting = self._network.kernel, set(range(self._broker.partitions))
        deadline = kernel.now + within_s
        with contextlib.suppress(Unreachable):  # no answer, as if nothing were settled
            while (waiting := waiting & self._call(request)) and kernel.now < deadline:
                kernel.pause(0.1)
        return waiting

    def _call(self, request: Callable[[], R]) -> R:
        try:
            return self._network.call(request, 5.0, doing="Admin")
        except KafkaException as error:
            raise mapped(error, "asking") from error


def kind_of(network: Network, kind: type, own: Mapping[str, Any]) -> Producer | Consumer:
    """What `braid.stream.kafka.client.create` makes."""
    return Producer(network, own) if kind.__name__ == "Producer" else Consumer(network, own)


def lone_consumer(network: Network, _: Settings, **config: object) -> Consumer:
    """As `braid.stream.kafka.client.lone_consumer`."""
    own = {name.replace("_", "."): value for name, value in config.items()}
    return Consumer(network, {"isolation.level": "read_committed"} | own)
