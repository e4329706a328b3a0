"""Exactly once on Apache Kafka: killed workers, a zombie, and the control that shows the danger."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream.children import Child
from tests.stream.harness import Deployment, stopped, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


def texts(count: int, *, start: int = 0) -> Iterator[dict[str, Any]]:
    for number in range(start, start + count):
        yield {"id": f"r{number}", "text": f"the text of record number {number}"}


def assert_exactly_once(deployment: Deployment, expected: int) -> None:
    """Each id has exactly one prediction and one vector, reading committed."""
    ids = Counter(prediction["id"] for prediction in deployment.predictions())
    assert len(ids) == expected
    assert set(ids.values()) == {1}, [id_ for id_, count in ids.items() if count > 1][:10]
    vectors = Counter((message.key or b"").decode() for message in deployment.vectors())
    assert vectors == ids
    assert deployment.read("dead-letters") == []


def wake_as_zombie(deployment: Deployment, zombie: Child) -> None:
    """Wait until it stopped between encode and publish and the group moved on; then wake it."""
    wait_for("the failpoint stops the worker", lambda: stopped(zombie), timeout=60)
    wait_for("the others finish without it", lambda: deployment.lag() == 0, timeout=60)
    zombie.send(signal.SIGCONT)


def test_a_zombie_is_refused(kafka: str, tmp_path: Path) -> None:
    with Deployment(kafka, tmp_path) as deployment:
        zombie = deployment.worker("zombie", BRAID_FAILPOINT="before-publish:stop")
        deployment.worker("other")
        deployment.produce(texts(1000), per_second=300)
        wake_as_zombie(deployment, zombie)
        wait_for(
            "the broker refuses the zombie",
            lambda: "transaction refused" in zombie.tail(200),
            timeout=30,
        )
        deployment.produce(texts(200, start=1000))  # the zombie is a member again and works on
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60)
        assert zombie.running
        assert_exactly_once(deployment, 1200)


def test_control_fresh_group_metadata_at_commit_lets_the_zombie_through(
    kafka: str, tmp_path: Path
) -> None:
    with Deployment(kafka, tmp_path) as deployment:
        zombie = deployment.child(
            "zombie",
            ["-m", "tests.stream.unsafe_worker", "embed", "--slot", "zombie", "--model", "null:16"],
            {"BRAID_FAILPOINT": "before-publish:stop"},
        )
        deployment.worker("other")
        deployment.produce(texts(1000), per_second=300)
        wake_as_zombie(deployment, zombie)

        def doubles() -> int:
            ids = Counter(prediction["id"] for prediction in deployment.predictions())
            return sum(count - 1 for count in ids.values())

        wait_for("the zombie doubles records", lambda: doubles() > 0, timeout=30, every=0.5)
        assert "transaction refused" not in zombie.tail(200)


def test_killed_workers_lose_and_double_nothing(kafka: str, tmp_path: Path) -> None:
    """5,000 records; one worker killed at 10 random moments, the other wakes as a zombie."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Deployment(kafka, tmp_path) as deployment:
        victim = deployment.worker("victim")
        zombie = deployment.worker("zombie", BRAID_FAILPOINT="before-publish:stop:40")
        flow = threading.Thread(
            target=deployment.produce, args=(texts(5000),), kwargs={"per_second": 100}
        )
        flow.start()
        try:
            for _ in range(10):
                time.sleep(moments.uniform(0.2, 5.0))
                victim.send(signal.SIGKILL)
                victim.wait(10)
                victim.start()
        finally:
            flow.join()
        wake_as_zombie(deployment, zombie)
        wait_for(
            "the broker refuses the zombie",
            lambda: "transaction refused" in zombie.tail(200),
            timeout=30,
        )
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=120)
        assert_exactly_once(deployment, 5000)
