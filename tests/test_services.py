"""The servers that the other tests stand on really serve."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from tests.conftest import Topics, started_once
from tests.services import KafkaBroker, Valkey


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
    client = redis.Redis.from_url(own_valkey.address, socket_timeout=5, retry=None)
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


@pytest.mark.kafka
def test_a_broker_of_ones_own_is_killed_paused_and_started_again(own_kafka: KafkaBroker) -> None:
    address = own_kafka.address
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    own_kafka.stop()
    assert not own_kafka.running
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=1)
    assert own_kafka.start() == address
    assert "kept" in admin.list_topics(timeout=30).topics
    own_kafka.pause()
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=1)
    own_kafka.resume()
    assert "kept" in admin.list_topics(timeout=30).topics


@pytest.mark.redis
def test_a_server_of_all_processes_runs_while_one_uses_it_and_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "valkey"

    def pings(address: str) -> bool:
        with redis.Redis.from_url(address) as client:
            return bool(client.ping())

    with ExitStack() as first:
        with ExitStack() as second:
            address = started_once(second.callback, folder, Valkey(folder))
        assert not (folder / "address").exists()
        with pytest.raises(redis.ConnectionError):
            pings(address)
        again = started_once(first.callback, folder, Valkey(folder))
        with ExitStack() as third:
            assert started_once(third.callback, folder, Valkey(folder)) == again
        assert pings(again)
