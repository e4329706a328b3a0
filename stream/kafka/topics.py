"""The topics: names, configuration and partition counts; created once, checked at every start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..errors import ConfigError
from ..settings import Settings
from .acls import CONFIGS, Role, grants
from .admin import Admin, Topic
from .schemas import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES

STATISTICS_MS = 86_400_000  # tallies are read within seconds into Faust's windows
SEEN_SEGMENT_BYTES = 64 * 1024 * 1024  # Kafka compacts closed segments only
SEEN_SEGMENT_MS = 600_000
WINDOWS_SEGMENT_BYTES = 16 * 1024 * 1024
"""Kafka compacts closed segments only: with its default of a gigabyte a restarted worker would read
days of windows again."""
SLACK = 64 * 1024  # batch headers, keys and message headers around the largest value


def plan(settings: Settings, generation: str, role: Role | None = None) -> list[Topic]:
    """Every topic of braid, or those that a role touches. `models` has one partition, as its
    order matters.

    Faust's tables have theirs here, so that they are made, and may be made beforehand, like others.
    """
    compact, delete = {"cleanup.policy": "compact"}, {"cleanup.policy": "delete"}
    # Stored uncompressed, so that the limit holds for unpacked messages: the broker checks a
    # batch as it is stored, and 4 kB of zstd become the 150 MB at which librdkafka stops reading.
    records = {
        "max.message.bytes": str(MAX_RECORD_BYTES + SLACK),
        "compression.type": "uncompressed",
    }
    dead = {"max.message.bytes": str(MAX_DEAD_LETTER_BYTES + SLACK)}
    seen = {  # short, since a rebalance of the join reads it from its beginning
        "segment.bytes": str(SEEN_SEGMENT_BYTES),
        "segment.ms": str(SEEN_SEGMENT_MS),
        "min.cleanable.dirty.ratio": "0.1",
        "delete.retention.ms": str(SEEN_SEGMENT_MS),
    }

    windows = {
        "segment.bytes": str(WINDOWS_SEGMENT_BYTES),
        "segment.ms": str(1000 * max(60, settings.drift.window_s)),
    }

    def topic(name: str, config: dict[str, str], partitions: int | None = None) -> Topic:
        return Topic(
            name=name if name.endswith("-changelog") else settings.topic(name),
            partitions=partitions or settings.kafka.partitions,
            replication=settings.kafka.replication,
            config=config,
        )

    topics = [
        topic("records", compact | records),
        topic("parts", delete | records),
        topic("parts-seen", compact | dead | seen),
        topic(f"vectors.{generation}", compact),
        topic("predictions", delete),
        topic("dead-letters", delete | dead),
        topic("dead-letters-replayed", compact, partitions=1),
        topic("statistics", delete | {"retention.ms": str(STATISTICS_MS)}),
        topic("models", compact, partitions=1),
        topic(settings.changelog("drift-windows"), compact | windows),
        topic(settings.changelog("drift-versions"), compact),
    ]
    touched = [] if role is None else grants(settings, role)
    return [
        topic
        for topic in topics
        if role is None or any(g.resource == "topic" and g.covers(topic.name) for g in touched)
    ]


def ensure(
    settings: Settings,
    generation: str,
    *,
    role: Role | None = None,
    timeout_s: float | None = None,
) -> int:
    """Create missing topics; returns the partition count that all of them share.

    Args:
        generation: whose vectors topic.
        role: only those that it touches; None: all.
        timeout_s: bounds each call of the broker; None: `kafka.broker_timeout_s`.

    Existing topics keep their partition count, whatever the settings are: it is fixed when
    `records` is created. More partitions need new topics and a rebuild.

    Raises:
        ConfigError: existing topics differ in their partition counts.
        Unreachable: no broker answered.
    """
    admin = Admin(settings, timeout_s=timeout_s)
    counts = admin.partition_counts()
    records = settings.topic("records")
    partitions = counts.get(records, settings.kafka.partitions)
    topics = plan(settings, generation, role)
    missing = [
        replace(topic, partitions=1 if topic.partitions == 1 else partitions)
        for topic in topics
        if topic.name not in counts
    ]
    admin.create(missing)
    if missing:
        counts = admin.partition_counts()
    check(settings, counts, [topic.name for topic in topics])
    return counts.get(records, partitions)


def check(settings: Settings, counts: Mapping[str, int], topics: Sequence[str]) -> None:
    """Raises ConfigError if the partition count of one of the topics differs from records'."""
    expected = counts.get(settings.topic("records"))
    equal = [
        settings.topic(name) for name in ("predictions", "dead-letters", "parts", "parts-seen")
    ]
    for topic in topics:
        vectors = topic.startswith(settings.topic("vectors."))
        if (vectors or topic in equal) and (count := counts.get(topic)) != expected:
            raise ConfigError(
                f"topic {topic} has {count} partitions, records has {expected}: "
                "a record and its outputs share a partition number, so the counts must be equal; "
                "make new topics under another BRAID_PREFIX and rebuild"
            )


def is_own(settings: Settings, name: str) -> bool:
    """Whether a topic is one of braid's."""
    vectors = settings.topic("vectors.")
    own = {topic.name for topic in plan(settings, settings.generation)}
    return name in own or (name.startswith(vectors) and name[len(vectors) :][:1] == "g")


def differences(
    settings: Settings, generation: str, role: Role, *, timeout_s: float | None = None
) -> list[str]:
    """What the configuration of a role's existing topics has unlike `plan`, a line for each topic.

    Topics whose configuration the role does not need to read are left out.

    Raises:
        AccessError: DescribeConfigs on one of them is not allowed.
        Unreachable: no broker answered.
    """
    admin = Admin(settings, timeout_s=timeout_s)
    counts = admin.partition_counts()
    readable = [grant for grant in grants(settings, role) if CONFIGS in grant.operations]
    wanted = {
        topic.name: topic
        for topic in plan(settings, generation, role)
        if topic.name in counts and any(grant.covers(topic.name) for grant in readable)
    }
    lines = []
    for name, config in admin.configs(list(wanted)).items():
        unlike = [
            f"{key} is {config.get(key)}, braid makes it {value}"
            for key, value in wanted[name].config.items()
            if config.get(key) != value and not _larger_limit(key, config.get(key), value)
        ]
        if unlike:
            lines.append(f"topic {name}: {', '.join(unlike)}")
    return lines


def _larger_limit(key: str, actual: str | None, wanted: str) -> bool:
    return key == "max.message.bytes" and int(actual or 0) > int(wanted)
