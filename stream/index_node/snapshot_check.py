"""Whether a snapshot may be trusted, given what became of the topic since.

A snapshot says where to read on. That is wrong when the topic is another one by now, or has other
partitions; when the log begins after the offset, or ends before it; and when it is so old that the
topic may have forgotten deletions that came in between: a delete marker goes `delete.retention.ms`
after it was written, and a record whose deletion nobody saw would be a zombie for ever. Then the
index is rebuilt from the beginning of the topic, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TopicFacts:
    """A topic as the broker describes it.

    Attributes:
        id: differs when a topic was deleted and made again; None where the broker has no such.
        delete_retention_ms: how long delete markers stay.
        ranges: partition -> its first offset and its end.
    """

    id: str | None
    delete_retention_ms: float
    ranges: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFacts:
    """What a snapshot's owner knew when it was written.

    Attributes:
        topic_id: of the topic read.
        partitions: how many it had.
        current_ms: partition -> until when everything written is in the snapshot, in milliseconds
            since 1970: when it was last read to its end, or what the last message was stamped.
    """

    topic_id: str | None = None
    partitions: int = 0
    current_ms: Mapping[int, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "topic_id": self.topic_id,
            "partitions": self.partitions,
            "current_ms": {str(number): ms for number, ms in sorted(self.current_ms.items())},
        }

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> SnapshotFacts:
        """The inverse of `plain`; of nothing, nothing is known."""
        return cls(
            topic_id=plain.get("topic_id"),
            partitions=int(plain.get("partitions", 0)),
            current_ms={int(number): int(ms) for number, ms in plain.get("current_ms", {}).items()},
        )


def stale_reason(
    positions: Mapping[int, int], known: SnapshotFacts, topic: TopicFacts, *, now_ms: float
) -> str | None:
    """Why reading on from these positions could miss something, or None.

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
