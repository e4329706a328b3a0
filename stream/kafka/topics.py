"""The topics: names, configuration and partition counts; created once, checked at every start."""

from __future__ import annotations

from ..errors import ConfigError
from ..settings import Settings
from .admin import Admin, Topic
from .schemas import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES

STATISTICS_MS = 86_400_000  # tallies are read within seconds into Faust's windows
SEEN_SEGMENT_BYTES = 64 * 1024 * 1024  # Kafka compacts closed segments only
SEEN_SEGMENT_MS = 600_000
SLACK = 64 * 1024  # batch headers, keys and message headers around the largest value


def plan(settings: Settings, generation: str) -> list[Topic]:
    """Every topic that braid needs. `models` has one partition, since its order matters."""
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

    def topic(name: str, config: dict[str, str], partitions: int | None = None) -> Topic:
        return Topic(
            name=settings.topic(name),
            partitions=partitions or settings.kafka.partitions,
            replication=settings.kafka.replication,
            config=config,
        )

    return [
        topic("records", compact | records),
        topic("parts", delete | records),
        topic("parts-seen", compact | dead | seen),
        topic(f"vectors.{generation}", compact),
        topic("predictions", delete),
        topic("dead-letters", delete | dead),
        topic("dead-letters-replayed", compact, partitions=1),
        topic("statistics", delete | {"retention.ms": str(STATISTICS_MS)}),
        topic("models", compact, partitions=1),
    ]


def ensure(settings: Settings, generation: str, *, timeout_s: float | None = None) -> int:
    """Create missing topics; returns the partition count that all of them share.

    Args:
        generation: whose vectors topic.
        timeout_s: bounds each call of the broker; None: `kafka.broker_timeout_s`.

    Existing topics keep their partition count, whatever the settings are: it is fixed when
    `records` is created. More partitions need new topics and a rebuild.

    Raises:
        ConfigError: existing topics differ in their partition counts.
        Unreachable: no broker answered.
    """
    admin = Admin(settings, timeout_s=timeout_s)
    try:
        planned = plan(settings, generation)
        counts = admin.partition_counts()
        records = settings.topic("records")
        partitions = counts.get(records, settings.kafka.partitions)
        missing = [
            Topic(
                name=topic.name,
                partitions=1 if topic.partitions == 1 else partitions,
                replication=topic.replication,
                config=topic.config,
            )
            for topic in planned
            if topic.name not in counts
        ]
        admin.create(missing)
        if missing:
            counts = admin.partition_counts()
        check(settings, generation, counts)
        return counts.get(records, partitions)
    finally:
        admin.close()


def check(settings: Settings, generation: str, counts: dict[str, int]) -> None:
    """Raises ConfigError if a topic's partition count differs from that of records."""
    expected = counts.get(settings.topic("records"))
    for name in (f"vectors.{generation}", "predictions", "dead-letters", "parts", "parts-seen"):
        topic = settings.topic(name)
        if (count := counts.get(topic)) != expected:
            raise ConfigError(
                f"topic {topic} has {count} partitions, records has {expected}: "
                "a record and its outputs share a partition number, so the counts must be equal; "
                "make new topics under another BRAID_PREFIX and rebuild"
            )
