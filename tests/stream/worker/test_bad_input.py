"""Bad records: each becomes a dead letter, whole, with its reason; its neighbours are processed."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import soundfile
from confluent_kafka import Producer as RawProducer

from braid.encoders.embedder import load
from braid.stream.kafka.schemas import MAX_ID_BYTES, MAX_TEXT_BYTES
from tests.stream.conftest import coloured
from tests.stream.harness import Deployment
from tests.stream.running import running, wait_until_idle

pytestmark = pytest.mark.kafka


def value(id_: str, **fields: Any) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "id": id_, "ts": 1, **fields})
    return packed


def huge_picture() -> bytes:
    """The header of a png of 50,000 x 50,000 pixels, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def long_sound() -> bytes:
    """One hour of silence, which flac makes small."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 8000, dtype=np.int16), 8000, format="FLAC")
    return file.getvalue()


def bad_messages() -> dict[str, tuple[bytes | None, bytes, str, str]]:
    """By name: key, value, the field at fault, and words of the reason."""
    long_id = "x" * (MAX_ID_BYTES + 1)
    return {
        "not msgpack": (b"a", b"\xc1 this is no msgpack", "value", "is not msgpack"),
        "unknown version": (b"a", msgpack.packb({"v": 9, "id": "a"}), "v", "reads version 1"),
        "no modality": (b"a", value("a"), "value", "no modality"),
        "long id": (long_id.encode(), value(long_id, text="x"), "id", f"limit is {MAX_ID_BYTES}"),
        "key unlike the id": (b"b", value("a", text="x"), "key", "must be the id"),
        "broken picture": (
            b"a",
            value("a", image={"data": b"\x89PNG\r\n\x1a\n broken"}),
            "image",
            "",
        ),
        "huge picture": (b"a", value("a", image={"data": huge_picture()}), "image", "50000"),
        "broken sound": (b"a", value("a", audio={"data": b"RIFF broken"}), "audio", ""),
        "one-hour sound": (b"a", value("a", audio={"data": long_sound()}), "audio", "3600"),
        "text of 10 MB": (
            b"a",
            value("a", text="x" * 10_000_000),
            "text",
            f"10000000 bytes of UTF-8, the limit is {MAX_TEXT_BYTES}",
        ),
        "NaN label": (
            b"a",
            value("a", text="x", labels={"y": float("nan")}),
            "labels.y",
            "got nan",
        ),
        "wrong label type": (
            b"a",
            value("a", text="x", labels={"y": [3]}),
            "labels.y",
            "got int",
        ),
        "link that is not allowed": (
            b"a",
            value("a", image={"uri": "file:///etc/hostname"}),
            "image.uri",
            "BRAID_LINKS__ROOTS",
        ),
    }


def test_bad_records_become_dead_letters_and_their_neighbours_go_through(
    deployment: Deployment, tiny_model: Path
) -> None:
    bad = bad_messages()
    topic = deployment.settings.topic("records")
    producer = RawProducer(
        {
            "bootstrap.servers": deployment.settings.kafka.bootstrap,
            "message.max.bytes": 20_000_000,
            "enable.idempotence": True,  # order is kept when the first batch is sent again
        }
    )
    good: set[str] = set()
    for number, (name, (key, content, _, _)) in enumerate(bad.items()):
        for neighbour in (f"before{number}", f"after{number}"):
            record = coloured(number)
            producer.produce(
                topic,
                key=neighbour.encode(),
                partition=0,
                value=value(neighbour, text=record.text, image={"data": record.image}),
            )
            good.add(neighbour)
            if neighbour.startswith("before"):
                headers: list[tuple[str, str | bytes | None]] = [("case", name.encode())]
                producer.produce(topic, key=key, partition=0, value=content, headers=headers)
    assert producer.flush(30) == 0

    with running(deployment.settings, load(tiny_model)) as run:
        wait_until_idle(run, deployment.lag)

    assert {prediction["id"] for prediction in deployment.predictions()} == good
    assert {(message.key or b"").decode() for message in deployment.vectors()} == good
    dead = deployment.read("dead-letters")
    assert len(dead) == len(bad)
    for message, (name, (key, content, field, words)) in zip(dead, bad.items(), strict=True):
        reasons = {header: (raw or b"").decode() for header, raw in message.headers}
        assert message.key == key, name
        assert message.value == content, name
        assert reasons["field"] == field, (name, reasons)
        assert words in reasons["reason"], (name, reasons)
        assert reasons["reason"], name
        assert reasons["topic"] == topic
        assert reasons["partition"] == "0"
        assert int(reasons["offset"]) == 3 * list(bad).index(name) + 1


def test_a_deletion_reaches_vectors_and_a_nameless_one_is_a_dead_letter(
    deployment: Deployment, tiny_model: Path
) -> None:
    topic = deployment.settings.topic("records")
    producer = RawProducer({"bootstrap.servers": deployment.settings.kafka.bootstrap})
    producer.produce(topic, key=b"a", partition=1, value=value("a", text="a red tile"))
    producer.produce(topic, key=b"a", partition=1, value=None)
    producer.produce(topic, key=b"__progress", partition=1, value=None)
    producer.flush(30)
    with running(deployment.settings, load(tiny_model)) as run:
        wait_until_idle(run, deployment.lag)
    upsert, deletion = deployment.vectors()
    assert upsert.value is not None
    assert (deletion.key, deletion.value) == (b"a", None)
    assert dict(deletion.headers)["source"] == b"1"
    (dead,) = deployment.read("dead-letters")
    assert (dead.key, dead.value) == (b"__progress", None)
