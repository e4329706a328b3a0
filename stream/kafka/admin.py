"""The admin client: topics, consumer groups and offsets, for the commands and for the start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from ..errors import Unreachable
from .client import DENIED, PASSING, UNKNOWN, UNREACHABLE, create, mapped, topic_partitions
from .connection import FIRST_LOOK_S, RETRY_S, Connection

MOST_AT_ONCE = 128  # requests for the offsets of single partitions, each of which may wait


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A topic's name, partition count and configuration."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class Admin(Connection):
    """Topics, consumer groups and offsets.

    Args:
        timeout_s: bounds each call; None: `kafka.broker_timeout_s`.
    """

    def partition_counts(self) -> dict[str, int]:
        """Every topic's partition count. Raises Unreachable."""
        metadata = self._call("listing topics", self._metadata)
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
        made = self._client.create_topics(
            new, operation_timeout=self._timeout, request_timeout=self._timeout
        )
        _await_all(made, "making topic", KafkaError.TOPIC_ALREADY_EXISTS)
        self._wait_for_leaders({topic.name for topic in topics})

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics; missing ones are ignored."""
        deleted = self._client.delete_topics(list(names))
        _await_all(deleted, "deleting topic", KafkaError.UNKNOWN_TOPIC_OR_PART)

    def delete_group(self, group: str) -> None:
        """Delete a consumer group; a missing one is ignored.

        Raises:
            BrokerError: it still has members.
        """
        deleted = self._client.delete_consumer_groups([group])
        _await_all(deleted, "deleting group", KafkaError.GROUP_ID_NOT_FOUND)

    def set_group_timeouts(self, group: str, session_timeout_s: float) -> None:
        """Set the session timeout of a group of the protocol of KIP-848, and a fifth of it between
        heartbeats.

        Raises:
            BrokerError: the broker's own bounds do not allow it.
            AccessError: AlterConfigs on the group is missing.
        """
        session_ms = int(1000 * session_timeout_s)
        entries = [
            ConfigEntry(
                f"consumer.{name}.ms",
                str(value),
                incremental_operation=AlterConfigOpType.SET,
            )
            for name, value in (
                ("session.timeout", session_ms),
                ("heartbeat.interval", max(100, session_ms // 5)),
            )
        ]
        resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
        done = self._client.incremental_alter_configs([resource], request_timeout=self._timeout)
        _await_all({str(name): future for name, future in done.items()}, "setting timeouts of")

    def committed(self, group: str, topic: str, partitions: int | None = None) -> dict[int, int]:
        """The group's committed offsets, without those of open transactions; partitions without
        one are left out.

        Args:
            partitions: the topic's count; None: it is asked for.
        """
        count = self._count(topic, partitions)
        if count == 0:
            return {}
        with self._member(group, "read_uncommitted") as member:
            parts = topic_partitions(topic, range(count))
            positions = self._positions(member, group, parts, self._timeout)
        return {part.partition: part.offset for part in positions if part.offset >= 0}

    def unsettled(self, group: str, topic: str, within_s: float) -> set[int]:
        """The partitions with offsets that were sent in a transaction and get no end marker within
        so long.

        A group whose coordinator does not answer looks the same: ask for `committed` as well.
        """
        parts = topic_partitions(topic, range(self._count(topic)))
        if not parts:
            return set()
        with self._member(group, "read_committed") as member:

            def settles(asked: list[TopicPartition], within_s: float = within_s) -> bool:
                try:
                    self._positions(member, group, asked, within_s)
                except Unreachable:
                    return False
                return True

            if settles(parts, FIRST_LOOK_S):
                return set()
            with ThreadPoolExecutor(min(len(parts), MOST_AT_ONCE)) as pool:
                settled = pool.map(settles, [[part] for part in parts])
                return {part.partition for part, is_ in zip(parts, settled, strict=True) if not is_}

    def _count(self, topic: str, given: int | None = None) -> int:
        return self.partition_counts().get(topic, 0) if given is None else given

    @contextmanager
    def _member(self, group: str, isolation: str) -> Iterator[Consumer]:
        """A consumer that names the group and never joins it, to ask for its offsets.

        The admin client's ListConsumerGroupOffsets ends the process by a null pointer where a
        broker answers that it is not the coordinator, as one that starts does (librdkafka#5040).
        """
        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "error_cb": self._note,
            "log_level": 2,
        }
        member = create(Consumer, self._settings, own)
        try:
            yield member
        finally:
            member.close()

    def _positions(
        self, member: Consumer, group: str, parts: list[TopicPartition], within_s: float
    ) -> list[TopicPartition]:
        """The group's offsets. Raises Unreachable without an answer within `within_s`."""
        deadline, look_s = time.monotonic() + within_s, FIRST_LOOK_S

        def answer() -> list[TopicPartition]:
            nonlocal look_s
            left_s = max(0.01, deadline - time.monotonic())
            try:
                positions: list[TopicPartition] = member.committed(
                    parts, timeout=min(look_s, left_s)
                )
            except KafkaException as error:
                look_s *= 2
                told = member.poll(0)  # what it is refused, and goes on asking for
                if told is not None and (refusal := told.error()) is not None:
                    raise KafkaException(refusal) from error
                raise
            for position in positions:
                if position.error is not None:
                    raise KafkaException(position.error)
            return positions

        return self._call(
            f"committed offsets of {group}",
            answer,
            PASSING | UNREACHABLE,
            needs=f"Describe on group {group}",
            within_s=within_s,
        )

    def ends(self, topic: str, partitions: int | None = None) -> dict[int, tuple[int, int]]:
        """(first offset, end offset) of each partition; None: of all that the topic has, if any."""
        count = self._count(topic, partitions)
        doing = f"end offsets of {topic}"
        first, stable = (
            self._offsets(doing, {(topic, number): spec for number in range(count)})
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        return {number: (first[topic, number], stable[topic, number]) for number in range(count)}

    def lag(self, group: str, topic: str) -> dict[int, int]:
        """The offsets of each partition that a group has not committed."""
        ends = self.ends(topic)
        committed = self.committed(group, topic, len(ends))
        return {
            number: max(0, end - max(first, committed.get(number, first)))
            for number, (first, end) in ends.items()
        }

    def open_ends(self, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, int]]:
        """(last stable offset, end offset) of the partitions with open transactions.

        Topics that do not exist are left out.
        """
        counts = self.partition_counts()
        latest = {
            (topic, number): OffsetSpec.latest()
            for topic in topics
            for number in range(counts.get(topic, 0))
        }
        stable = self._offsets("end offsets", latest)
        ends = self._offsets("end offsets", latest, IsolationLevel.READ_UNCOMMITTED)
        return {place: (stable[place], end) for place, end in ends.items() if stable[place] < end}

    def offsets_at(self, topic: str, partitions: int, ts_ms: int) -> dict[int, int]:
        """Each partition's first offset at or after a time; partitions without one are left out."""
        at = {(topic, number): OffsetSpec.for_timestamp(ts_ms) for number in range(partitions)}
        offsets = self._offsets(f"offsets of {topic} by time", at)
        return {number: offset for (_, number), offset in offsets.items() if offset >= 0}

    def _offsets(
        self,
        doing: str,
        asked: Mapping[tuple[str, int], OffsetSpec],
        level: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> dict[tuple[str, int], int]:
        """(topic, partition) to its offset."""
        if not asked:
            return {}
        specs = {TopicPartition(*place): spec for place, spec in asked.items()}

        def answer() -> dict[tuple[str, int], int]:
            futures = self._client.list_offsets(
                specs, isolation_level=level, request_timeout=self._timeout
            )
            try:
                return {
                    (at.topic, at.partition): future.result().offset
                    for at, future in futures.items()
                }
            except KafkaException as error:
                if error.args[0].code() in UNKNOWN:
                    self._metadata()  # or the client answers by what it was told before
                raise

        return self._call(doing, answer, PASSING | UNKNOWN)

    def truncate(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete the messages before an offset of each partition.

        Raises:
            BrokerError: an offset lies beyond the end, or the broker does not answer.
        """
        positions = [TopicPartition(topic, number, offset) for number, offset in before.items()]
        futures = self._client.delete_records(positions, request_timeout=self._timeout)
        _await_all({f"{topic}[{at.partition}]": one for at, one in futures.items()}, "truncating")

    def identity(self, topic: str) -> tuple[str, float]:
        """The topic's id and its delete.retention.ms. Raises Unreachable."""
        names = TopicCollection([topic])
        described = self._call(
            f"describing {topic}",
            lambda: self._client.describe_topics(names)[topic].result(self._timeout),
        )
        return str(described.topic_id), float(self.configs([topic])[topic]["delete.retention.ms"])

    def configs(self, topics: Sequence[str]) -> dict[str, dict[str, str]]:
        """The configuration of each topic.

        Raises:
            AccessError: DescribeConfigs on one is not allowed.
            Unreachable: no broker answered.
        """
        resources = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in topics}

        def answer() -> dict[str, dict[str, str]]:
            asked = self._client.describe_configs(list(resources.values()))
            return {
                name: {
                    key: str(entry.value)
                    for key, entry in asked[resource].result(self._timeout).items()
                }
                for name, resource in resources.items()
            }

        return self._call("configuration of topics", answer) if topics else {}

    def allowed_on_topics(self, names: Sequence[str]) -> dict[str, set[str] | None]:
        """The operations that this client may do on each existing topic, as READ, WRITE.

        Empty for one that it may not even describe; None: the broker does not tell.
        """

        def answer() -> dict[str, set[str] | None]:
            asked = self._client.describe_topics(
                TopicCollection(list(names)),
                include_authorized_operations=True,
                request_timeout=self._timeout,
            )
            return dict(_operations(asked))

        return self._call("describing topics", answer) if names else {}

    def allowed_on_groups(self, names: Sequence[str]) -> dict[str, set[str] | None]:
        """As `allowed_on_topics`, for consumer groups, whether they exist or not."""

        def answer() -> dict[str, set[str] | None]:
            asked = self._client.describe_consumer_groups(
                list(names), include_authorized_operations=True, request_timeout=self._timeout
            )
            return dict(_operations(asked))

        return self._call("describing groups", answer) if names else {}

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


def _operations(asked: Mapping[str, Future[Any]]) -> Iterator[tuple[str, set[str] | None]]:
    for name, future in asked.items():
        try:
            operations = future.result().authorized_operations
        except KafkaException as error:
            if error.args[0].code() in DENIED:
                yield name, set()
            elif error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
        else:
            yield name, {operation.name for operation in operations} if operations else None


def _await_all(futures: Mapping[str, Future[Any]], doing: str, ignored: int | None = None) -> None:
    """Wait for all of them. Raises BrokerError for any error but that of the code `ignored`."""
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != ignored:
                raise mapped(error, f"{doing} {name}") from error
