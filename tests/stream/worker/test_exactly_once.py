"""Exactly once on Apache Kafka: killed workers, a zombie, and the control that shows the danger."""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from braid.index.client import Client
from braid.stream.errors import Fenced, PublishRefused
from braid.stream.kafka.client import Output
from braid.stream.local.child import Child
from tests.conftest import Topics
from tests.stream.harness import Deployment, assigned, sink_of, stopped, wait_for
from tests.stream.oracle import check_index

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


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


def share_partitions(*workers: Child) -> None:
    """Wait until each worker owns some of the four partitions, so that each gets records."""
    wait_for(
        "the workers share the partitions",
        lambda: all(0 < len(assigned(worker)) < 4 for worker in workers),
        timeout=60,
    )


def kill_and_restart(child: Child) -> None:
    child.send(signal.SIGKILL)
    child.wait(10)
    child.start()


def indexed(client: Client) -> int:
    return client.status().records if client.ready() else -1


PROTOCOLS = ["classic", "consumer"]
# The last where the worker noticed before the broker did.
STALE = ("UNKNOWN_MEMBER_ID", "ILLEGAL_GENERATION", "the partitions were taken away meanwhile")
# What librdkafka writes of the same, where the worker has given the transaction up before.
STALE_TEXTS = ("Broker: Unknown member", "Broker: Specified group generation id is not valid")


# It was stopped for longer than worker.publish_timeout_s, and fences what it had open itself.
GIVEN_UP = ("given up, with its producer",)


def refused(worker: Child) -> bool:
    """Whether its transaction was refused or given up, for the group had gone on without it."""
    lines = worker.tail(200).splitlines()
    return any(
        mark in line and any(reason in line for reason in reasons)
        for line in lines
        for mark, reasons in (
            ("transaction refused", (*STALE, *GIVEN_UP)),
            ("TXNERR", STALE_TEXTS),
        )
    )


def wake_as_zombie(deployment: Deployment, zombie: Child) -> None:
    """Wait until it stopped between encode and publish and the group moved on; then wake it."""
    wait_for("the failpoint stops the worker", lambda: stopped(zombie), timeout=60)
    wait_for("the others finish without it", lambda: deployment.lag() == 0, timeout=60)
    zombie.send(signal.SIGCONT)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_zombie_is_refused(kafka: str, tmp_path: Path, protocol: str) -> None:
    with Deployment(kafka, tmp_path, kafka={"group_protocol": protocol}) as deployment:
        zombie = deployment.worker("zombie", BRAID_FAILPOINT="before-publish:stop")
        other = deployment.worker("other")
        share_partitions(zombie, other)
        deployment.produce(texts(1000), per_second=300)
        wake_as_zombie(deployment, zombie)
        wait_for("the broker refuses the zombie", lambda: refused(zombie), timeout=30)
        deployment.produce(texts(200, start=1000))  # the zombie is a member again and works on
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=60)
        assert zombie.running
        assert_exactly_once(deployment, 1200)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_control_fresh_group_metadata_at_commit_lets_the_zombie_through(
    kafka: str, tmp_path: Path, protocol: str
) -> None:
    with Deployment(kafka, tmp_path, kafka={"group_protocol": protocol}) as deployment:
        zombie = deployment.child(
            "zombie",
            ["-m", "tests.stream.unsafe_worker", "embed", "--slot", "zombie", "--model", "null:16"],
            {"BRAID_FAILPOINT": "before-publish:stop"},
        )
        other = deployment.worker("other")
        share_partitions(zombie, other)
        deployment.produce(texts(1000), per_second=300)
        wake_as_zombie(deployment, zombie)

        def doubles() -> int:
            ids = Counter(prediction["id"] for prediction in deployment.predictions())
            return sum(count - 1 for count in ids.values())

        wait_for("the zombie doubles records", lambda: doubles() > 0, timeout=30, every=0.5)
        assert "transaction refused" not in zombie.tail(200)


@pytest.fixture
def lease(kafka: str) -> Iterator[object]:
    """That of a group which has no members and owns nothing: the broker lets it commit."""
    reader = Consumer({"bootstrap.servers": kafka, "group.id": f"t{uuid.uuid4().hex[:8]}"})
    yield reader.consumer_group_metadata()
    reader.close()


def test_a_transaction_that_outlasts_its_time_ends_its_producer_not_the_worker(
    kafka: str, tmp_path: Path, lease: object
) -> None:
    def outputs() -> Iterator[Output]:
        for number in range(20):
            yield Output(topic=topic, partition=0, key=b"a", value=b"%d" % number)
        wait_for(  # the last output is held back until there are no more
            "the broker marks it aborted",
            lambda: deployment.ends("predictions")[0] > 19,
            timeout=60,
        )

    with Deployment(
        kafka, tmp_path, kafka={"transaction_timeout_s": 4.0}, worker={"publish_timeout_s": 60.0}
    ) as deployment:
        topic = deployment.settings.topic("predictions")
        sink = sink_of(deployment.settings, f"{topic}-slow")
        with pytest.raises(PublishRefused, match=r"kafka\.transaction_timeout_s"):
            sink.publish(outputs(), offsets={0: 1}, lease=lease)
        assert deployment.read("predictions") == []
        fits = Output(topic=topic, partition=0, key=b"a", value=b"fits")
        sink.publish([fits], offsets={0: 1}, lease=lease)
        assert [message.value for message in deployment.read("predictions")] == [b"fits"]


def test_a_second_producer_of_the_id_fences_the_first_and_both_causes_are_named(
    kafka: str, tmp_path: Path, lease: object
) -> None:
    with Deployment(kafka, tmp_path) as deployment:
        topic = deployment.settings.topic("predictions")
        first, second = (sink_of(deployment.settings, f"{topic}-same") for _ in range(2))
        first.open()
        second.open()
        output = Output(topic=topic, partition=0, key=b"a", value=b"first")
        with pytest.raises(Fenced, match=r"--slot.*BRAID_KAFKA__TRANSACTION_TIMEOUT_S"):
            first.publish([output], offsets={0: 1}, lease=lease)
        assert deployment.read("predictions") == []


def test_a_transaction_that_fails_before_its_last_message_is_aborted(
    kafka: str, tmp_path: Path, topics: Topics, lease: object
) -> None:
    def outputs() -> Iterator[Output]:
        yield Output(topic=small, partition=0, key=b"a", value=random.randbytes(5000))
        assert sink._producer is not None
        sink._producer.flush(30)  # refused by now
        yield fits

    with Deployment(kafka, tmp_path) as deployment:
        small = topics.create("small", partitions=4, max_message_bytes="1000")
        fits = Output(topic=small, partition=0, key=b"b", value=b"fits")
        sink = sink_of(deployment.settings, small)
        with pytest.raises(PublishRefused):
            sink.publish(outputs(), offsets={0: 1}, lease=lease)
        sink.publish([fits], offsets={0: 1}, lease=lease)
        assert {message.value for message in deployment.read_named(small)} == {b"fits"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_kills_lose_and_double_nothing(kafka: str, tmp_path: Path, protocol: str) -> None:
    """5,000 records, two workers and an index node, and none of them is left in peace.

    One worker is killed at 10 random moments, the other is stopped between encode and publish and
    wakes as a zombie, the index node is killed 5 times.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Deployment(kafka, tmp_path, kafka={"group_protocol": protocol}) as deployment:
        victim = deployment.worker("victim")
        zombie = deployment.worker("zombie", BRAID_FAILPOINT="before-publish:stop:40")
        index = deployment.index()
        flow = threading.Thread(
            target=deployment.produce, args=(texts(5000),), kwargs={"per_second": 150}
        )
        flow.start()
        try:
            for number in range(10):
                time.sleep(moments.uniform(0.2, 3.0))
                kill_and_restart(victim)
                if number % 2:
                    kill_and_restart(index)
        finally:
            flow.join()
        count = 5000
        while not stopped(zombie):  # on a busy machine few transactions, and large ones, had them
            deployment.produce(texts(100, start=count))
            count += 100
            wait_for(
                "these are committed", lambda: stopped(zombie) or deployment.lag() == 0, timeout=60
            )
            assert count < 10_000, "the zombie publishes nothing"
        wake_as_zombie(deployment, zombie)
        wait_for("the zombie is refused", lambda: refused(zombie), timeout=30)
        wait_for("all is committed", lambda: deployment.lag() == 0, timeout=120)
        assert_exactly_once(deployment, count)
        with Client(deployment.url) as client:
            wait_for("the index has all", lambda: indexed(client) == count, timeout=60)
            sent = {record["id"]: record["text"] for record in texts(count)}
            queries = [*random.Random(seed).sample(sorted(sent.values()), 20), "something else"]
            assert check_index(client, sent, queries, k=10) == 210
