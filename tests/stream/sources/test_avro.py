"""Avro sources: values as fastavro writes them, the bounds, schemas that do not fit."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.stream.errors import BadRecord, ConfigError
from braid.stream.settings import Settings
from braid.stream.settings.source_groups import Source
from braid.stream.sources.avro import decode, parsed
from braid.stream.sources.formats import value_decoder
from braid.stream.sources.schema_registry import Reference, Schema

PRODUCT = {
    "type": "record",
    "name": "shop.Product",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "title", "type": ["null", "string"]},
        {"name": "photo", "type": "bytes"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "prices", "type": {"type": "map", "values": "double"}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["BIRD", "FISH"]}},
        {"name": "mark", "type": {"type": "fixed", "name": "Mark", "size": 4}},
        {"name": "like", "type": ["null", "shop.Product"]},
        {"name": "flags", "type": {"type": "array", "items": "boolean"}},
        {"name": "share", "type": "float"},
        {"name": "count", "type": ["int", "string"]},
    ],
}


def written(value: Any, schema: Any = PRODUCT) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), value)
    return file.getvalue()


def registered(schema: Any, *references: Reference) -> Schema:
    return Schema("AVRO", json.dumps(schema), references)


def no_reference(reference: Reference) -> Schema:
    raise AssertionError(reference)


def read(raw: bytes, schema: Any = PRODUCT) -> Any:
    return decode(raw, 0, parsed(registered(schema), no_reference))


def product(number: int, **more: Any) -> dict[str, Any]:
    base = {
        "id": number,
        "title": "a bird",
        "photo": b"\xff\x00",
        "tags": ["a", ""],
        "prices": {"eur": 2.5},
        "kind": "FISH",
        "mark": b"abcd",
        "like": None,
        "flags": [True, False],
        "share": 0.5,
        "count": 3,
    }
    return base | more


names = st.text(max_size=8)
products = st.recursive(
    st.none(),
    lambda like: st.fixed_dictionaries(
        {
            "id": st.integers(-(2**63), 2**63 - 1),
            "title": st.none() | st.text(),
            "photo": st.binary(max_size=300),
            "tags": st.lists(names, max_size=5),
            "prices": st.dictionaries(names, st.floats(allow_nan=False), max_size=4),
            "kind": st.sampled_from(["BIRD", "FISH"]),
            "mark": st.binary(min_size=4, max_size=4),
            "like": like,
            "flags": st.lists(st.booleans(), max_size=3),
            "share": st.floats(width=32, allow_nan=False),
            "count": st.integers(-(2**31), 2**31 - 1) | st.text(),
        }
    ),
    max_leaves=3,
).filter(bool)


@given(products)
def test_what_fastavro_writes_is_read(value: Any) -> None:
    assert read(written(value)) == value


@given(products, st.data())
def test_a_damaged_value_is_refused_or_read_but_never_raises_another_error(
    value: Any, data: st.DataObject
) -> None:
    raw = bytearray(written(value))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadRecord):
        read(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


def test_logical_types_become_plain_values() -> None:
    kinds: dict[str, tuple[str, Any, Any]] = {
        "timestamp-millis": (
            "long",
            datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
            "2026-01-02T03:04:05+00:00",
        ),
        "date": ("int", datetime.date(2026, 1, 2), "2026-01-02"),
        "time-millis": ("int", datetime.time(3, 4, 5), "03:04:05"),
        "decimal": ("bytes", Decimal("12.34"), 12.34),
        "uuid": (
            "string",
            UUID("12345678123456781234567812345678"),
            "12345678-1234-5678-1234-567812345678",
        ),
    }
    for logical, (kind, value, plain) in kinds.items():
        one = {"type": kind, "logicalType": logical, "precision": 8, "scale": 2}
        fields = [{"name": "at", "type": {"type": "array", "items": one}}]
        schema = {"type": "record", "name": "R", "fields": fields}
        assert read(written({"at": [value]}, schema), schema) == {"at": [plain]}, logical


def varint(number: int) -> bytes:
    """A zigzag varint."""
    zigzag, out = (number << 1) ^ (number >> 63), bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def array_of(items: Any) -> Any:
    fields = [{"name": "a", "type": {"type": "array", "items": items}}]
    return {"type": "record", "name": "R", "fields": fields}


EMPTY = {"type": "record", "name": "E", "fields": []}
NESTED = {
    "type": "record",
    "name": "N",
    "fields": [{"name": "next", "type": ["null", "N"]}],
}


@pytest.mark.parametrize(
    ("schema", "raw", "reason"),
    [
        (array_of("null"), varint(2**60) + b"\0", "65536 objects"),
        (array_of(EMPTY), varint(2**60) + b"\0", "65536 objects"),
        (array_of("null"), varint(-(2**60)) + varint(0) + b"\0", "65536 objects"),
        (array_of("int"), varint(70_000) + b"\2" * 70_000 + b"\0", "65536 objects"),
        (array_of("null"), (varint(60_000)) * 2 + b"\0", "65536 objects"),
        (NESTED, b"\2" * 20 + b"\0", "deeper than the limit of 16"),
        (array_of("string"), varint(1) + varint(2**40), "ends early"),
        (array_of("string"), varint(1) + varint(-5), "ends early"),
        (array_of("long"), varint(1) + b"\xff" * 11, "a number does not end"),
        (NESTED, varint(7), "no such branch"),
        (NESTED, varint(-1), "no such branch"),
        (NESTED, b"\0\0", "1 bytes more"),
        (NESTED, b"", "does not end"),
    ],
)
def test_hostile_values_are_refused_before_they_are_decoded(
    schema: Any, raw: bytes, reason: str
) -> None:
    with pytest.raises(BadRecord, match=reason):
        read(raw, schema)


def test_what_is_within_the_bounds_passes() -> None:
    assert len(read(varint(65_000) + b"\0", array_of("null"))["a"]) == 65_000
    big = product(1, photo=bytes(4_000_000))
    assert read(written(big)) == big
    assert math.isclose(read(written(product(1)))["share"], 0.5)


def test_a_schema_may_refer_to_others() -> None:
    inner = {"type": "record", "name": "a.Inner", "fields": [{"name": "x", "type": "int"}]}
    middle = {
        "type": "record",
        "name": "a.Middle",
        "fields": [{"name": "inner", "type": "a.Inner"}],
    }
    outer = {
        "type": "record",
        "name": "b.Outer",
        "fields": [{"name": "one", "type": "a.Middle"}, {"name": "two", "type": "a.Inner"}],
    }
    to_inner, to_middle = Reference("a.Inner", "inner", 1), Reference("a.Middle", "middle", 1)
    known = {to_inner: registered(inner), to_middle: registered(middle, to_inner)}
    schema = parsed(registered(outer, to_middle, to_inner), known.__getitem__)
    assert decode(b"\6\10", 0, schema) == {"one": {"inner": {"x": 3}}, "two": {"x": 4}}


@pytest.mark.parametrize(
    "schema", [Schema("PROTOBUF", ""), Schema("AVRO", "{"), Schema("AVRO", '"no"')]
)
def test_a_schema_that_cannot_be_used_is_a_value_error(schema: Schema) -> None:
    with pytest.raises(ValueError):
        parsed(schema, no_reference)


def test_a_schema_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "product.avsc"
    file.write_text(json.dumps(PRODUCT))
    source = Source(topic="t", format="avro", schema_file=file, map={"id": "id", "text": "title"})
    assert value_decoder(Settings(), source)(written(product(7)))["id"] == 7
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"schema_file: .*product\.avsc"):
        value_decoder(Settings(), source)
    with pytest.raises(ConfigError, match=r"schema_registry\.url is not set"):
        value_decoder(Settings(), source.model_copy(update={"schema_file": None}))
