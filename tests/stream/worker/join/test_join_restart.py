"""The hot path starts again whatever Faust and the join have kept, on Apache Kafka."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer

from braid.stream.kafka.admin import Admin
from braid.stream.kafka.schemas import decode_map
from tests.stream.harness import Deployment, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]


def test_one_part_and_a_restart_and_records_are_embedded_again(kafka: str, tmp_path: Path) -> None:
    with Deployment(kafka, tmp_path, model={"spec": "null:16"}) as deployment:
        worker = deployment.worker("w")
        producer = RawProducer(
            {"bootstrap.servers": kafka, "partitioner": "murmur2_random", "log_level": 0}
        )

        def send(**fields: object) -> None:
            value = {"v": 1, "id": "a", "ts": 1, "expects": ["text", "audio"], **fields}
            producer.produce(
                deployment.settings.topic("parts"), key=b"a", value=msgpack.packb(value)
            )
            assert producer.flush(30) == 0

        send(text="first half")
        deployment.produce([{"id": "r0", "text": "before"}])
        wait_for("the hot path works", lambda: len(deployment.vectors()) == 1, timeout=90)
        wait_for("the part is kept", lambda: kept(deployment) > 0, timeout=60)
        worker.stop()
        deployment.child("faust", ["-m", "faust", "-A", "braid.stream.worker.app", "worker"])
        deployment.produce([{"id": "r1", "text": "after"}])
        wait_for("the hot path works again", lambda: len(deployment.vectors()) == 2, timeout=90)
        send(audio={"data": b"wav"}, ts=2)
        wait_for("the parts are joined", lambda: len(deployment.vectors()) == 3, timeout=60)
        (vector,) = [message for message in deployment.vectors() if message.key == b"a"]
        assert set(decode_map(vector.value or b"")["by"]) == {"text", "audio"}


def test_records_are_embedded_while_a_table_of_fausts_cannot_be_read(
    kafka: str, tmp_path: Path
) -> None:
    with Deployment(kafka, tmp_path) as deployment:
        prefix = deployment.settings.prefix
        changelog = f"{prefix}braid-app-{prefix}drift-versions-changelog"
        worker = deployment.worker("w")
        wait_for(
            "the table's changelog is there",
            lambda: changelog in Admin(deployment.settings).partition_counts(),
            timeout=90,
        )
        worker.stop()
        producer = RawProducer({"bootstrap.servers": kafka, "log_level": 0})
        for partition in range(deployment.settings.kafka.partitions):
            producer.produce(changelog, partition=partition, key=b"\xc1", value=b"\xc1")
        assert producer.flush(30) == 0
        worker.start()
        deployment.produce([{"id": "r1", "text": "embedded all the same"}])
        wait_for("the hot path works", lambda: len(deployment.vectors()) == 1, timeout=90)
        assert worker.running


def kept(deployment: Deployment) -> int:
    """Messages on the join's changelog."""
    return len(deployment.read("parts-seen"))
