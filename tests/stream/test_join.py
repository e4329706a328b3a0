"""Parts become one record: the rules, and the Faust agent in a real worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from confluent_kafka import Producer as RawProducer

from stream.errors import BadRecord
from stream.join import complete, encode_record_value, joined, merge
from stream.records import decode_map, decode_record
from tests.stream.harness import Deployment, wait_for


def part(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "id": "a", "ts": 1, **fields})
    return packed


def test_parts_merge_whatever_their_order_and_the_later_field_wins() -> None:
    text = {"ts": 1, "text": "old", "labels": {"x": "1"}}
    sound = {"ts": 2, "text": "new", "audio": {"uri": "u"}, "labels": {"y": "2"}}
    expected = {
        "ts": 2,
        "text": "new",
        "audio": {"uri": "u"},
        "labels": {"x": "1", "y": "2"},
    }
    assert merge(text, sound) == merge(sound, text) == expected


def test_a_record_waits_for_what_it_expects() -> None:
    first = joined(b"a", None, part(text="x", expects=["text", "image"]))
    assert not complete(first)
    second = joined(b"a", first, part(image={"data": b"png"}, ts=2))
    assert complete(second)
    record = decode_record(b"a", encode_record_value(b"a", second))
    assert (record.text, record.image and record.image.data) == ("x", b"png")
    assert complete(joined(b"a", None, part(text="x")))


def test_a_part_that_breaks_the_schema_is_refused() -> None:
    with pytest.raises(BadRecord, match="expects"):
        joined(b"a", None, part(text="x", expects=["smell"]))
    with pytest.raises(BadRecord, match="no modality"):
        joined(b"a", None, part())


@pytest.mark.kafka
def test_the_faust_command_runs_the_worker_and_joins_parts(kafka: str, tmp_path: Path) -> None:
    with Deployment(kafka, tmp_path, model="null:16") as deployment:
        worker = deployment.child("faust", ["-m", "faust", "-A", "stream.app", "worker"])
        producer = RawProducer(
            {"bootstrap.servers": kafka, "partitioner": "murmur2_random", "log_level": 0}
        )
        topic = deployment.settings.topic("parts")
        producer.produce(topic, key=b"a", value=part(text="x", expects=["text", "audio"]))
        producer.produce(topic, key=b"a", value=part(audio={"data": b"wav"}, ts=2))
        producer.produce(topic, key=b"a", value=b"\xc1")
        assert producer.flush(30) == 0
        wait_for("the joined record is embedded", lambda: bool(deployment.vectors()), timeout=90)
        (vector,) = deployment.vectors()
        assert set(decode_map(vector.value or b"")["by"]) == {"text", "audio"}
        wait_for("the bad part is a dead letter", lambda: bool(dead(deployment)), timeout=30)
        ((value, field),) = dead(deployment)
        assert (value, field) == (b"\xc1", b"value")
        assert worker.running


def dead(deployment: Deployment) -> list[tuple[bytes | None, bytes | None]]:
    messages = deployment.read("dead-letters")
    return [(message.value, dict(message.headers)["field"]) for message in messages]
