"""Whether a snapshot is stale, given the topic as it is now.

A snapshot has the offsets to continue from. They are stale if the topic was recreated or has
another partition count, if the log begins after an offset or ends before it, or if the snapshot is
older than `delete.retention.ms`: tombstones written since may have been compacted away, and the
deleted records would stay in the index. The index is then rebuilt from the beginning of the topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicFacts:
    """A topic as the broker describes it.

    Attributes:
        id: changes when a topic is recreated; None if the broker has no topic ids.
        delete_retention_ms: how long tombstones are kept.
        ranges: partition -> its first offset and its end.
    """

    id: str | None
    delete_retention_ms: float
    ranges: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFacts:
    """The topic as it was when the snapshot was written.

    Attributes:
        topic_id: of the topic read.
        partitions: their number.
        current_ms: partition -> the time up to which the snapshot is complete, in milliseconds
            since 1970: the last time it was read to its end, or the last message's timestamp.
    """

    topic_id: str | None = None
    partitions: int = 0
    current_ms: Mapping[int, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "topic_id": self.topic_id,
            "partitions": self.partitions,
            "current_ms": {str(number): ms for number, ms in sorted(self.current_ms.items())},
        }

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> SnapshotFacts:
        """The inverse of `plain`; missing fields get defaults."""
        return cls(
            topic_id=plain.get("topic_id"),
            partitions=int(plain.get("partitions", 0)),
            current_ms={int(number): int(ms) for number, ms in plain.get("current_ms", {}).items()},
        )


def stale_reason(
    positions: Mapping[int, int], known: SnapshotFacts, topic: TopicFacts, *, now_ms: float
) -> str | None:
    """Why these positions are stale, or None.

    Args:
        positions: partition -> next offset; empty for a store that has read nothing.
    """
    if not positions:
        return None
    if known.topic_id and topic.id and known.topic_id != topic.id:
        return f"the topic was made anew (its id was {known.topic_id}, now it is {topic.id})"
    if known.partitions and known.partitions != len(topic.ranges):
        return f"the topic had {known.partitions} partitions and has {len(topic.ranges)}"
    for number, at in sorted(positions.items()):
        first, end = topic.ranges.get(number, (0, 0))
        if at > end:
            return f"partition {number} ends at {end}, before the snapshot's offset {at}"
        if 0 < at < first:
            return f"partition {number} begins at {first}, after the snapshot's offset {at}"
    for number in sorted(topic.ranges):
        if number not in known.current_ms:
            continue
        old_ms = now_ms - known.current_ms[number]
        if old_ms > topic.delete_retention_ms:
            return (
                f"partition {number} was last read {old_ms / 1000:.0f} s ago, the topic forgets "
                f"deletions after delete.retention.ms = {topic.delete_retention_ms / 1000:.0f} s"
            )
    return None
