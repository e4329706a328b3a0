"""When a snapshot is not to be trusted, and that it is when nothing speaks against it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from braid.stream.index_node.snapshot_check import SnapshotFacts, TopicFacts, stale_reason

HOUR_MS = 3_600_000
NOW_MS = 1_000 * HOUR_MS
TOPIC = TopicFacts(id="T1", delete_retention_ms=24 * HOUR_MS, ranges={0: (5, 100), 1: (0, 50)})
KNOWN = SnapshotFacts(
    topic_id="T1", partitions=2, current_ms={0: NOW_MS - HOUR_MS, 1: NOW_MS - HOUR_MS}
)
AT = {0: 90, 1: 50}


def test_a_recent_snapshot_of_the_same_topic_fits() -> None:
    assert stale_reason(AT, KNOWN, TOPIC, now_ms=NOW_MS) is None
    assert stale_reason({0: 5, 1: 0}, KNOWN, TOPIC, now_ms=NOW_MS) is None
    assert stale_reason({}, SnapshotFacts(), TOPIC, now_ms=NOW_MS) is None
    assert stale_reason({}, KNOWN, replace(TOPIC, id="T2"), now_ms=NOW_MS) is None, "it is empty"
    assert stale_reason({0: 0, 1: 0}, KNOWN, TOPIC, now_ms=NOW_MS) is None, "it has read nothing"
    kept_until = NOW_MS - HOUR_MS + TOPIC.delete_retention_ms
    assert stale_reason(AT, KNOWN, TOPIC, now_ms=kept_until) is None


@pytest.mark.parametrize(
    ("positions", "known", "topic", "why"),
    [
        (AT, KNOWN, replace(TOPIC, id="T2"), "made anew.*T1.*T2"),
        (AT, KNOWN, replace(TOPIC, ranges={0: (5, 100)}), "had 2 partitions and has 1"),
        (AT, KNOWN, replace(TOPIC, ranges={0: (0, 89), 1: (0, 50)}), "0 ends at 89, .* 90"),
        ({0: 4, 1: 50}, KNOWN, TOPIC, "0 begins at 5, .* 4"),
        ({0: 1}, KNOWN, TOPIC, "0 begins at 5, .* 1"),
        ({2: 1}, KNOWN, TOPIC, "2 ends at 0, .* 1"),
        (AT, replace(KNOWN, current_ms={1: 0}), TOPIC, "partition 1 was last read"),
        (
            AT,
            replace(KNOWN, current_ms={0: NOW_MS, 1: NOW_MS - 24 * HOUR_MS - 1}),
            TOPIC,
            "partition 1 was last read 86400 s ago.*86400 s",
        ),
    ],
)
def test_what_speaks_against_it_is_named(
    positions: dict[int, int], known: SnapshotFacts, topic: TopicFacts, why: str
) -> None:
    reason = stale_reason(positions, known, topic, now_ms=NOW_MS)
    assert reason is not None
    assert re.search(why, reason), reason


def test_nothing_known_speaks_against_nothing() -> None:
    """A broker without topic ids, a snapshot without facts."""
    assert stale_reason(AT, replace(KNOWN, topic_id=None), TOPIC, now_ms=NOW_MS) is None
    assert stale_reason(AT, KNOWN, replace(TOPIC, id=None), now_ms=NOW_MS) is None
    assert stale_reason(AT, SnapshotFacts(), TOPIC, now_ms=NOW_MS) is None


def test_what_is_known_goes_through_json() -> None:
    assert SnapshotFacts.parse(json.loads(json.dumps(KNOWN.plain()))) == KNOWN
    assert SnapshotFacts.parse({}) == SnapshotFacts()
