"""`braid ingest` on Apache Kafka: exactly once, dead letters, health, rebalances."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from braid.stream.cli.main import app
from braid.stream.cli.reports import status
from braid.stream.errors import ConfigError
from braid.stream.kafka.client import Message
from braid.stream.local.child import free_port
from braid.stream.settings.source_groups import Source
from tests.conftest import Topics
from tests.stream.harness import Deployment, wait_for
from tests.stream.worker.ingest.feed import PLAIN, Feed, all_taken, healthz, ingest, records, texts

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600), pytest.mark.slow]

BIRD = {"id": "bird", "text": "a red bird"}


def headers(message: Message) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in message.headers}


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_messages_become_records_and_what_does_not_map_a_dead_letter(
    kafka: str, tmp_path: Path, topics: Topics
) -> None:
    shop, parts = topics.create("shop", partitions=9), topics.create("sounds")
    sources = [
        {"topic": shop, "name": "shop", "map": {**PLAIN, "meta": {"lang": "lang"}}},
        {
            "topic": parts,
            "map": {"id": "key()", "audio": "url", "expects": ["text", "audio"]},
        },
    ]
    port = free_port()
    with Deployment(kafka, tmp_path, sources=sources) as deployment:
        feed = Feed(kafka, shop)
        feed.send(BIRD | {"lang": "en"}, partition=0)
        feed.send({"id": "fish", "text": 5}, "k", partition=8, headers={"x": b"y"})
        feed.send(b"{", None, partition=1)
        Feed(kafka, parts).send({"url": "https://example.org/a.ogg"}, "bird")
        ingest(deployment, BRAID_METRICS__PORT=str(port))
        all_taken(deployment)
        assert [value and value["meta"] for value in records(deployment)["bird"]] == [
            {"lang": "en"}
        ]
        (part,) = deployment.read("parts")
        assert (part.key, b"expects" in (part.value or b"")) == (b"bird", True)
        letters = {message.value: headers(message) for message in deployment.read("dead-letters")}
        assert set(letters) == {b"{", json.dumps({"id": "fish", "text": 5}).encode()}
        wrong = letters[json.dumps({"id": "fish", "text": 5}).encode()]
        assert (wrong["topic"], wrong["partition"], wrong["offset"]) == (shop, "8", "0")
        assert (wrong["field"], wrong["stage"]) == ("map.text", "map")
        assert (
            wrong["reason"] == "path 'text' gives 5 (int), not a text: a template makes one of it"
        )
        status, health = healthz(port)
        assert (status, health["status"]) == (200, "ok")
        assert health["sources"]["shop"]["partitions"] == list(range(9))
        shown = metrics(port)
        assert 'braid_ingest_messages_total{event="record",source="shop"} 1.0' in shown
        assert 'braid_ingest_messages_total{event="dead letter",source="shop"} 2.0' in shown


def test_check_prints_what_a_sample_becomes(kafka: str, tmp_path: Path, topics: Topics) -> None:
    shop, empty = topics.create("shop", partitions=3), topics.create("empty")
    sources = [{"topic": shop, "name": "shop", "map": PLAIN}, {"topic": empty, "map": PLAIN}]
    missing = {"topic": f"{topics.prefix}missing", "name": "missing", "map": PLAIN}
    with Deployment(kafka, tmp_path, sources=sources) as deployment:

        def braid(*line: str) -> Result:
            return CliRunner().invoke(app, line, env=deployment.settings.environment())

        feed = Feed(kafka, shop)
        feed.send(BIRD, "bird")
        done = braid("ingest", "--check")
        assert done.exit_code == 0
        assert "shop: partition" in done.output
        assert '"text": "a red bird"' in done.output
        assert f"{empty}: its topic has no message" in done.output
        others = deployment.settings.model_copy(update={"sources": [Source(**missing)]})
        done = CliRunner().invoke(app, ["ingest", "--check"], env=others.environment())
        assert done.exit_code == 1
        assert f"missing: there is no topic {missing['topic']}" in done.output
        feed.send({"id": "fish"}, "fish", timestamp=int(time.time() * 1000) + 1000)
        done = braid("ingest", "shop", "--check", "--json")
        assert done.exit_code == 1
        assert json.loads(done.output)["shop"]["error"].startswith(
            "does not map: value: has no mod"
        )
        done = braid("ingest", "ship", "--check")
        assert isinstance(done.exception, ConfigError)
        assert "no source ship; there are shop" in str(done.exception)
        assert deployment.read("records") == []
        (lag,) = [source["lag"] for source in status(deployment.settings)["sources"].values()][:1]
        assert sum(lag.values()) == 2


def test_a_source_that_fails_leaves_the_others_running(
    kafka: str, tmp_path: Path, topics: Topics
) -> None:
    there, missing = topics.create("there"), f"{topics.prefix}missing"
    sources = [{"topic": topic, "map": PLAIN} for topic in (there, missing)]
    port = free_port()
    with Deployment(kafka, tmp_path, sources=sources) as deployment:
        ingest(deployment, BRAID_METRICS__PORT=str(port))
        wait_for(
            "the failure is told", lambda: missing in healthz(port)[1].get("status", ""), timeout=30
        )
        assert healthz(port)[0] == 503
        Feed(kafka, there).send(BIRD)
        wait_for("the other one works", lambda: bool(texts(deployment)), timeout=30, every=0.5)
        topics.create("missing")
        Feed(kafka, missing).send(BIRD | {"id": "late"})
        wait_for(
            "it works once there is the topic",
            lambda: "late" in texts(deployment),
            timeout=60,
            every=0.5,
        )
        wait_for("and is healthy", lambda: healthz(port)[0] == 200, timeout=30)


def test_a_wrong_mapping_stops_the_source_and_does_not_empty_the_topic(
    kafka: str, tmp_path: Path, topics: Topics
) -> None:
    shop = topics.create("shop")
    port = free_port()
    with Deployment(
        kafka, tmp_path, sources=[{"topic": shop, "map": PLAIN}], worker={"poison_window": 20}
    ) as deployment:
        feed = Feed(kafka, shop)
        for number in range(40):
            feed.send({"sku": number}, flush=False)
        feed.flush()
        ingest(deployment, BRAID_METRICS__PORT=str(port))
        wait_for(
            "it stops",
            lambda: "20 records did not map" in healthz(port)[1].get("status", ""),
            timeout=30,
        )
        assert deployment.read("dead-letters") == []
