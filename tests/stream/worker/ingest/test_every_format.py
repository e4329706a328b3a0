"""A JSON, an Avro, a Protobuf and a Debezium topic become records, exactly once under kills.

On Apache Kafka and Apicurio Registry; Avro and Protobuf are written by Confluent's serialisers. At
the end the index is compared with what numpy computes from the texts that were sent last.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.message_factory import GetMessageClass

from braid.index.client import Client
from braid.stream.errors import EmbeddedError
from braid.stream.local.child import Child, free_port
from braid.stream.sources.protobuf_schema import compiled
from tests.conftest import Topics, missing
from tests.schema_registry import Apicurio
from tests.stream.harness import Deployment, wait_for
from tests.stream.oracle import check_index
from tests.stream.worker.ingest.feed import Feed, all_taken, healthz, ingest, records, texts

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900), pytest.mark.slow]

AVRO = {
    "type": "record",
    "name": "Product",
    "namespace": "shop",
    "fields": [
        {"name": "sku", "type": "string"},
        {"name": "title", "type": ["null", "string"]},
        {"name": "changed", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
COMMON = 'syntax = "proto3"; package shop; message Name { string text = 1; }'
PROTOBUF = """syntax = "proto3"; package shop; import "common.proto";
message Ignored {} message Product { string sku = 1; Name title = 2; int64 changed_s = 3; }"""
COUNT, IDS = 500, 60  # of each topic; as many messages at least
KILLS = 5
CHANGED = 1_700_000_000
DELETIONS = 0.1
FAILPOINTS = "ingest-before-publish:kill:3,ingest-after-publish:kill:3"
Encode = Callable[[str, str | None], tuple[bytes | None, bytes | None]]
"""Id and text, None for a deletion, to key and value."""


@pytest.fixture
def client(apicurio: Apicurio) -> Iterator[SchemaRegistryClient]:
    """Confluent's client of the registry."""
    with SchemaRegistryClient({"url": apicurio.address}) as made:
        yield made


@pytest.fixture
def apicurio(tmp_path: Path) -> Iterator[Apicurio]:
    with Apicurio(tmp_path / "apicurio") as registry:
        try:
            registry.start()
        except EmbeddedError as error:
            missing(str(error))
        yield registry


def json_of(id_: str, text: str | None) -> tuple[bytes | None, bytes | None]:
    value = {"sku": id_, "title": text, "changed": f"{CHANGED}"}
    return id_.encode(), None if text is None else json.dumps(value).encode()


def debezium_of(id_: str, text: str | None) -> tuple[bytes | None, bytes | None]:
    row = {"sku": id_, "title": text}
    change: dict[str, Any] = {"op": "u", "before": None, "after": row, "ts_ms": CHANGED * 1000}
    if text is None:
        change |= {"op": "d", "before": {"sku": id_, "title": None}, "after": None}
    return json.dumps({"payload": {"sku": id_}, "schema": {}}).encode(), json.dumps(change).encode()


def avro_of(client: SchemaRegistryClient, topic: str) -> Encode:
    serialise = AvroSerializer(client, json.dumps(AVRO))
    context = SerializationContext(topic, MessageField.VALUE)

    def encode(id_: str, text: str | None) -> tuple[bytes | None, bytes | None]:
        value = {"sku": id_, "title": text, "changed": CHANGED * 1000}
        return id_.encode(), None if text is None else serialise(value, context)

    return encode


def protobuf_of(apicurio: Apicurio, client: SchemaRegistryClient, topic: str) -> Encode:
    """Half of the messages are of a schema that is registered as text, with a reference.

    The other half are written by Confluent's serialiser, which registers descriptors.
    """
    apicurio.register("common", COMMON, "PROTOBUF")
    references = [{"name": "common.proto", "subject": "common", "version": 1}]
    id_of_text = apicurio.register("text", PROTOBUF, "PROTOBUF", references=references)
    _, product = compiled("product.proto", {"product.proto": PROTOBUF, "common.proto": COMMON})
    made = GetMessageClass(product)
    serialise = ProtobufSerializer(made, client, {"use.deprecated.format": False})
    context = SerializationContext(topic, MessageField.VALUE)
    prefix = b"\0" + id_of_text.to_bytes(4, "big") + b"\2\2"  # the second message

    def encode(id_: str, text: str | None) -> tuple[bytes | None, bytes | None]:
        if text is None:
            return id_.encode(), None
        message = made(sku=id_, changed_s=CHANGED)
        message.title.text = text
        if int(id_[-1]) % 2:
            return id_.encode(), prefix + message.SerializeToString()
        return id_.encode(), serialise(message, context)

    return encode


def source(topic: str, name: str, **options: Any) -> dict[str, Any]:
    mapping = {"id": "sku || key()", "text": "title", "ts": "changed || timestamp()"}
    return {"topic": topic, "name": name, "map": mapping | options.pop("map", {}), **options}


class Traffic:
    """Sends updates and deletions to every topic.

    Attributes:
        expected: id -> the texts that were sent, in their order; None for a deletion.
    """

    def __init__(self, kafka: str, encoders: dict[str, Encode], seed: int) -> None:
        self._feeds = [(Feed(kafka, topic), encode) for topic, encode in encoders.items()]
        self._seed = seed
        self.expected: dict[str, list[str | None]] = {}
        self._sent = 0

    def send(self, count: int) -> None:
        """So many messages to each topic."""
        chance = random.Random(self._seed + self._sent)
        for number in range(self._sent, self._sent + count):
            for place, (feed, encode) in enumerate(self._feeds):
                id_ = f"{place}-{chance.randrange(IDS)}"
                text = None if chance.random() < DELETIONS else f"text {number} of {id_}"
                self.expected.setdefault(id_, []).append(text)
                key, value = encode(id_, text)
                feed.put(key, value)
            time.sleep(0.01)
        self._sent += count
        for feed, _ in self._feeds:
            feed.flush()

    @property
    def last(self) -> dict[str, str]:
        """The text of each id that was not deleted last."""
        return {id_: texts[-1] for id_, texts in self.expected.items() if texts[-1] is not None}


def kill_now_and_then(victim: Child, traffic: Traffic, chance: random.Random) -> None:
    """Kill the victim while messages are sent, KILLS times."""
    stopped = threading.Event()

    def send() -> None:
        traffic.send(COUNT)
        while not stopped.is_set():
            traffic.send(20)

    flow = threading.Thread(target=send)
    flow.start()
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.2, 2.5))
            victim.send(signal.SIGKILL)
            victim.wait(10)
            victim.start()
    finally:
        stopped.set()
        flow.join()


def test_topics_of_every_format_become_records_exactly_once_under_kills(
    kafka: str, tmp_path: Path, topics: Topics, apicurio: Apicurio, client: SchemaRegistryClient
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    names = {name: topics.create(name, partitions=3) for name in ("json", "avro", "proto", "cdc")}
    encoders: dict[str, Encode] = {
        names["json"]: json_of,
        names["avro"]: avro_of(client, names["avro"]),
        names["proto"]: protobuf_of(apicurio, client, names["proto"]),
        names["cdc"]: debezium_of,
    }
    sources = [
        source(names["json"], "json", map={"ts": "to_number(changed)", "ts_unit": "s"}),
        source(names["avro"], "avro", format="avro"),
        source(
            names["proto"],
            "proto",
            format="protobuf",
            map={"text": "title.text", "ts": "changed_s", "ts_unit": "s"},
        ),
        source(names["cdc"], "cdc", envelope="debezium", map={"ts": "envelope().ts_ms"}),
    ]
    traffic = Traffic(kafka, encoders, seed)
    port = free_port()
    with Deployment(
        kafka, tmp_path, sources=sources, schema_registry={"url": apicurio.address}
    ) as deployment:
        traffic.send(20)
        apicurio.pause()
        try:
            victim = ingest(deployment, "victim", BRAID_FAILPOINT=FAILPOINTS)
            other = ingest(deployment, "other", BRAID_METRICS__PORT=str(port))
            try:
                wait_for(
                    "the others go on without the registry",
                    lambda: (
                        {id_[0] for id_, each in texts(deployment).items() if any(each)}
                        == {"0", "3"}
                    ),  # a deletion of the others needs no schema
                    timeout=60,
                    every=0.5,
                )
            except AssertionError:
                print(texts(deployment), healthz(port))
                raise
            wait_for(
                "it is waited for",
                lambda: "waiting for the schema registry" in healthz(port)[1].get("status", ""),
                timeout=30,
            )
        finally:
            apicurio.resume()
        deployment.worker("worker")
        deployment.index()
        kill_now_and_then(victim, traffic, random.Random(seed))
        all_taken(deployment, timeout=120)
        assert other.running
        assert texts(deployment) == traffic.expected
        assert {value["ts"] for value in values(deployment)} == {CHANGED * 1000}
        assert deployment.read("dead-letters") == []
        wait_for("it is healthy", lambda: healthz(port)[0] == 200, timeout=30)
        wait_for("all is embedded", lambda: deployment.lag() == 0, timeout=120)
        with Client(deployment.url) as index:
            last = traffic.last
            wait_for(
                "the index has all",
                lambda: index.ready() and index.status().records == len(last),
                timeout=60,
            )
            queries = random.Random(seed).sample(sorted(last.values()), 20)
            assert check_index(index, last, queries, k=10) == 200


def values(deployment: Deployment) -> list[dict[str, Any]]:
    """The values on `records` that are none of deletions."""
    return [value for values in records(deployment).values() for value in values if value]
