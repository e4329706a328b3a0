"""Kafka clients: configuration, messages, admin calls, replay, and the mapping of their errors.

The clients' errors become those of `braid.stream.errors` in `mapped`, and nowhere else. `Admin` and
`replay` serve the commands; the hot path's half, the consumer of the group and the transactional
producer, is in `braid.stream.kafka.transactions`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from ..errors import BrokerError, ConfigError, Fenced, Unreachable
from ..settings import Settings
from .schemas import MAX_DEAD_LETTER_BYTES, MIB

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = MAX_DEAD_LETTER_BYTES + MIB
# librdkafka's own default differs from Java's and aiokafka's: all of ours agree on murmur2.
PARTITIONER = "murmur2_random"
RETRY_S = 0.1
CONNECT_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """What a topic must look like."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message as it came from Kafka; `ts` is the broker's timestamp in ms."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    ts: int = 0
    headers: Sequence[tuple[str, bytes | None]] = ()

    @property
    def nbytes(self) -> int:
        return len(self.key or b"") + len(self.value or b"")


BY_KEY = -1  # for librdkafka: the partition that its partitioner finds for the key


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One message to publish, to an explicit partition or `BY_KEY`."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


def mapped(error: KafkaException | KafkaError, doing: str) -> BrokerError | ConfigError:
    """The braid error for a client's error."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    name, text = cause.name(), cause.str()
    if cause.code() in FENCED:
        return Fenced(
            f"{doing}: the broker refused this worker's producer epoch ({name}): another process "
            "opened the same transactional id (give each worker its own --slot), or a transaction "
            "of this id was open for longer than BRAID_TRANSACTION_TIMEOUT_S and was aborted"
        )
    if cause.code() in UNREACHABLE | PASSING:
        return Unreachable(f"{doing}: no answer from the broker ({name}: {text})")
    if cause.code() in (KafkaError._INVALID_ARG, KafkaError.INVALID_CONFIG):
        return ConfigError(f"{doing}: {text}")
    return BrokerError(f"{doing}: {name}: {text}")


FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.FENCED_INSTANCE_ID,
}
UNREACHABLE = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._RESOLVE,
    KafkaError._MSG_TIMED_OUT,
}

PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
}
PERMANENT = {  # a new producer would fare no better
    KafkaError._INVALID_ARG,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}


def client_config(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "braid",
        "log_level": 3,
        "logger": logging.getLogger("librdkafka"),
    }


def topic_partitions(topic: str, numbers: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in numbers]


R = TypeVar("R")


def to_message(raw: Any) -> Message:
    """A client's message as ours."""
    return Message(
        topic=raw.topic(),
        partition=raw.partition(),
        offset=raw.offset(),
        key=raw.key(),
        value=raw.value(),
        ts=max(0, raw.timestamp()[1]),
        headers=raw.headers() or (),
    )


def check_listens(bootstrap: str) -> None:
    """Raises Unreachable where no server of a bootstrap list accepts a connection."""
    reason = "no address"
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
                return
        except (OSError, ValueError) as error:
            reason = f"{address.strip()}: {error}"
    raise Unreachable(f"no broker at {bootstrap} (KAFKA_BOOTSTRAP): {reason}")


class Admin:
    """Topics and groups."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.broker_timeout_s
        self._bootstrap = settings.kafka_bootstrap
        self._client = AdminClient(client_config(settings))
        self._connected = False

    def partition_counts(self) -> dict[str, int]:
        """Every topic's partition count. Raises Unreachable."""
        metadata = self._call(
            "listing topics", lambda: self._client.list_topics(timeout=self._timeout)
        )
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def create(self, topics: Sequence[Topic]) -> None:
        """Make the topics; one that exists by now is fine."""
        if not topics:
            return
        new = [
            NewTopic(
                topic.name,
                num_partitions=topic.partitions,
                replication_factor=topic.replication,
                config=topic.config,
            )
            for topic in topics
        ]
        for name, future in self._client.create_topics(
            new, operation_timeout=self._timeout, request_timeout=self._timeout
        ).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise mapped(error, f"making topic {name}") from error
        self._wait_for_leaders({topic.name for topic in topics})

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics; missing ones are fine."""
        for name, future in self._client.delete_topics(list(names)).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise mapped(error, f"deleting topic {name}") from error

    def delete_group(self, group: str) -> None:
        """Delete a consumer group; a missing one is fine.

        Raises:
            BrokerError: it still has members.
        """
        for name, future in self._client.delete_consumer_groups([group]).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise mapped(error, f"deleting group {name}") from error

    def committed(self, group: str, topic: str, partitions: int) -> dict[int, int]:
        """The group's committed offsets; partitions without one are left out."""
        consumer = Consumer(
            {"bootstrap.servers": self._bootstrap, "group.id": group, "log_level": 3}
        )
        try:
            positions = self._call(
                "committed offsets",
                lambda: consumer.committed(
                    topic_partitions(topic, range(partitions)), timeout=self._timeout
                ),
            )
            return {part.partition: part.offset for part in positions if part.offset >= 0}
        finally:
            consumer.close()

    def ends(self, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        """(first offset, end offset) of each partition."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "_", "log_level": 3})
        try:
            return self._call(
                "end offsets",
                lambda: {
                    number: consumer.get_watermark_offsets(
                        TopicPartition(topic, number), timeout=self._timeout
                    )
                    for number in range(partitions)
                },
            )
        finally:
            consumer.close()

    def open_ends(self, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, int]]:
        """(last stable offset, end offset) of the partitions with open transactions.

        Topics that do not exist are left out.
        """
        counts = self.partition_counts()
        latest = {
            TopicPartition(topic, number): OffsetSpec.latest()
            for topic in topics
            for number in range(counts.get(topic, 0))
        }
        stable, ends = (
            self._call("end offsets", lambda level=level: self._latest(latest, level))  # type: ignore[misc]
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
        )
        return {place: (stable[place], end) for place, end in ends.items() if stable[place] < end}

    def _latest(
        self, latest: Mapping[TopicPartition, OffsetSpec], level: IsolationLevel
    ) -> dict[tuple[str, int], int]:
        if not latest:
            return {}
        futures = self._client.list_offsets(
            dict(latest), isolation_level=level, request_timeout=self._timeout
        )
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}

    def offsets_at(self, topic: str, partitions: int, ts_ms: int) -> dict[int, int]:
        """Each partition's first offset from a time on; left out where there is none yet."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "_", "log_level": 3})
        times = [TopicPartition(topic, number, ts_ms) for number in range(partitions)]
        try:
            positions = self._call(
                f"offsets of {topic} by time",
                lambda: consumer.offsets_for_times(times, timeout=self._timeout),
            )
        finally:
            consumer.close()
        return {part.partition: part.offset for part in positions if part.offset >= 0}

    def truncate(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete what lies before an offset of each partition.

        Raises:
            BrokerError: an offset lies beyond the end, or the broker does not answer.
        """
        positions = [TopicPartition(topic, number, offset) for number, offset in before.items()]
        futures = self._client.delete_records(positions, request_timeout=self._timeout)
        for partition, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                raise mapped(error, f"truncating {topic}[{partition.partition}]") from error

    def identity(self, topic: str) -> tuple[str, float]:
        """The topic's id and its delete.retention.ms. Raises Unreachable."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        names = TopicCollection([topic])
        described = self._call(
            f"describing {topic}",
            lambda: self._client.describe_topics(names)[topic].result(self._timeout),
        )
        config = self._call(
            f"configuration of {topic}",
            lambda: self._client.describe_configs([resource])[resource].result(self._timeout),
        )
        return str(described.topic_id), float(config["delete.retention.ms"].value)

    def close(self) -> None:
        """Nothing is held open; here for symmetry."""

    def _wait_for_leaders(self, names: set[str]) -> None:
        """A topic just made is not known everywhere at once."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            metadata = self._call(
                "listing topics", lambda: self._client.list_topics(timeout=self._timeout)
            )
            led = {
                name
                for name, topic in metadata.topics.items()
                if all(partition.leader >= 0 for partition in topic.partitions.values())
            }
            if names <= led:
                return
            time.sleep(RETRY_S)
        raise Unreachable(f"topics without a leader after {self._timeout:g} s: {names - led}")

    def _call(self, doing: str, call: Callable[[], R]) -> R:
        """The call's result; what passes by itself is tried again for broker_timeout_s."""
        if not self._connected:  # the client tries a port where nothing listens for as long
            check_listens(self._bootstrap)
            self._connected = True
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return call()
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                    raise mapped(error, f"{doing} at {self._bootstrap}") from error
            time.sleep(RETRY_S)


def lone_consumer(settings: Settings, **config: object) -> Consumer:
    """A consumer without a group, read committed, that tells of a partition's end; to be assigned.

    Args:
        config: differs from or adds to it, with "_" for ".".
    """
    own = {name.replace("_", "."): value for name, value in config.items()}
    return Consumer(
        client_config(settings)
        | {
            "group.id": "_",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
        }
        | own
    )


def replay(
    settings: Settings,
    topic: str,
    *,
    stop_at: Mapping[int, int],
    start_at: Mapping[int, int] | None = None,
) -> Iterator[Message]:
    """A topic from its beginning up to the given end offsets, read committed, without a group.

    Args:
        start_at: from these offsets on instead, where there are any.

    Raises Unreachable when nothing arrives for broker_timeout_s though more is expected.
    """
    starts = start_at or {}
    left = {number: end for number, end in stop_at.items() if end > starts.get(number, 0)}
    consumer = lone_consumer(settings)
    consumer.assign(
        [TopicPartition(topic, number, starts.get(number, OFFSET_BEGINNING)) for number in left]
    )
    try:
        last = time.monotonic()
        while left:
            raw = consumer.poll(0.5)
            if raw is None:
                if time.monotonic() - last > settings.broker_timeout_s:
                    raise Unreachable(f"replaying {topic}: nothing arrived, still missing {left}")
                continue
            last = time.monotonic()
            partition, offset = raw.partition() or 0, raw.offset() or 0
            if (error := raw.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    left.pop(partition, None)
                    continue
                raise mapped(error, f"replaying {topic}")
            if partition not in left:
                continue
            if offset < left[partition]:
                yield to_message(raw)
            if offset + 1 >= left[partition]:
                del left[partition]
    finally:
        consumer.close()
