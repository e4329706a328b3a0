"""The admin client: topics, consumer groups and offsets, for the commands and for the start."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from confluent_kafka import (
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

from ..errors import Unreachable
from ..settings import Settings
from .client import PASSING, client_config, mapped, topic_partitions

R = TypeVar("R")

RETRY_S = 0.1
CONNECT_S = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A topic's name, partition count and configuration."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


def check_listens(bootstrap: str) -> None:
    """Raises Unreachable if no server of a bootstrap list accepts a connection."""
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
    """Topics, consumer groups and offsets.

    Args:
        timeout_s: bounds each call; None: `kafka.broker_timeout_s`.
    """

    def __init__(self, settings: Settings, *, timeout_s: float | None = None) -> None:
        self._timeout = settings.kafka.broker_timeout_s if timeout_s is None else timeout_s
        self._bootstrap = settings.kafka.bootstrap
        self._client = AdminClient(client_config(settings))
        self._connected = False

    def partition_counts(self) -> dict[str, int]:
        """Every topic's partition count. Raises Unreachable."""
        metadata = self._call(
            "listing topics", lambda: self._client.list_topics(timeout=self._timeout)
        )
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def create(self, topics: Sequence[Topic]) -> None:
        """Create the topics; existing ones are left alone."""
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
        """Delete topics; missing ones are ignored."""
        for name, future in self._client.delete_topics(list(names)).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise mapped(error, f"deleting topic {name}") from error

    def delete_group(self, group: str) -> None:
        """Delete a consumer group; a missing one is ignored.

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
        """Each partition's first offset at or after a time; partitions without one are left out."""
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
        """Delete the messages before an offset of each partition.

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
        """Does nothing: the client needs no close."""

    def _wait_for_leaders(self, names: set[str]) -> None:
        """Wait until every partition of a new topic has a leader."""
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
        """The call's result; transient errors are retried until the timeout."""
        if not self._connected:  # the client retries a closed port for as long
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
