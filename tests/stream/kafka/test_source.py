"""The hot path's consumer: what a rebalance must not leave behind."""

from __future__ import annotations

import time

import pytest

from braid.stream.kafka.transactions import RecordSource
from tests.stream.harness import Deployment, wait_for

pytestmark = pytest.mark.kafka


def source(deployment: Deployment) -> RecordSource:
    def ignore(partitions: list[int]) -> None:
        pass

    settings = deployment.settings
    return RecordSource(
        settings,
        group=settings.group(settings.generation),
        on_assigned=ignore,
        on_revoked=ignore,
        on_lost=ignore,
    )


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
