"""What one record may cost: its objects, depth, names, numbers and the texts of its errors."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from typing import Any

import msgpack
import pytest

from braid.stream.dead_letters.letters import view
from braid.stream.errors import FIELD_CHARS, REASON_CHARS, BadRecord
from braid.stream.kafka.fields import MAX_LABELS_BYTES, MAX_UNKNOWN_NAMES
from braid.stream.kafka.packing import MAX_DEPTH, MAX_NAME_BYTES, MAX_OBJECTS
from braid.stream.kafka.schemas import (
    MAX_RECORD_BYTES,
    MAX_TS,
    check_deletion,
    decode_record,
)

GOOD: dict[str, Any] = {"v": 1, "id": "a", "ts": 1_700_000_000_000, "text": "a red bird"}


def nested(depth: int, *, map_: bool = False) -> bytes:
    """msgpack of 1 within `depth` lists, or maps."""
    return (b"\x81\xa1a" if map_ else b"\x91") * depth + b"\x01"


def packed(field: str | None = None, value: bytes = b"") -> bytes:
    """GOOD with one field in msgpack of its own, which a packer could not make."""
    plain = {name: part for name, part in GOOD.items() if name != field}
    out = bytearray(msgpack.packb(plain))
    if field is not None:
        out[0] += 1
        out += msgpack.packb(field) + value
    return bytes(out)


def refused(value: bytes, key: bytes | None = b"a") -> BadRecord:
    with pytest.raises(BadRecord) as caught:
        decode_record(key, value, unknown=Counter())
    error = caught.value
    assert len(error.field) <= FIELD_CHARS
    assert 0 < len(error.reason) <= REASON_CHARS
    return error


@pytest.mark.parametrize("field", ["v", "ts", "id", "text", "image", "labels", "meta"])
@pytest.mark.parametrize("map_", [False, True])
@pytest.mark.parametrize("depth", [MAX_DEPTH // 2, 1000, 100_000])
def test_a_deep_value_in_any_field_is_a_bad_record(field: str, map_: bool, depth: int) -> None:
    refused(packed(field, nested(depth, map_=map_)))


def test_a_deep_value_in_an_unknown_field_is_left_out_within_the_limit_only() -> None:
    unknown = Counter[str]()
    within = packed("new", nested(MAX_DEPTH - 1))
    assert decode_record(b"a", within, unknown=unknown).text == GOOD["text"]
    assert unknown == {"new": 1}
    beyond = refused(packed("new", nested(MAX_DEPTH)))
    assert f"limit of {MAX_DEPTH}" in beyond.reason


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_a_deep_value_beside_the_recursion_limit_is_a_bad_record(depth: int) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        refused(packed("v", nested(depth)))
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("key", [b"\x01", b"\xc0", b"\xc4\x01a", b"\xcb" + bytes(8), b"\xc2"])
@pytest.mark.parametrize("field", ["meta", "labels", "image", "new"])
def test_names_are_strings(field: str, key: bytes) -> None:
    """Integers could be chosen so that a dict takes the square of their number to build."""
    error = refused(packed(field, b"\x81" + key + b"\xa1x"))
    assert error.field == "value"


def bombs() -> dict[str, bytes]:
    """Values of 16 MiB that become hundreds of megabytes of objects, or would."""
    room = MAX_RECORD_BYTES - 100
    chunk = b"\xdc\xff\xff" + b"\x90" * 65_535
    return {
        "one list of empty lists": b"\xdd" + room.to_bytes(4, "big") + b"\x90" * room,
        "lists of empty lists": b"\xdc\x00\xff" + chunk * 255,
        "lists in lists": b"\xdc\xff\xff" * (room // 3),
        "lists that claim more than there is": b"\xdd\xff\xff\xff\xff" * (room // 5),
        "maps in maps": b"\x81\xa1a" * (room // 3),
        "empty maps": b"\xdc\x00\xff" + (b"\xdc\xff\xff" + b"\x80" * 65_535) * 255,
    }


@pytest.mark.parametrize("name", list(bombs()))
def test_16_mib_do_not_become_a_gigabyte_of_objects(name: str) -> None:
    value = packed("new", bombs()[name])
    assert len(value) <= MAX_RECORD_BYTES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.thread_time()
    refused(value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, f"{grown} KiB more"
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("name", list(bombs()))
def test_a_dead_letter_is_shown_within_the_same_bounds(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not decodable" in view(packed("new", bombs()[name]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_the_limit_of_objects_holds_over_the_whole_value() -> None:
    def value(objects: int) -> bytes:
        lists = [[None] * 1000 for _ in range(objects // 1000)]
        return bytes(msgpack.packb(GOOD | {"new": lists}))

    assert decode_record(b"a", value(MAX_OBJECTS - 1000)).id == "a"
    assert f"limit of {MAX_OBJECTS} objects" in refused(value(MAX_OBJECTS + 1000)).reason


@pytest.mark.parametrize("field", ["meta", "labels", "image", "new", None])
def test_a_name_of_9_mb_reaches_no_message_whole(field: str | None) -> None:
    name = "n" * 9_000_000
    change = {name: 1} if field is None else {field: {name: "x"}}
    error = refused(msgpack.packb(GOOD | change))
    assert f"limit is {MAX_NAME_BYTES}" in error.reason
    assert "9000000" in error.reason


@pytest.mark.parametrize("name", ["n" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2)])
def test_names_up_to_the_limit_are_kept_and_longer_ones_refused(name: str) -> None:
    assert decode_record(b"a", msgpack.packb(GOOD | {"meta": {name: 1}})).meta == {name: 1}
    refused(msgpack.packb(GOOD | {"meta": {name + "x": 1}}))


def test_unknown_names_are_counted_by_a_bounded_number_of_names() -> None:
    unknown = Counter[str]()
    for number in range(3):
        names = {f"name-{number}-{i}": i for i in range(1000)}
        decode_record(
            b"a", msgpack.packb(GOOD | names | {"image": {"data": b"x", **names}}), unknown=unknown
        )
    assert unknown.total() == 3 * 2000
    assert len(unknown) == MAX_UNKNOWN_NAMES + 1


@pytest.mark.parametrize("ts", [-1, MAX_TS + 1, 2**63, True, 1.0, "1", None, [], {}])
def test_a_ts_that_no_clock_shows_is_a_bad_record(ts: object) -> None:
    assert refused(msgpack.packb(GOOD | {"ts": ts})).field == "ts"


def test_the_last_ts_of_a_browser_is_accepted() -> None:
    assert decode_record(b"a", msgpack.packb(GOOD | {"ts": MAX_TS})).ts == MAX_TS


@pytest.mark.parametrize("v", [2, 1.0, True, None, "1", "x" * 9_000_000, b"x" * 9_000_000, [1]])
def test_another_version_is_a_bad_record_with_a_short_text(v: object) -> None:
    error = refused(msgpack.packb(GOOD | {"v": v}))
    assert error.field == "v"
    assert len(error.reason) < 200


def test_a_key_of_3_mb_is_named_by_its_beginning() -> None:
    assert len(refused(msgpack.packb(GOOD), b"k" * 3_000_000).reason) < 200


def test_labels_fit_a_prediction() -> None:
    labels = {f"task{i}": "x" * 16_000 for i in range(20)}
    assert (
        f"the limit is {MAX_LABELS_BYTES}"
        in refused(msgpack.packb(GOOD | {"labels": labels})).reason
    )


@pytest.mark.parametrize("key", [None, b"", b"__progress", b"\xff", b"x" * 257, b"x" * 3_000_000])
def test_a_deletion_names_an_id(key: bytes | None) -> None:
    with pytest.raises(BadRecord) as caught:
        check_deletion(key)
    assert caught.value.field == "key"
    assert len(caught.value.reason) < 200
    assert check_deletion(b"bird/1") == "bird/1"
