"""The servers that the other tests stand on really serve."""

from __future__ import annotations

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.conftest import Topics
from tests.services import Valkey


@pytest.mark.kafka
def test_kafka_isolates_transactions(kafka: str, topics: Topics) -> None:
    """A read_committed consumer sees the committed message only: the ground of every test."""
    name = topics.create("records", partitions=2, cleanup_policy="compact")
    for value in (b"aborted", b"committed"):
        producer = Producer({"bootstrap.servers": kafka, "transactional.id": topics.prefix})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(name, value, key=b"k", partition=1)
        if value == b"aborted":
            producer.flush(30)
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
    reader = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": topics.prefix,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    reader.assign([TopicPartition(name, 1, 0)])
    seen = []
    while (message := reader.poll(30)) is not None and not message.error():
        seen.append(message.value())
    reader.close()
    assert seen == [b"committed"]


@pytest.mark.redis
def test_a_valkey_of_ones_own_stops_and_comes_back(own_valkey: Valkey) -> None:
    client = redis.Redis.from_url(own_valkey.url, socket_timeout=5, retry=None)
    assert client.set("a", "b")
    own_valkey.stop()
    with pytest.raises(redis.ConnectionError):
        client.get("a")
    own_valkey.start()
    assert client.get("a") is None
    client.close()


@pytest.mark.redis
def test_the_shared_valkey_is_empty(valkey: str) -> None:
    with redis.Redis.from_url(valkey) as client:
        assert client.dbsize() == 0
