"""Protobuf sources: schemas by protoc, values with and without presence, the bounds."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from braid.stream.errors import BadRecord, ConfigError
from braid.stream.settings import Settings
from braid.stream.settings.source_groups import Source
from braid.stream.sources.formats import value_decoder
from braid.stream.sources.protobuf import _indexes, decode
from braid.stream.sources.protobuf_schema import compiled

pytestmark = pytest.mark.slow  # starts protoc

PRODUCT = """
syntax = "proto3";
package shop;
import "shop/common.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/wrappers.proto";
message Product {
  int64 id = 1;
  string title = 2;
  optional string body = 3;
  bytes photo = 4;
  repeated string tags = 5;
  map<string, double> prices = 6;
  Kind kind = 7;
  Product like = 8;
  google.protobuf.Timestamp at = 9;
  google.protobuf.Struct more = 10;
  google.protobuf.Int32Value stock = 11;
  Maker maker = 12;
  repeated float vector = 13;
  repeated int32 counts = 14;
  oneof either { string left = 15; int32 right = 16; }
  repeated Empty empties = 17;
  message Empty {}
}
enum Kind { BIRD = 0; FISH = 1; }
"""
COMMON = 'syntax = "proto3"; package shop; message Maker { string name = 1; }'
TEXTS = {"main.proto": PRODUCT, "shop/common.proto": COMMON}


@pytest.fixture(scope="module")
def product() -> Any:
    """The descriptor of shop.Product."""
    (descriptor,) = compiled("main.proto", TEXTS)
    return descriptor


def test_fields_are_read_with_their_defaults_and_googles_types_as_in_json(product: Any) -> None:
    message = GetMessageClass(product)()
    assert decode(b"", 0, product) == {
        "id": 0,
        "title": "",
        "photo": b"",
        "tags": [],
        "prices": {},
        "kind": "BIRD",
        "vector": [],
        "counts": [],
        "empties": [],
    }
    message.id, message.title, message.photo = 2**60, "a bird", b"\xff"
    message.tags.extend(["a", "b"])
    message.prices["eur"] = 2.5
    message.kind = 1
    message.like.title = "another"
    message.at.FromJsonString("2026-01-02T03:04:05Z")
    message.more.update({"a": [1, "x"]})
    message.stock.value = 0
    message.maker.name = "M"
    message.vector.extend([0.5, 1.0])
    message.right = 0
    value = decode(b"xx" + message.SerializeToString(), 2, product)
    assert value["like"]["title"] == "another"
    del value["like"]
    assert value == {
        "id": 2**60,
        "title": "a bird",
        "photo": b"\xff",
        "tags": ["a", "b"],
        "prices": {"eur": 2.5},
        "kind": "FISH",
        "at": "2026-01-02T03:04:05Z",
        "more": {"a": [1.0, "x"]},
        "stock": 0,
        "maker": {"name": "M"},
        "vector": [0.5, 1.0],
        "counts": [],
        "right": 0,
        "empties": [],
    }


def test_an_unknown_enum_is_a_number(product: Any) -> None:
    assert decode(b"\x38\x09", 0, product)["kind"] == 9


def test_a_schema_may_be_base64_of_its_descriptor(product: Any) -> None:
    def serialised(file: Any) -> str:
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        return base64.b64encode(proto.SerializeToString()).decode()

    common = product.fields_by_name["maker"].message_type.file
    for other in (serialised(common), COMMON):
        schemas = {"main.proto": serialised(product.file), "shop/common.proto": other}
        (again,) = compiled("main.proto", schemas)
        assert decode(field(2, b"x"), 0, again)["title"] == "x"
    itself = FileDescriptorProto(name="main.proto", dependency=["main.proto"])
    with pytest.raises(ValueError, match=r"main\.proto is no valid descriptor"):
        compiled(
            "main.proto", {"main.proto": base64.b64encode(itself.SerializeToString()).decode()}
        )


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    size, out = len(content), bytearray()
    tag = number << 3 | 2
    for value in (tag, size):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out) + content


def nested(depth: int) -> bytes:
    raw = b""
    for _ in range(depth):
        raw = field(8, raw)
    return raw


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (field(17, b"") * 70_000, "65536 objects"),
        (field(5, b"") * 70_000, "65536 objects"),
        (field(14, b"\1" * 70_000), "65536 objects"),
        (field(13, bytes(4 * 70_000)), "65536 objects"),
        (field(99, b"") * 70_000, "65536 objects"),
        (nested(17), "deeper than the limit of 16"),
        (b"\x23" * 20, "groups do not match"),
        (b"\x24", "groups do not match"),
        (b"\x0f", "wire type 7"),
        (field(2, b"x")[:-1], "ends early"),
        (b"\x09\0\0", "ends early"),
        (b"\xff" * 11, "ends early"),
        (field(2, b"\xff"), "is no shop.Product"),
    ],
)
def test_hostile_values_are_refused(product: Any, raw: bytes, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        decode(raw, 0, product)


def test_what_is_within_the_bounds_passes(product: Any) -> None:
    assert len(decode(field(13, bytes(4 * 65_000)), 0, product)["vector"]) == 65_000
    assert len(decode(field(4, bytes(4_000_000)), 0, product)["photo"]) == 4_000_000
    assert decode(nested(14), 0, product)["like"]["like"]["id"] == 0


@given(st.binary(max_size=200))
def test_no_bytes_raise_another_error(raw: bytes) -> None:
    (descriptor,) = COMPILED
    with contextlib.suppress(BadRecord):
        decode(raw, 0, descriptor)


COMPILED = compiled("main.proto", TEXTS)


@pytest.mark.parametrize(
    ("behind", "path", "size"),
    [
        (b"\0", [0], 1),
        (b"\2\0", [0], 2),
        (b"\4\2\6", [1, 3], 3),
    ],
)
def test_the_indexes_of_the_message(behind: bytes, path: list[int], size: int) -> None:
    assert _indexes(b"\0\0\0\0\7" + behind + b"rest") == (path, 5 + size)


@pytest.mark.parametrize("behind", [b"", b"\1", b"\x7f", b"\2", b"\2\1", b"\xff\xff\xff"])
def test_indexes_that_are_none_are_refused(behind: bytes) -> None:
    with pytest.raises(BadRecord):
        _indexes(b"\0\0\0\0\7" + behind)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"main.proto": "message"}, "main.proto"),
        ({"main.proto": PRODUCT}, "shop/common.proto"),
        (
            {**TEXTS, "--python_out=x.proto": 'syntax = "proto3"; message'},
            r"--python_out=x\.proto:1",
        ),
        ({"main.proto": PRODUCT, "../../x.proto": ""}, "is no path of a schema"),
        ({"main.proto": PRODUCT, "/x.proto": ""}, "is no path of a schema"),
    ],
)
def test_a_schema_that_does_not_compile_says_why(texts: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compiled("main.proto", texts)


def test_a_schema_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    options: dict[str, Any] = {"topic": "t", "map": {"id": "id", "text": "title"}}

    def made(file: str, message: str | None = "shop.Product") -> Any:
        path = tmp_path / file
        return value_decoder(
            Settings(), Source(format="protobuf", schema_file=path, message=message, **options)
        )

    assert made("main.proto")(field(2, b"x"))["title"] == "x"
    for file, message, reason in (
        ("main.proto", None, "needs the message"),
        ("main.proto", "shop.Fish", r"there is no message shop\.Fish"),
        ("none.desc", "x.Y", "No such file"),
    ):
        with pytest.raises(ConfigError, match=reason):
            made(file, message)
    (tmp_path / "bad.desc").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"neither a \.proto file nor a descriptor set"):
        made("bad.desc")
