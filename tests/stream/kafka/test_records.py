"""The schemas: what goes through, what becomes a dead letter, and with which reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.stream.errors import BadRecord
from braid.stream.kafka.schemas import (
    MAX_ID_BYTES,
    MAX_TEXT_BYTES,
    Blob,
    Record,
    Vector,
    decode_map,
    decode_record,
    decode_vector,
    encode_record,
    encode_vector,
)

GOOD: dict[str, Any] = {"v": 1, "id": "a", "ts": 1_700_000_000_000, "text": "a red bird"}


def decode(value: dict[str, Any], key: bytes | None = b"a") -> Record:
    return decode_record(key, msgpack.packb(value, use_bin_type=True))


def test_a_record_comes_back_as_it_was() -> None:
    record = Record(
        id="bird/1",
        ts=5,
        text="ein Vogel",
        image=Blob(data=b"png", media_type="image/png"),
        audio=Blob(uri="https://example.org/a.ogg"),
        labels={"category": "animals", "weight": 1.5, "tags": ["small", "grey"]},
        meta={"lang": "de", "tags": ["a", "b"], "n": 3, "x": None, "ok": True},
    )
    assert decode_record(b"bird/1", encode_record(record)) == record


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"v": 2}, "v", "reads version 1"),
        ({"v": True}, "v", "reads version 1"),
        ({"id": ""}, "id", "non-empty"),
        ({"id": 7}, "id", "got int"),
        (
            {"id": "x" * (MAX_ID_BYTES + 1)},
            "id",
            f"257 bytes of UTF-8, the limit is {MAX_ID_BYTES}",
        ),
        ({"id": "__progress"}, "id", "reserved"),
        ({"id": "b"}, "key", "the key must be the id"),
        ({"ts": "yesterday"}, "ts", "milliseconds"),
        ({"ts": -1}, "ts", "got -1"),
        ({"text": None}, "value", "no modality"),
        ({"text": 5}, "text", "got int"),
        ({"text": "x" * (10 * 1024 * 1024)}, "text", f"the limit is {MAX_TEXT_BYTES}"),
        ({"image": b"png"}, "image", "must be a map"),
        ({"image": {}}, "image", "neither data nor uri"),
        ({"image": {"data": "png"}}, "image.data", "got str"),
        ({"audio": {"data": b""}}, "audio.data", "empty"),
        ({"audio": {"uri": "x" * 5000}}, "audio.uri", "2048"),
        ({"labels": ["animals"]}, "labels", "got list"),
        ({"labels": {"y": float("nan")}}, "labels.y", "must be a finite number, got nan"),
        ({"labels": {"y": [1, 2]}}, "labels.y", "class names only, got int"),
        ({"labels": {"y": ["a"] * 65}}, "labels.y", "65 class names, the limit is 64"),
        ({"labels": {"y": {"a": 1}}}, "labels.y", "got dict"),
        ({"labels": {"y": True}}, "labels.y", "got bool"),
        ({"labels": {str(n): 1 for n in range(65)}}, "labels", "65 tasks, the limit is 64"),
        ({"meta": {"a": {"b": 1}}}, "meta.a", "scalar"),
        ({"meta": {"a": float("inf")}}, "meta.a", "finite"),
        ({"meta": {"a": "x" * 20_000}}, "meta", "the limit is 16384"),
    ],
)
def test_what_breaks_the_schema_says_which_field_and_which_limit(
    change: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(BadRecord) as caught:
        decode(GOOD | change)
    assert caught.value.field == field
    assert words in caught.value.reason


@pytest.mark.parametrize("value", [b"\xc1", b"", b"not msgpack at all", b"\x93\x01\x02\x03"])
def test_bytes_that_are_no_msgpack_map_are_refused(value: bytes) -> None:
    with pytest.raises(BadRecord) as caught:
        decode_record(b"a", value)
    assert caught.value.field == "value"


def test_a_missing_version_and_a_missing_key_are_refused() -> None:
    with pytest.raises(BadRecord, match="v: is missing"):
        decode({"id": "a", "text": "x"})
    with pytest.raises(BadRecord, match="key: is null"):
        decode(GOOD, key=None)


def test_unknown_fields_are_left_out_and_counted() -> None:
    unknown: Counter[str] = Counter()
    value = GOOD | {"colour": "red", "image": {"uri": "file:///a", "width": 3}}
    record = decode_record(b"a", msgpack.packb(value), unknown=unknown)
    assert record.text == "a red bird"
    assert unknown == {"colour": 1, "image.width": 1}


def test_the_producer_refuses_what_the_worker_would_refuse() -> None:
    with pytest.raises(BadRecord, match=r"labels\.y"):
        encode_record(Record(id="a", ts=1, text="x", labels={"y": float("nan")}))
    with pytest.raises(BadRecord, match="send a link"):
        encode_record(Record(id="a", ts=1, image=Blob(data=b"x" * (16 * 1024 * 1024))))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_bad_record(value: bytes) -> None:
    try:
        decode_record(b"a", value)
    except BadRecord as error:
        assert error.field  # noqa: PT017


@pytest.mark.slow
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**60), 2**60)
        | st.floats()
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    ),
    st.sampled_from(["v", "id", "ts", "text", "image", "audio", "labels", "meta"]),
)
def test_no_value_in_any_field_raises_anything_but_bad_record(value: Any, field: str) -> None:
    try:
        packed = msgpack.packb(GOOD | {field: value}, use_bin_type=True)
    except (ValueError, UnicodeEncodeError):
        return  # not packable: it cannot arrive
    try:
        decode_record(b"a", packed)
    except BadRecord as error:
        assert error.reason  # noqa: PT017


def test_vectors_come_back_exactly() -> None:
    unit = np.array([0.6, 0.8], dtype=np.float32)
    vector = Vector(
        id="a", ts=1, space="s", model="m", fused=unit, by={"text": unit}, meta={"k": 1}, source=9
    )
    back = decode_vector(encode_vector(vector))
    assert np.array_equal(back.fused, unit)
    assert np.array_equal(back.by["text"], unit)
    assert (back.id, back.space, back.model, back.meta, back.source) == ("a", "s", "m", {"k": 1}, 9)
    assert "engine" not in decode_map(encode_vector(vector))  # torch in float32
    on = {"text": "torch int8"}
    assert decode_vector(encode_vector(replace(vector, engine=on))).engine == on
