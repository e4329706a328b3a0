"""The hot path's consumer: what a rebalance must not leave behind."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_INVALID

from braid.stream.errors import PublishRefused, StaleLease
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.transactions import Lease, RecordSource, generation_of
from tests.stream.harness import Deployment, sink_of, wait_for

pytestmark = pytest.mark.kafka


def source(
    deployment: Deployment,
    log: list[tuple[str, list[int]]] | None = None,
    *,
    incremental: bool = False,
) -> RecordSource:
    """A member of the workers' group; its callbacks are put into the log."""
    told = [] if log is None else log
    settings = deployment.settings
    return RecordSource(
        settings,
        group=settings.group(settings.generation),
        # With none, after a change that took some away.
        on_assigned=lambda partitions: (
            told.append(("assigned", partitions)) if partitions else None
        ),
        on_revoked=lambda partitions: told.append(("revoked", partitions)),
        on_lost=lambda partitions: told.append(("lost", partitions)),
        incremental=incremental,
    )


def test_by_the_new_protocol_only_what_moves_is_taken_and_the_lease_follows_the_epoch(
    kafka: str, tmp_path: Path
) -> None:
    with Deployment(kafka, tmp_path, kafka={"group_protocol": "consumer"}) as deployment:
        settings = deployment.settings
        Admin(settings).set_group_timeouts(settings.group(settings.generation), 2.0)
        log: list[tuple[str, list[int]]] = []
        first = source(deployment, log, incremental=True)

        def owns(count: int) -> bool:
            first.idle_poll()
            return len(first.owned) == count

        wait_for("the first owns all", lambda: owns(4), timeout=60)
        assert [(name, sorted(partitions)) for name, partitions in log] == [
            ("assigned", [0, 1, 2, 3])
        ]
        before = first.lease
        assert before is not None
        assert before.metadata is not None
        old, kept = before.metadata, list(first.owned)
        second = source(deployment, incremental=True)

        def shared() -> bool:
            second.idle_poll()
            return owns(2) and len(second.owned) == 2

        wait_for("they share", shared, timeout=60)
        gone = sorted(set(kept) - set(first.owned))
        assert log[1:] == [("revoked", gone)], "two stayed"
        assert before.metadata is None, "what was begun before the change is not committed"
        after = first.lease
        assert after is not None
        assert after.metadata is not None

        def renewed() -> bool:
            first.idle_poll()
            return generation_of(after.metadata or old) > generation_of(old)

        wait_for("the lease has the epoch after it", renewed, timeout=30)
        sink = sink_of(settings, f"{settings.group(settings.generation)}-0")
        # Kafka 4.3 takes an earlier epoch for a partition that stayed since, others take none.
        offsets = {gone[0]: 1}
        for lease, error in (
            (Lease(old, renewed=True), StaleLease),  # published again under the present epoch
            (Lease(old), PublishRefused),
            (before, PublishRefused),  # a thread that was given up
        ):
            with pytest.raises(error) as refused:
                sink.publish([], offsets=offsets, lease=lease)
            assert type(refused.value) is error
        assert {position.offset for position in second.committed()} == {OFFSET_INVALID}
        sink.publish([], offsets={first.owned[0]: 1}, lease=after)
        assert 1 in {position.offset for position in first.committed()}
        sink.close()
        second.close(10)
        wait_for("the first owns all again", lambda: owns(4), timeout=60)
        assert [(name, sorted(partitions)) for name, partitions in log[2:]] == [("assigned", gone)]
        assert first.lease is after
        first.close(10)


def test_partitions_paused_at_a_rebalance_are_read_when_they_come_back(
    deployment: Deployment,
) -> None:
    first = source(deployment)

    def owns(count: int) -> bool:
        first.idle_poll()
        return len(first.owned) == count

    wait_for("the first owns all", lambda: owns(4), timeout=60)
    first.idle_poll()  # pauses them
    second = source(deployment)

    def shared() -> bool:
        second.idle_poll()
        return owns(2)

    wait_for("they share", shared, timeout=60)
    second.close(10)
    wait_for("the first owns all again", lambda: owns(4), timeout=60)
    deployment.produce({"id": f"r{n}", "text": "x"} for n in range(100))
    ids: set[bytes | None] = set()
    until = time.monotonic() + 30
    while len(ids) < 100 and time.monotonic() < until:
        ids |= {message.key for message in first.poll(64, wait_s=0.1)}
    first.close(10)
    assert len(ids) == 100
