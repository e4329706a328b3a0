"""The schemas and the AsyncAPI document of `docs/reference/`, and messages of the code."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgpack
import numpy as np
import pytest

from braid.encoders.model.null import NullModel
from braid.encoders.output_statistics import Tally
from braid.encoders.types import Embedding, Sample
from braid.stream.errors import BadRecord
from braid.stream.kafka import schemas
from braid.stream.kafka.schemas import Blob, Record, Vector
from braid.stream.kafka.value_format import JSON, MSGPACK, ValueFormat
from braid.stream.registry.versions import Champion
from braid.stream.worker.join.state import Field, State, part_value
from tests.npm import installed

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
UNIT = np.array([0.6, 0.8], dtype=np.float32)
FULL = Record(
    id="a",
    ts=1,
    text="x",
    image=Blob(data=b"png", media_type="image/png"),
    audio=Blob(uri="https://example.org/a.ogg"),
    labels={"kind": "bird", "many": ["a", "b"], "price": 2.5},
    meta={"lang": "en", "tags": ["x", 1, None], "ok": True},
)


def checked(name: str, value: Any) -> list[str]:
    """What is wrong with a value by a schema of the reference."""
    schema = json.loads((REFERENCE / "schemas" / f"{name}.json").read_text())
    validator = jsonschema_rs.validator_for(schema)
    return [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(value)]


def plain(value: bytes) -> Any:
    """A value of Kafka as JSON's types: bin of msgpack is base64."""

    def text(part: Any) -> Any:
        if isinstance(part, bytes):
            return base64.b64encode(part).decode()
        if isinstance(part, dict):
            return {name: text(each) for name, each in part.items()}
        return [text(each) for each in part] if isinstance(part, list) else part

    return json.loads(value) if value[:1] == b"{" else text(msgpack.unpackb(value))


def embedding() -> Embedding:
    model = NullModel(2)
    (made,) = model.encode([model.prepare(Sample(id="a", text="words"))])
    return made


@pytest.mark.parametrize("record", [FULL, Record(id="a", ts=0, text="x")])
def test_records_fit(record: Record) -> None:
    assert checked("record", plain(schemas.encode_record(record))) == []
    expected = State(fields={("text", ""): Field(1, 1, "x")}, expects=("text", "image"))
    assert checked("part", plain(part_value("a", expected))) == []


@pytest.mark.parametrize("form", [MSGPACK, JSON])
@pytest.mark.parametrize("engine", [{}, {"text": "torch int8"}])
def test_what_workers_publish_fits(form: ValueFormat, engine: dict[str, str]) -> None:
    row = Vector(
        id="a",
        ts=1,
        space="s",
        model="m",
        fused=UNIT,
        by={"text": UNIT},
        meta=FULL.meta,
        source=9,
        engine=engine,
    )
    assert checked("vector", plain(schemas.encode_vector(row, form=form))) == []
    assert checked("progress", plain(schemas.encode_progress(7, form=form))) == []
    tasks = {name: task.to_map() for name, task in embedding().tasks.items()}
    assert tasks
    for canary in (None, {"number": 1, "model": "m", "tasks": tasks, "labels": {}}):
        prediction = schemas.encode_prediction(
            id="a",
            ts=1,
            model="m",
            tasks=tasks,
            source=(0, 1),
            latency_ms=1.5,
            canary=canary,
            form=form,
        )
        assert checked("prediction", plain(prediction)) == []


def test_the_other_topics_fit() -> None:
    tally = Tally()
    tally.add(embedding())
    for one in (tally, Tally()):
        assert checked("statistics", plain(schemas.encode_tally(one))) == []
    champion = Champion(
        seq=1, name="m", version=1, space="s", generation="g0001", at_ms=1, why="first"
    )
    assert checked("models", {"v": 1, **asdict(champion), "uri": "file:///x", "sha256": None}) == []
    assert checked("models", {"v": 1, "partitions": 6}) == []
    for model in (None, "m"):
        headers = schemas.dead_letter_headers(
            BadRecord("id", "x"), topic="t", partition=0, offset=1, ts=2, model=model
        )
        texts = {name: value.decode() for name, value in headers}
        assert checked("dead-letter-headers", texts) == []


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        ("record", {"v": 2}, "/v"),
        ("record", {"id": ""}, "/id"),
        ("record", {"ts": -1}, "/ts"),
        ("record", {"image": {"media_type": "image/png"}}, "/image"),
        ("record", {"labels": {"kind": {"a": 1}}}, "/labels"),
        ("part", {"expects": ["smell"]}, "/expects"),
    ],
)
def test_what_does_not_fit_is_noticed(name: str, change: dict[str, Any], wrong: str) -> None:
    value = plain(schemas.encode_record(FULL)) | change
    assert any(str(error).startswith(f"['{wrong[1:]}'") for error in checked(name, value)), checked(
        name, value
    )


def test_a_record_without_a_modality_does_not_fit() -> None:
    assert checked("record", {"v": 1, "id": "a"}) != []


@pytest.mark.parametrize("name", ["vector", "prediction", "progress", "statistics"])
def test_a_field_that_nobody_described_is_noticed(name: str) -> None:
    assert any("new" in error for error in checked(name, {"v": 1, "new": 1}))


@pytest.mark.slow
def test_the_asyncapi_document_is_valid_by_its_own_schema() -> None:
    specs = installed("@asyncapi/specs@6.11.1")
    file = specs / "@asyncapi" / "specs" / "schemas" / "3.0.0-without-$id.json"
    document = json.loads((REFERENCE / "asyncapi.json").read_text())
    schema = json.loads(file.read_text())
    validator = jsonschema_rs.validator_for(schema)
    assert [error.message for error in validator.iter_errors(document)] == []
    del document["info"]["title"]
    assert not validator.is_valid(document)


def test_the_asyncapi_document_has_what_the_schemas_say() -> None:
    document = json.loads((REFERENCE / "asyncapi.json").read_text())
    messages = document["components"]["messages"]
    for file in (REFERENCE / "schemas").glob("*.json"):
        schema = json.loads(file.read_text())
        del schema["$schema"], schema["title"]
        if file.stem == "dead-letter-headers":
            assert messages["dead-letter"]["headers"] == schema
        else:
            assert messages[file.stem]["payload"] == schema
    used = {one for channel in document["channels"].values() for one in channel["messages"]}
    assert used == set(messages)
    described = {name.partition(".")[0] for name in document["channels"]}
    assert {"records", "parts", "vectors", "predictions", "dead-letters"} <= described
