"""The index node as a process: read your own writes, deletions, restarts, topics that changed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from confluent_kafka import Producer as RawProducer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from braid.encoders.model.null import NullModel
from braid.index.client import Client
from braid.index.errors import BadQuery
from braid.stream.errors import ConfigError
from braid.stream.kafka.admin import Admin
from braid.stream.kafka.producer import Producer
from braid.stream.kafka.schemas import Vector, encode_vector
from braid.stream.kafka.topics import ensure
from braid.stream.local.child import Child, free_port, port_answers
from braid.stream.registry.announcements import announce
from braid.stream.registry.promotion import promote
from braid.stream.registry.versions import Registry
from tests.stream.harness import Deployment, wait_for
from tests.stream.oracle import check_index

pytestmark = pytest.mark.kafka


async def send(deployment: Deployment, **record: Any) -> tuple[int, int]:
    async with Producer(deployment.settings) as producer:
        sent = await producer.send(**record)
    assert sent is not None
    return sent


@pytest.mark.timeout(900)
def test_a_node_without_a_model_lives_and_says_what_it_waits_for(
    deployment: Deployment, three_versions: Registry
) -> None:
    process = deployment.index(model=None)
    with httpx.Client(base_url=deployment.url) as http, Client(deployment.url) as client:
        wait_for("it answers", lambda: port_answers(deployment.settings.http.port), timeout=60)
        why = "waiting for the first model: braid retrain or braid models import makes it"
        wait_for("it waits", lambda: http.get("/readyz").json()["reason"] == why, timeout=60)
        health = http.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"ok": False, "reason": why})
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": why})
        answer = http.post("/v1/search", json={"text": "a"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
        assert answer.json() == {"error": {"field": "model", "reason": why}}
        assert http.get("/").headers["content-type"].startswith("text/html")
        assert http.get("/readyz", headers={"host": "evil.example"}).status_code == 421
        assert "no champion in the registry yet" in process.log.read_text()
        promote(deployment.settings, three_versions, "tiny-0001")
        statuses = set()

        def is_ready() -> bool:
            statuses.add(http.get("/readyz").status_code)  # never a refused connection
            return client.ready()

        wait_for("it is ready", is_ready, timeout=90)
        assert statuses <= {200, 503}
        assert client.status().model == "tiny-0001"
        assert http.get("/healthz").json() == {"ok": True}


def test_a_node_without_a_broker_answers_what_it_waits_for(tmp_path: Path) -> None:
    port = free_port()
    child = Child(
        "index",
        [sys.executable, "-m", "braid", "--home", str(tmp_path), "index", "--model", "null:16"],
        log=tmp_path / "index.log",
        env={"KAFKA_BOOTSTRAP": "127.0.0.1:1", "BRAID_HTTP__PORT": str(port)},
    ).start()
    try:
        wait_for("it answers", lambda: port_answers(port), timeout=60)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            why = "waiting for Kafka at 127.0.0.1:1 (KAFKA_BOOTSTRAP, or bootstrap below [kafka])"
            wait_for("it waits", lambda: http.get("/healthz").json()["reason"] == why, timeout=60)
            assert http.post("/v1/search", json={"text": "a"}).status_code == 503
    finally:
        child.stop(grace=5)


def searchable(client: Client) -> int:
    return client.status().records if client.ready() else -1


def test_writes_are_read_deletions_stay_and_a_restart_goes_on_from_the_snapshot(
    deployment: Deployment,
) -> None:
    sent = {f"r{number}": f"text {number}" for number in range(200)}
    deployment.worker("one")
    index = deployment.index()
    deployment.produce([{"id": id_, "text": text} for id_, text in sent.items()])
    with Client(deployment.url) as client:
        wait_for("all are searchable", lambda: searchable(client) == 200, timeout=60)
        partition, offset = asyncio.run(send(deployment, id="mine", text="my own words"))
        answer = client.search(
            text="my own words", k=1, min_offsets={partition: offset + 1}, timeout_ms=10_000
        )
        assert answer.hits[0].id == "mine"
        assert answer.hits[0].score == pytest.approx(1.0, abs=1e-5)
        assert answer.as_of[str(partition)] >= offset + 1
        with pytest.raises(Exception, match="not yet at"):
            client.search(text="x", min_offsets={partition: offset + 1000}, timeout_ms=50)

        gone = client.delete("mine")
        wait = {gone.partition: gone.offset + 1}
        answer = client.search(text="my own words", k=5, min_offsets=wait, timeout_ms=10_000)
        assert "mine" not in {hit.id for hit in answer.hits}
        with pytest.raises(BadQuery) as caught:
            client.get("mine")
        assert caught.value.status == 404

        wait_for(
            "a snapshot is written",
            lambda: any(deployment.settings.index_dir(deployment.settings.generation).glob("0*")),
            timeout=20,
        )
        index.send(signal.SIGKILL)
        index.wait(10)
        index.start()
        wait_for("all are searchable again", lambda: searchable(client) == 200, timeout=60)
        assert "restored" in index.tail(50)
        assert check_index(client, sent, ["text 7", "something else"], k=10) == 20
        index.stop()
        index.start()
        wait_for("it comes back once more", lambda: searchable(client) == 200, timeout=60)


def test_records_become_searchable_while_a_snapshot_is_written(deployment: Deployment) -> None:
    """However long that takes: this one never ends."""
    deployment.worker("one")
    deployment.index(env={"BRAID_FAILPOINT": "snapshot-files:hang"})
    deployment.produce([{"id": "before", "text": "before it"}])
    folder = deployment.settings.index_dir(deployment.settings.generation)
    with Client(deployment.url) as client:
        wait_for("the first is searchable", lambda: searchable(client) == 1, timeout=60)
        wait_for("a snapshot is begun", lambda: any(folder.glob(".0*")), timeout=20)
        deployment.produce([{"id": "after", "text": "after it"}])
        wait_for("the second is searchable", lambda: searchable(client) == 2, timeout=20)
        assert not any(folder.glob("0*"))


def test_topics_that_do_not_fit_stop_the_start(deployment: Deployment) -> None:
    settings = deployment.settings
    assert (
        ensure(settings.replace(kafka={"partitions": 9}), "g0001") == 4
    )  # fixed when they are made
    announce(settings, "topics", {"partitions": 7})
    index = deployment.index()
    assert index.wait(60) == os.EX_CONFIG
    assert "7 are recorded" in index.tail()
    Admin(settings).delete([settings.topic("predictions")])
    other = settings.replace(kafka={"partitions": 2})

    def remade() -> bool:
        try:
            ensure(settings, settings.generation)
        except ConfigError:
            return False
        return True

    wait_for("predictions is made again", remade, timeout=20)
    assert ensure(other, other.generation) == 4


def test_what_is_no_vector_of_this_space_is_counted_and_never_searched(
    deployment: Deployment,
) -> None:
    """Only our workers write to `vectors`; whatever else turns up there must do no harm."""
    deployment.index()
    topic = deployment.settings.vectors_topic(deployment.settings.generation)
    producer = RawProducer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    space = NullModel(16).space
    for id_, its_space, dim in (
        ("good", space, 16),
        ("elsewhere", "another-space", 16),
        ("short", space, 8),
        ("not finite", space, 16),
    ):
        unit = np.full(dim, np.nan if id_ == "not finite" else dim**-0.5, dtype=np.float32)
        vector = Vector(
            id=id_, ts=1, space=its_space, model="m", fused=unit, by={}, meta={}, source=0
        )
        producer.produce(topic, key=id_.encode(), partition=0, value=encode_vector(vector))
    producer.produce(topic, key=b"torn", partition=0, value=b"\xc1")
    producer.produce(topic, key=b"no headers", partition=0, value=None)
    assert producer.flush(30) == 0
    with Client(deployment.url) as client:
        wait_for("the good one is there", lambda: searchable(client) == 1, timeout=60)
        wait_for("the others are counted", lambda: unreadable(client) == 5, timeout=30)
        hits = client.search(text="x", k=10).hits
    assert [hit.id for hit in hits] == ["good"]


def unreadable(client: Client) -> int:
    return client.status().unreadable or 0


def _kept(deployment: Deployment) -> bool:
    return any(deployment.settings.index_dir(deployment.settings.generation).glob("0*"))


def _vector(id_: str, source: int) -> bytes:
    unit = np.full(16, 0.25, dtype=np.float32)
    space = NullModel(16).space
    return encode_vector(
        Vector(id=id_, ts=1, space=space, model="m", fused=unit, by={}, meta={}, source=source)
    )


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(deployment: Deployment) -> None:
    """Its offsets look right by chance; only the topic's identity tells."""
    settings = deployment.settings
    topic = settings.vectors_topic(settings.generation)
    producer = RawProducer({"bootstrap.servers": settings.kafka.bootstrap})
    for number in range(3):
        producer.produce(topic, key=b"old", partition=0, value=_vector("old", number))
    assert producer.flush(30) == 0
    index = deployment.index()
    with Client(deployment.url) as client:
        wait_for("it is searchable", lambda: searchable(client) == 1, timeout=60)
        index.stop()
        assert _kept(deployment)
        Admin(settings).delete([topic])
        wait_for(
            "the topic is gone",
            lambda: topic not in Admin(settings).partition_counts(),
            timeout=20,
        )
        ensure(settings, settings.generation)
        for number in range(3):
            producer.produce(topic, key=b"new", partition=0, value=_vector("new", number))
        assert producer.flush(30) == 0
        index.start()
        wait_for("the new one is searchable", lambda: searchable(client) == 1, timeout=60)
        assert [hit.id for hit in client.search(text="x", k=10).hits] == ["new"]
        assert "made anew" in str(client.status().rebuilt)


def test_a_snapshot_older_than_delete_markers_is_not_used(deployment: Deployment) -> None:
    """The deletion that came while the node was down may be gone: it reads from the beginning."""
    settings = deployment.settings
    topic = settings.vectors_topic(settings.generation)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap})
    producer = RawProducer({"bootstrap.servers": settings.kafka.bootstrap})
    producer.produce(topic, key=b"kept", partition=0, value=_vector("kept", 0))
    assert producer.flush(30) == 0
    index = deployment.index()
    with Client(deployment.url) as client:
        wait_for("it is searchable", lambda: searchable(client) == 1, timeout=60)
        index.stop()
        assert _kept(deployment)
        resource = ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(
                    "delete.retention.ms",
                    "1",
                    incremental_operation=AlterConfigOpType.SET,
                )
            ],
        )
        admin.incremental_alter_configs([resource])[resource].result(20)
        index.start()
        wait_for("it is searchable again", lambda: searchable(client) == 1, timeout=60)
        assert "delete.retention.ms" in str(client.status().rebuilt)
        index.stop()
        resource.incremental_configs[0].value = "86400000"
        admin.incremental_alter_configs([resource])[resource].result(20)
        index.start()
        wait_for("and once more", lambda: searchable(client) == 1, timeout=60)
        assert client.status().rebuilt is None
