"""Messages of other topics as records: paths, templates, media, keys, Debezium, limits."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgpack
import pytest

from braid.stream.errors import BadRecord, ConfigError
from braid.stream.kafka.client import Message
from braid.stream.kafka.schemas import decode_record
from braid.stream.settings import Settings
from braid.stream.settings.source_groups import Source
from braid.stream.sources.converter import Converter

TIME = 1_700_000_000_123
PICTURE = b"\x89PNG picture"


def converter(**options: Any) -> Converter:
    """A source whose map is `map`, or the fields id and text."""
    mapping = options.pop("map", {"id": "id", "text": "text"})
    return Converter(Settings(), Source(topic="shop", map=mapping, **options))


def message(value: Any, key: bytes | None = None, **headers: str) -> Message:
    """A message with a JSON value; bytes and None stay as they are."""
    raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    return Message(
        "shop", 0, 7, key, raw, TIME, [(name, text.encode()) for name, text in headers.items()]
    )


def record(source: Converter, value: Any, key: bytes | None = None, **headers: str) -> Any:
    """The only record that a message becomes."""
    (output,) = source.outputs(message(value, key, **headers))
    assert (output.topic, output.value is None) == ("records", False)
    return decode_record(output.key, output.value or b"")


def changes(source: Converter, value: Any, key: bytes | None = None) -> list[tuple[str, Any]]:
    """(id, text) of each record that a message becomes; the text of a deletion is None."""
    return [
        (
            (output.key or b"").decode(),
            output.value and decode_record(output.key, output.value).text,
        )
        for output in source.outputs(message(value, key))
    ]


def refused(source: Converter, value: Any, key: bytes | None = None) -> BadRecord:
    with pytest.raises(BadRecord) as raised:
        source.outputs(message(value, key))
    return raised.value


def test_every_field_of_a_record_is_mapped() -> None:
    source = converter(
        map={
            "id": "sku",
            "ts": "changed",
            "text": "${title}: ${details.body}",
            "image": "photo",
            "audio": "sound",
            "labels": {"category": "tags[0]", "price": "price"},
            "meta": {"lang": "details.lang", "none": "nothing", "count": "length(tags)"},
        }
    )
    mapped = record(
        source,
        {
            "sku": 12,
            "changed": "2023-11-14T22:13:20.5Z",
            "title": "A bird",
            "details": {"body": "red", "lang": "en"},
            "photo": base64.b64encode(PICTURE).decode(),
            "sound": "https://example.org/a.ogg",
            "tags": ["animals", "red"],
            "price": 2.5,
        },
    )
    assert (mapped.id, mapped.ts, mapped.text) == ("12", 1_700_000_000_500, "A bird: red")
    assert (mapped.image.data, mapped.audio.uri) == (PICTURE, "https://example.org/a.ogg")
    assert mapped.labels == {"category": "animals", "price": 2.5}
    assert mapped.meta == {"lang": "en", "count": 2}


def test_key_headers_and_time_are_functions() -> None:
    source = converter(
        map={
            "id": "key()",
            "text": "text",
            "ts": "timestamp()",
            "meta": {"trace": "headers().trace"},
        }
    )
    mapped = record(source, {"text": "x"}, b"k1", trace="t1")
    assert (mapped.id, mapped.ts, mapped.meta) == ("k1", TIME, {"trace": "t1"})


def test_without_a_path_the_time_is_the_messages() -> None:
    assert record(converter(), {"id": "a", "text": "x"}).ts == TIME


@pytest.mark.parametrize(
    ("unit", "value", "ms"),
    [
        ("ms", 1_700_000_000_123, 1_700_000_000_123),
        ("s", 1_700_000_000, 1_700_000_000_000),
        ("s", 1_700_000_000.1234, 1_700_000_000_123),
        ("us", 1_700_000_000_123_456, 1_700_000_000_123),
        ("ns", 1_700_000_000_123_456_789, 1_700_000_000_123),
        ("s", "2023-11-14T22:13:20+01:00", 1_699_996_400_000),
        ("s", "2023-11-14", 1_699_920_000_000),
    ],
)
def test_times_of_every_unit(unit: str, value: Any, ms: int) -> None:
    mapping = {"id": "id", "text": "text", "ts": "at", "ts_unit": unit}
    assert record(converter(map=mapping), {"id": "a", "text": "x", "at": value}).ts == ms


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (base64.b64encode(PICTURE).decode(), PICTURE),
        ("_-8=", b"\xff\xef"),
        ("_-8", b"\xff\xef"),
        ("YWJj\nZGVm", b"abcdef"),
    ],
)
def test_base64_of_every_kind(value: str, data: bytes) -> None:
    source = converter(map={"id": "id", "image": "photo"})
    assert record(source, {"id": "a", "photo": value}).image.data == data


def test_a_data_uri_has_its_media_type() -> None:
    source = converter(map={"id": "id", "image": "photo"})
    uri = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    image = record(source, {"id": "a", "photo": uri}).image
    assert (image.data, image.media_type, image.uri) == (PICTURE, "image/png", None)


def test_bytes_of_msgpack_are_data() -> None:
    source = converter(format="msgpack", map={"id": "id", "image": "photo"})
    assert record(source, msgpack.packb({"id": "a", "photo": PICTURE})).image.data == PICTURE


def test_a_link_is_a_template_and_absent_without_its_parts() -> None:
    source = converter(
        map={"id": "id", "text": "${title} ${body}", "image": "https://cdn.example/${photo}"}
    )
    both = record(source, {"id": "a", "title": "x", "photo": "p.png"})
    assert (both.text, both.image.uri) == ("x ", "https://cdn.example/p.png")
    assert record(source, {"id": "a", "title": "x", "photo": ""}).image is None
    assert refused(source, {"id": "a", "title": "", "body": None}).field == "value"


def test_meta_may_be_one_object() -> None:
    source = converter(map={"id": "id", "text": "text", "meta": "attributes"})
    mapped = record(source, {"id": "a", "text": "x", "attributes": {"a": 1, "b": None, "c": ["d"]}})
    assert mapped.meta == {"a": 1, "c": ["d"]}


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        ({"text": "x"}, "map.id", "path 'id' gives nothing in the message"),
        ({"id": True, "text": "x"}, "map.id", "path 'id' gives True (bool), not a string"),
        ({"id": 1.5, "text": "x"}, "map.id", "path 'id' gives 1.5 (float)"),
        ({"id": "__x", "text": "x"}, "map.id", "gives an id that starts with '__'"),
        (
            {"id": "a", "text": ["x"]},
            "map.text",
            "path 'text' gives a list of 1 (list), not a text",
        ),
        ({"id": "a", "text": "x", "at": "noon"}, "map.ts", "path 'at' gives 'noon' (str), not a"),
        ({"id": "a", "text": "x", "at": -1}, "map.ts", "path 'at' gives ts, which must be"),
        ({"id": "a", "photo": "no/base64.png"}, "map.image", "neither base64 nor a link"),
        ({"id": "a", "photo": {"x": 1}}, "map.image", "not bytes, base64 or a link"),
        ({"id": "a", "text": "x", "kind": {"x": 1}}, "map.labels.kind", "path 'kind' gives labels"),
        ({"id": "a", "text": "x", "tags": 3}, "map.meta.tags", "cannot be evaluated"),
        ({"id": "a", "at": 1}, "value", "has no modality"),
        (b"{", "value", "is not JSON (1 bytes)"),
        (b"\xff", "value", "is not UTF-8"),
        (b'{"id": NaN}', "value", "NaN is not JSON"),
    ],
)
def test_what_does_not_map_names_its_path(value: Any, field: str, reason: str) -> None:
    mapping = {
        "id": "id",
        "text": "text",
        "ts": "at || timestamp()",
        "image": "photo",
        "labels": {"kind": "kind"},
        "meta": {"tags": "join(',', tags)"},
    }
    plain_ts = {**mapping, "ts": "at"} if isinstance(value, dict) and "at" in value else mapping
    error = refused(converter(map=plain_ts), value)
    assert error.field == field
    assert reason in error.reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"map": {"id": "a.[", "text": "t"}}, r"sources.shop.map.id: 'a.\[' is not JMESPath"),
        ({"map": {"id": "id", "text": "${t"}}, r"sources.shop.map.text: .* has no } after it"),
        ({"map": {"id": "id", "text": "${a ||}"}}, r"sources.shop.map.text: 'a \|\|' is not JMES"),
        ({"map": {"id": "id", "text": "upper(t)"}}, r"map.text: .* there is no function upper\(\)"),
        ({"map": {"id": "id", "text": "t", "meta": {"x": "!"}}}, r"sources.shop.map.meta.x: "),
        ({"where": "a ==", "map": {"id": "id", "text": "t"}}, r"sources.shop.where: "),
        ({"map": {"id": "id"}}, "none of text, image, audio, video is mapped"),
        ({"map": {"id": "id", "text": "t", "expects": ["smell"]}}, "expects: smell"),
    ],
)
def test_a_bad_path_is_an_error_at_start_that_names_it(options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        converter(**options)


@pytest.mark.parametrize("topic", ["records", "predictions", "vectors.g0007", "parts"])
def test_braids_own_topics_are_no_sources(topic: str) -> None:
    with pytest.raises(ConfigError, match="one of braid's own"):
        Converter(Settings(), Source(topic=topic, map={"id": "id", "text": "t"}))


def test_a_message_without_a_value_deletes_by_its_key() -> None:
    assert changes(converter(map={"id": "id || key()", "text": "text"}), None, b"a") == [
        ("a", None)
    ]
    structured = converter(key_format="json", map={"id": "${tenant}/${id}", "text": "text"})
    assert changes(structured, None, b'{"tenant": "t", "id": 3}') == [("t/3", None)]
    error = refused(converter(), None, b"a")
    assert (error.field, "in the key of a message without a value" in error.reason) == (
        "map.id",
        True,
    )
    assert refused(converter(), None).field == "map.id"


def test_a_trace_goes_on_from_the_message_to_its_record() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = message({"id": "a", "text": "x"}, traceparent=trace, other="y")
    (output,) = converter().outputs(sent)
    assert output.headers == [("traceparent", trace.encode())]


def test_where_leaves_messages_out() -> None:
    source = converter(where="kind == 'bird'")
    assert changes(source, {"id": "a", "text": "x", "kind": "bird"}) == [("a", "x")]
    assert changes(source, {"id": "a", "text": "x", "kind": "fish"}) == []


def test_a_part_has_what_it_expects() -> None:
    for expects, document in ((["text", "image"], {}), ("wants", {"wants": ["text", "image"]})):
        source = converter(map={"id": "id", "text": "text", "expects": expects})
        (output,) = source.outputs(message({"id": "a", "text": "x", **document}))
        assert output.topic == "parts"
        value = msgpack.unpackb(output.value)
        assert (value["text"], value["expects"]) == ("x", ["text", "image"])


# ---- Debezium


def envelope(op: str, before: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    return {"op": op, "before": before, "after": after, "ts_ms": TIME + 5, **more}


def row(id_: Any, text: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "text": text, **more}


@pytest.fixture
def debezium() -> Converter:
    return converter(envelope="debezium")


@pytest.mark.parametrize("op", ["c", "r", "u"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_written_row_is_a_record(debezium: Converter, op: str, wrapped: bool) -> None:
    value: Any = envelope(op, after=row(1, "x"))
    value = {"schema": {"type": "struct"}, "payload": value} if wrapped else value
    assert changes(debezium, value) == [("1", "x")]


def test_a_deleted_row_deletes_its_record(debezium: Converter) -> None:
    assert changes(debezium, envelope("d", before=row(1, "x"))) == [("1", None)]
    assert changes(debezium, None, b'{"id": 1}') == []  # what follows it for compaction
    key = b'{"schema": {}, "payload": {"id": 1}}'
    assert changes(debezium, envelope("d"), key) == [("1", None)]
    assert "the row that was deleted" in refused(debezium, envelope("d"), b"{}").reason


def test_an_update_of_the_id_deletes_the_old_one(debezium: Converter) -> None:
    update = envelope("u", before=row(1, "x"), after=row(2, "y"))
    assert changes(debezium, update) == [("1", None), ("2", "y")]
    update = envelope("u", before=row(1, "x"), after=row(1, "y"))
    assert changes(debezium, update) == [("1", "y")]


def test_a_row_that_where_no_longer_takes_is_deleted() -> None:
    source = converter(envelope="debezium", where="live")
    assert changes(source, envelope("c", after=row(1, "x", live=False))) == []
    assert changes(source, envelope("u", after=row(1, "x", live=True))) == [("1", "x")]
    assert changes(source, envelope("u", after=row(1, "x", live=False))) == [("1", None)]


def test_the_envelope_is_a_function() -> None:
    source = converter(
        envelope="debezium", map={"id": "id", "text": "text", "ts": "envelope().ts_ms"}
    )
    assert record(source, envelope("c", after=row(1, "x"))).ts == TIME + 5


@pytest.mark.parametrize(
    ("value", "field", "reason"),
    [
        (row(1, "x"), "value", "it has no op"),
        (envelope("t"), "op", "is 't', a change of a row is one of c, r, u, d"),
        (envelope("c"), "after", "is no row though op is c"),
        ({"schema": {}, "payload": None}, "value", "it has no op"),
    ],
)
def test_what_is_no_change_of_a_row_is_refused(
    debezium: Converter, value: Any, field: str, reason: str
) -> None:
    error = refused(debezium, value)
    assert (error.field, error.stage) == (field, "map")
    assert reason in error.reason


# ---- limits


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (b'{"id": "a", "x": [' + b"[]," * 40_000 + b"[]]}", "65536 objects"),
        (b'{"id": "a", "x": [' + b"1," * 70_000 + b"1]}", "65536 objects"),
        (b'{"id": "a", "x": ' + b"[" * 17 + b"]" * 17 + b"}", "deeper than the limit of 16"),
        (b"[" * 1_000_000, "objects"),
        (b'{"id": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b'"' + b"x" * (16 * 1024 * 1024) + b'"', "the limit is 16777216"),
    ],
)
def test_json_is_bounded(value: bytes, limit: str) -> None:
    assert limit in refused(converter(), value).reason


def test_a_text_full_of_commas_and_brackets_is_none_too_many() -> None:
    text = "[{,:" * 100_000
    assert record(converter(), {"id": "a", "text": text}).text == text


def test_the_prefix_of_a_schema_registry_is_skipped() -> None:
    value = b"\x00\x00\x00\x00\x07" + json.dumps({"id": "a", "text": "x"}).encode()
    assert changes(converter(), value) == [("a", "x")]


def test_a_value_may_be_one_picture_or_one_text() -> None:
    pictures = converter(format="bytes", map={"id": "position()", "image": "@"})
    made = record(pictures, PICTURE)
    assert (made.id, made.image.data, made.text) == ("shop-0-7", PICTURE, None)
    assert refused(pictures, b"").field == "value"
    lines = converter(format="text", map={"id": "key()", "text": "@", "meta": {"n": "length(@)"}})
    made = record(lines, "Grüße".encode(), b"k")
    assert (made.id, made.text) == ("k", "Grüße")
    assert refused(lines, b"\xff", b"k").reason == "is not UTF-8"
    assert changes(lines, None, b"k") == [("k", None)]
    with pytest.raises(ValueError, match="debezium is of rows, and format = 'text' has none"):
        converter(format="text", envelope="debezium")
