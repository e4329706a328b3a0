"""The schemas of braid's topics and their limits.

Values are msgpack maps with a version field `v`, or JSON for vectors and predictions
(`braid.stream.kafka.value_format`); keys are the UTF-8 record id. Unknown fields are left out and
counted; an unknown `v` is an error. Times (`ts`) are milliseconds since 1970.
`braid.stream.kafka.packing` bounds the memory of a value.

    records        Record       of producers; a null value deletes the id
    vectors.gNNNN  Vector       for the index; null deletes; PROGRESS_KEY marks progress
    predictions    a plain map, see encode_prediction
    statistics     a Tally of some seconds of one version's records, see encode_tally
    dead-letters   the original bytes; the reason is in the headers, see dead_letter_headers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np

from braid.encoders.output_statistics import Tally
from braid.encoders.types import MEDIA, MODALITIES, Label
from braid.modalities import listed

from ..errors import BadRecord
from .arrays import FLOAT32, packed_array, unpacked_array
from .arrays import Vector32 as Vector32
from .fields import MAX_LABELS as MAX_LABELS
from .fields import MAX_META_BYTES as MAX_META_BYTES
from .fields import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from .fields import MAX_URI_BYTES as MAX_URI_BYTES
from .fields import Blob as Blob
from .fields import checked_blob, checked_labels, checked_meta, checked_text, count_unknown
from .packing import kind, shown, unpack_bounded, unpack_map
from .packing import pack as pack
from .value_format import MSGPACK, ValueFormat

SCHEMA_VERSION = 1
MIB = 1024 * 1024
MAX_RECORD_BYTES = 16 * MIB  # topic and clients are set to match (topics.py)
MAX_DEAD_LETTER_BYTES = 17 * MIB
MAX_ID_BYTES = 256
MAX_TS = 8_640_000_000_000_000  # the largest Date of JavaScript, in milliseconds
RESERVED_PREFIX = "__"
PROGRESS_KEY = b"__progress"

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One multimodal event. At least one modality is present."""

    id: Annotated[str, "the record's id, which the message's key must be, too"]
    ts: Annotated[int, "milliseconds since 1970; without it the message's timestamp"]
    text: Annotated[str | None, "the text"] = None
    image: Annotated[Blob | None, "the picture"] = None
    audio: Annotated[Blob | None, "the sound"] = None
    video: Annotated[Blob | None, "the video"] = None
    labels: Annotated[
        Mapping[str, Label], "task name to class name, list of class names, number or caption"
    ] = field(default_factory=dict)
    meta: Annotated[Mapping[str, Any], "fields to filter by: strings, numbers, booleans, lists"] = (
        field(default_factory=dict)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Vector:
    """One row for the index: unit vectors (float32, D values) and where they came from."""

    id: Annotated[str, "the record's id"]
    ts: Annotated[int, "the record's ts"]
    space: Annotated[str, "the space of the vectors; only those of one space can be compared"]
    model: Annotated[str, "the version that embedded the record"]
    fused: Annotated[Vector32, "the vector of all modalities together"]
    by: Annotated[Mapping[str, Vector32], "modality to its own vector, for those that are present"]
    meta: Annotated[Mapping[str, Any], "the record's meta"]
    source: Annotated[int, "the record's offset in its partition of `records`"]
    engine: Annotated[Mapping[str, str], "engine by modality"] = field(default_factory=dict)


_RECORD_FIELDS = frozenset({"v", "id", "ts", *MODALITIES, "labels", "meta"})


def check_id(id_: object) -> str:
    """A valid id. Raises BadRecord."""
    if not isinstance(id_, str) or not id_:
        raise BadRecord("id", f"must be a non-empty string, got {kind(id_)}")
    try:
        size = len(id_.encode())
    except UnicodeEncodeError:
        raise BadRecord("id", "holds a lone surrogate, which is not valid UTF-8") from None
    if size > MAX_ID_BYTES:
        raise BadRecord("id", f"is {size} bytes of UTF-8, the limit is {MAX_ID_BYTES}")
    if id_.startswith(RESERVED_PREFIX):
        raise BadRecord("id", f"starts with {RESERVED_PREFIX!r}, which is reserved: {id_[:40]!r}")
    return id_


def check_deletion(key: bytes | None) -> str:
    """The id that a message without a value deletes. Raises BadRecord: the key is not an id."""
    try:
        return check_id((key or b"").decode())
    except (BadRecord, UnicodeDecodeError) as error:
        reason = error.reason if isinstance(error, BadRecord) else "is not UTF-8"
        raise BadRecord(
            "key", f"a deletion must name the id of a record: the id {reason}"
        ) from None


def encode_record(record: Record) -> bytes:
    """The msgpack value of a record.

    Raises:
        BadRecord: a field breaks the schema or the value is over MAX_RECORD_BYTES, as in
            decode_record.
    """
    value: dict[str, Any] = {"v": SCHEMA_VERSION, "id": record.id, "ts": record.ts}
    for name in MODALITIES:
        if getattr(record, name) is not None:
            value[name] = plain_modality(getattr(record, name))
    if record.labels:
        value["labels"] = dict(record.labels)
    if record.meta:
        value["meta"] = dict(record.meta)
    check_id(record.id)
    try:
        packed = pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord("value", f"does not pack as msgpack: {error}") from None
    if len(packed) > MAX_RECORD_BYTES:
        raise BadRecord(
            "value",
            f"is {len(packed)} bytes, the limit is {MAX_RECORD_BYTES}: send a link (uri) instead",
        )
    decode_record(record.id.encode(), packed)
    return packed


def decode_record(
    key: bytes | None,
    value: bytes,
    *,
    default_ts: int = 0,
    unknown: Counter[str] | None = None,
) -> Record:
    """A `records` message as a Record.

    Args:
        key: the message's key; it must be the id.
        default_ts: the timestamp of a value without `ts` (the broker's, in ms).
        unknown: unknown fields are counted here.

    Raises:
        BadRecord: names the field, the limit and the value.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise BadRecord("value", f"is {len(value)} bytes, the limit is {MAX_RECORD_BYTES}")
    raw = unpack_bounded(value)
    if "v" not in raw:
        raise BadRecord("v", f"is missing, expected {SCHEMA_VERSION}")
    if type(raw["v"]) is not int or raw["v"] != SCHEMA_VERSION:
        raise _wrong_version(raw["v"])
    id_ = check_id(raw.get("id"))
    if key != id_.encode():
        name = "null" if key is None else shown(key)
        raise BadRecord("key", f"is {name}, but the id is {shown(id_)}: the key must be the id")
    ts = raw.get("ts", default_ts)
    if type(ts) is not int or not 0 <= ts <= MAX_TS:
        raise BadRecord(
            "ts", f"must be milliseconds since 1970, from 0 to {MAX_TS}, got {shown(ts)}"
        )
    if unknown is not None and not _RECORD_FIELDS.issuperset(raw):
        count_unknown(unknown, (name for name in raw if name not in _RECORD_FIELDS))
    record = Record(
        id=id_,
        ts=ts,
        text=checked_text(raw.get("text")),
        **{name: checked_blob(name, raw.get(name), unknown) for name in MEDIA},
        labels=checked_labels(raw.get("labels")),
        meta=checked_meta(raw.get("meta")),
    )
    if all(getattr(record, name) is None for name in MODALITIES):
        raise BadRecord("value", f"has no modality: one of {listed(MODALITIES)} must be there")
    return record


def plain_modality(modality: str | Blob | None) -> Any:
    """A text as it is, a blob as a map of its fields that are set."""
    if not isinstance(modality, Blob):
        return modality
    return {name: value for name, value in asdict(modality).items() if value is not None}


def encode_vector(vector: Vector, *, form: ValueFormat = MSGPACK) -> bytes:
    """The value of a `vectors` message."""
    return encode_row(**{name: getattr(vector, name) for name in Vector.__slots__}, form=form)


def encode_row(
    *,
    id: str,
    ts: int,
    space: str,
    model: str,
    fused: Vector32,
    by: Mapping[str, Vector32],
    meta: Mapping[str, Any],
    source: int,
    engine: Mapping[str, str],
    dtype: str = FLOAT32,
    form: ValueFormat = MSGPACK,
) -> bytes:
    """The same from its fields; the vectors in the message are FLOAT32 or FLOAT16."""
    return form.pack(
        {
            "v": SCHEMA_VERSION,
            "id": id,
            "ts": ts,
            "space": space,
            "model": model,
            "fused": form.array(fused, dtype),
            "by": {name: form.array(array, dtype) for name, array in by.items()},
            "meta": meta,
            "source": source,
            **({"engine": engine} if engine else {}),
        }
    )


def decode_vector(value: bytes) -> Vector:
    """A `vectors` message as a Vector. Raises BadRecord."""
    raw = unpack_map(value)
    if raw.get("v") != SCHEMA_VERSION:
        raise _wrong_version(raw.get("v"))
    try:
        return Vector(
            id=raw["id"],
            ts=raw["ts"],
            space=raw["space"],
            model=raw["model"],
            fused=unpacked_array(raw["fused"]),
            by={name: unpacked_array(array) for name, array in raw["by"].items()},
            meta=raw["meta"],
            source=raw["source"],
            engine=raw.get("engine", {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord("value", f"is not a vectors message: {error!r}") from None


def encode_progress(next_source: int, *, form: ValueFormat = MSGPACK) -> bytes:
    """The value of PROGRESS_KEY: the offset in `records` before which all is published."""
    return form.pack({"v": SCHEMA_VERSION, "next": next_source})


def decode_progress(value: bytes) -> int:
    """The next source offset of a progress message. Raises BadRecord."""
    next_source = unpack_map(value).get("next")
    if not isinstance(next_source, int):
        raise BadRecord("next", f"must be an integer, got {shown(next_source)}")
    return next_source


def encode_prediction(
    *,
    id: str,
    ts: int,
    model: str,
    tasks: Mapping[str, Mapping[str, Any]],
    source: tuple[int, int],
    latency_ms: float,
    canary: Mapping[str, Any] | None = None,
    form: ValueFormat = MSGPACK,
) -> bytes:
    """The value of a `predictions` message; source is (partition, offset) in `records`.

    Args:
        canary: of a record that a canary takes: `{number, model: the champion}`. If the challenger
            predicts, `model` and `tasks` are the challenger's and the map also has `{tasks: the
            champion's, labels: the record's, if it has any, seconds: [of the champion, of the
            challenger] to encode a record}`. If it fails, `model` and `tasks` are the champion's
            and the map also has `{failed: the reason}`.
    """
    value = {
        "v": SCHEMA_VERSION,
        "id": id,
        "ts": ts,
        "model": model,
        "tasks": tasks,
        "source": {"partition": source[0], "offset": source[1]},
        "latency_ms": latency_ms,
    }
    return form.pack(value if canary is None else value | {"canary": dict(canary)})


def encode_tally(tally: Tally) -> bytes:
    """The msgpack value of a `statistics` message; the key is GENERATION/MODEL."""
    plain = tally.to_plain()
    if tally.vectors_D is not None:
        plain["vectors"] = packed_array(tally.vectors_D.astype(np.float32))
    return pack({"v": SCHEMA_VERSION, **plain})


def decode_tally(value: bytes) -> Tally:
    """The tally of a `statistics` message. Raises BadRecord."""
    raw = unpack_map(value)
    if raw.get("v") != SCHEMA_VERSION:
        raise _wrong_version(raw.get("v"))
    try:
        if raw["vectors"] is not None:
            raw["vectors"] = unpacked_array(raw["vectors"])
        return Tally.from_plain(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord("value", f"is not a statistics message: {error}") from None


def decode_map(value: bytes) -> dict[str, Any]:
    """Any of braid's values as a plain map (predictions, models). Raises BadRecord."""
    return unpack_map(value)


def dead_letter_headers(
    error: BadRecord, *, topic: str, partition: int, offset: int, ts: int, model: str | None = None
) -> list[tuple[str, bytes]]:
    """Headers of a dead letter: the error, the stage and model, and the origin.

    Args:
        model: the version that prepared or encoded it; None: it failed before.
    """
    return [
        *([("model", model.encode())] if model is not None else []),
        ("reason", error.reason.encode()),
        ("field", error.field.encode()),
        ("stage", error.stage.encode()),
        ("error", error.kind.encode()),
        ("topic", topic.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(offset).encode()),
        ("timestamp", str(ts).encode()),
    ]


def _wrong_version(version: object) -> BadRecord:
    return BadRecord("v", f"is {shown(version)}, this braid reads version {SCHEMA_VERSION}")
