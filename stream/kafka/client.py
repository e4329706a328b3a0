"""Kafka clients: configuration, messages, replay, and the mapping of their errors.

The clients' errors become those of `braid.stream.errors` in `mapped`, and nowhere else. The hot
path's consumer is in `braid.stream.kafka.transactions`, its producer in `braid.stream.kafka.sink`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from ..errors import AccessError, BrokerError, ConfigError, Fenced, Unreachable
from ..settings import Settings
from .schemas import MAX_DEAD_LETTER_BYTES, MIB
from .security import librdkafka

C = TypeVar("C")

MAX_MESSAGE_BYTES = MAX_DEAD_LETTER_BYTES + MIB
HOW = "(KAFKA_BOOTSTRAP, or bootstrap below [kafka])"  # where its address comes from
# librdkafka's own default differs from Java's and aiokafka's: all of ours agree on murmur2.
PARTITIONER = "murmur2_random"


class Message(NamedTuple):
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


class Output(NamedTuple):
    """One message to publish, to an explicit partition or `BY_KEY`."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


def mapped_aiokafka(error: Exception, doing: str, *, needs: str = "") -> BrokerError | ConfigError:
    """The braid error for one of aiokafka's: Unreachable, unless an ACL is missing."""
    code = getattr(error, "errno", None)
    if code in DENIED:
        return mapped(KafkaError(code), doing, needs=needs)
    kind = type(error).__name__
    return Unreachable(f"{doing}: {kind}", reason=kind)


def mapped(
    error: KafkaException | KafkaError, doing: str, *, needs: str = ""
) -> BrokerError | ConfigError:
    """The braid error for a client's error.

    Args:
        needs: the operation and the resource to name where an ACL is missing.
    """
    cause = error.args[0] if isinstance(error, KafkaException) else error
    name, text = cause.name(), cause.str()
    if cause.code() in FENCED:
        return Fenced(
            f"{doing}: the broker refused this worker's producer epoch ({name}): another process "
            "opened the same transactional id (give each worker its own --slot), or a transaction "
            "of this id was open for longer than BRAID_KAFKA__TRANSACTION_TIMEOUT_S and was aborted"
        )
    if cause.code() in REFUSED:
        return AccessError(f"{doing}: {_refusal(cause, needs)}", reason=text)
    if cause.code() in UNREACHABLE | PASSING:
        return Unreachable(f"{doing}: no answer from the broker {HOW}: {text}", reason=text)
    if cause.code() in (KafkaError._INVALID_ARG, KafkaError.INVALID_CONFIG):
        return ConfigError(f"{doing}: {text}")
    return BrokerError(f"{doing}: {name}: {text}")


def _refusal(error: KafkaError, needs: str) -> str:
    """Why a broker refuses this client, or the client the broker."""
    text = error.str().strip(". ")
    if error.code() == KafkaError._SSL:
        return f"TLS fails: {text} (kafka.ssl_*)"
    if kind := DENIED.get(error.code()):
        return f"not authorised, {needs or f'an ACL of the {kind}'} is missing: {text}"
    return f"not authenticated: {text} (kafka.security_protocol, kafka.sasl_*)"


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

# Of a broker that starts, ends or moves a partition: those that Kafka's protocol calls retriable.
PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.STALE_MEMBER_EPOCH,
}
# Also of a topic that does not exist, so they pass only for one that is known to.
UNKNOWN = {
    KafkaError._NOENT,  # offsets of partitions none of which has a leader
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
DENIED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
REFUSED = {
    *DENIED,
    KafkaError._SSL,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
PERMANENT = {  # a new producer would fare no better
    *REFUSED,
    KafkaError._INVALID_ARG,
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_TRANSACTION_TIMEOUT,
}


# Of a consumer's request, such as the Java client's request.timeout.ms. The default, 60 s, is how
# long a connection that no longer answers would hold its partitions.
REQUEST_TIMEOUT_MS = 30_000


def create(
    kind: Callable[[dict[str, Any]], C], settings: Settings, own: Mapping[str, Any] | None = None
) -> C:
    """A client of librdkafka: a Consumer, a Producer or an AdminClient.

    Args:
        own: its properties; `kafka.properties` go before them. None: without a property.

    Raises:
        ConfigError: a property or a file does not fit.
    """
    values = librdkafka(settings) | dict(own or {})
    values |= {name: text.get_secret_value() for name, text in settings.kafka.properties.items()}
    try:
        return kind({name: value for name, value in values.items() if value is not None})
    except KafkaException as error:
        raise mapped(error, "kafka") from None


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
    own = {
        "group.id": settings.reading_group,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
        "socket.timeout.ms": REQUEST_TIMEOUT_MS,
    }
    config = {name.replace("_", "."): value for name, value in config.items()}
    return create(Consumer, settings, own | config)


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
