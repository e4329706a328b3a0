"""Kafka clients: configuration, messages, replay, and the mapping of their errors.

The clients' errors become those of `braid.stream.errors` in `mapped`, and nowhere else. The hot
path's consumer is in `braid.stream.kafka.transactions`, its producer in `braid.stream.kafka.sink`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from ..errors import BrokerError, ConfigError, Fenced, Unreachable
from ..settings import Settings
from .schemas import MAX_DEAD_LETTER_BYTES, MIB

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = MAX_DEAD_LETTER_BYTES + MIB
# librdkafka's own default differs from Java's and aiokafka's: all of ours agree on murmur2.
PARTITIONER = "murmur2_random"


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
            "of this id was open for longer than BRAID_KAFKA__TRANSACTION_TIMEOUT_S and was aborted"
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


# Of a consumer's request, such as the Java client's request.timeout.ms. The default, 60 s, is how
# long a connection that no longer answers would hold its partitions.
REQUEST_TIMEOUT_MS = 30_000


def client_config(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka.bootstrap,
        "client.id": "braid",
        "log_level": 3,
        "logger": logging.getLogger("librdkafka"),
    }


def topic_partitions(topic: str, numbers: Iterable[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in numbers]


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
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
        }
        | own
    )


def replay(
    settings: Settings,
    topic: str,
    *,
    stop_at: Mapping[int, int],
    start_at: Mapping[int, int] | None = None,
    timeout_s: float | None = None,
) -> Iterator[Message]:
    """A topic from its beginning up to the given end offsets, read committed, without a group.

    Args:
        start_at: from these offsets on instead, where there are any.
        timeout_s: None: `kafka.broker_timeout_s`.

    Raises Unreachable when nothing arrives for so long though more is expected.
    """
    timeout_s = settings.kafka.broker_timeout_s if timeout_s is None else timeout_s
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
                if time.monotonic() - last > timeout_s:
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
