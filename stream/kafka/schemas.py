"""The schemas of braid's topics and their limits.

Values are msgpack maps with a version field `v`; keys are the UTF-8 record id. Unknown fields are
left out and counted; an unknown `v` is an error. Times (`ts`) are milliseconds since 1970.
`braid.stream.kafka.packing` bounds the memory of a value.

    records        Record       of producers; a null value deletes the id
    vectors.gNNNN  Vector       for the index; null deletes; PROGRESS_KEY marks progress
    predictions    a plain map, see encode_prediction
    statistics     a Tally of some seconds of one version's records, see encode_tally
    dead-letters   the original bytes; the reason is in the headers, see dead_letter_headers
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.encoders.output_statistics import Tally
from braid.encoders.types import MODALITIES, Label

from ..errors import BadRecord
from .fields import MAX_LABELS as MAX_LABELS
from .fields import MAX_META_BYTES as MAX_META_BYTES
from .fields import checked_labels, checked_meta
from .packing import MAX_NAME_BYTES, kind, shown, unpack_bounded, unpack_map
from .packing import pack as pack

SCHEMA_VERSION = 1
MIB = 1024 * 1024
MAX_RECORD_BYTES = 16 * MIB  # topic and clients are set to match (topics.py)
MAX_DEAD_LETTER_BYTES = 17 * MIB
MAX_ID_BYTES = 256
MAX_TEXT_BYTES = 1 * MIB
MAX_TS = 8_640_000_000_000_000  # the largest Date of JavaScript, in milliseconds
MAX_UNKNOWN_NAMES = 32  # counted by name; others are counted together
MAX_URI_BYTES = 2048
RESERVED_PREFIX = "__"
PROGRESS_KEY = b"__progress"
OTHER_NAMES = "..."

Scalar = str | int | float | bool | None
Vector32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """A picture or a sound: the bytes of its file, or a link to them, or both.

    With both, the bytes are embedded and hits show the link.
    """

    data: bytes | None = None
    uri: str | None = None
    media_type: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One multimodal event. At least one of text, image and audio is present."""

    id: str
    ts: int
    text: str | None = None
    image: Blob | None = None
    audio: Blob | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vector:
    """One row for the index: unit vectors (float32, D values) and where they came from."""

    id: str
    ts: int
    space: str
    model: str
    fused: Vector32
    by: Mapping[str, Vector32]
    meta: Mapping[str, Any]
    source: int


_RECORD_FIELDS = frozenset({"v", "id", "ts", "text", "image", "audio", "labels", "meta"})
_BLOB_FIELDS = frozenset({"data", "uri", "media_type"})


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
        _count_unknown(unknown, (name for name in raw if name not in _RECORD_FIELDS))
    record = Record(
        id=id_,
        ts=ts,
        text=_text(raw.get("text")),
        image=_blob("image", raw.get("image"), unknown),
        audio=_blob("audio", raw.get("audio"), unknown),
        labels=checked_labels(raw.get("labels")),
        meta=checked_meta(raw.get("meta")),
    )
    if record.text is None and record.image is None and record.audio is None:
        raise BadRecord("value", "has no modality: one of text, image and audio must be there")
    return record


def plain_modality(modality: str | Blob | None) -> Any:
    """A text as it is, a blob as a map of its fields that are set."""
    if not isinstance(modality, Blob):
        return modality
    return {name: value for name, value in asdict(modality).items() if value is not None}


def encode_vector(vector: Vector) -> bytes:
    """The msgpack value of a `vectors` message."""
    return pack(
        {
            "v": SCHEMA_VERSION,
            "id": vector.id,
            "ts": vector.ts,
            "space": vector.space,
            "model": vector.model,
            "fused": _pack_array(vector.fused),
            "by": {name: _pack_array(array) for name, array in vector.by.items()},
            "meta": dict(vector.meta),
            "source": vector.source,
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
            fused=_unpack_array(raw["fused"]),
            by={name: _unpack_array(array) for name, array in raw["by"].items()},
            meta=raw["meta"],
            source=raw["source"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord("value", f"is not a vectors message: {error!r}") from None


def encode_progress(next_source: int) -> bytes:
    """The value of PROGRESS_KEY: the offset in `records` before which all is published."""
    return pack({"v": SCHEMA_VERSION, "next": next_source})


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
) -> bytes:
    """The msgpack value of a `predictions` message; source is (partition, offset) in `records`.

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
        "tasks": {name: dict(task) for name, task in tasks.items()},
        "source": {"partition": source[0], "offset": source[1]},
        "latency_ms": latency_ms,
    }
    return pack(value if canary is None else value | {"canary": dict(canary)})


def encode_tally(tally: Tally) -> bytes:
    """The msgpack value of a `statistics` message; the key is GENERATION/MODEL."""
    plain = tally.to_plain()
    if tally.vectors_D is not None:
        plain["vectors"] = _pack_array(tally.vectors_D.astype(np.float32))
    return pack({"v": SCHEMA_VERSION, **plain})


def decode_tally(value: bytes) -> Tally:
    """The tally of a `statistics` message. Raises BadRecord."""
    raw = unpack_map(value)
    if raw.get("v") != SCHEMA_VERSION:
        raise _wrong_version(raw.get("v"))
    try:
        if raw["vectors"] is not None:
            raw["vectors"] = _unpack_array(raw["vectors"])
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


def _count_unknown(unknown: Counter[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in unknown and len(unknown) >= MAX_UNKNOWN_NAMES:
            name = OTHER_NAMES
        unknown[name] += 1


def _text(text: object) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRecord("text", f"must be a string, got {kind(text)}")
    if (size := len(text.encode(errors="surrogatepass"))) > MAX_TEXT_BYTES:
        raise BadRecord("text", f"is {size} bytes of UTF-8, the limit is {MAX_TEXT_BYTES}")
    return text


def _blob(name: str, raw: object, unknown: Counter[str] | None) -> Blob | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BadRecord(name, f"must be a map with data or uri, got {kind(raw)}")
    data, uri, media_type = raw.get("data"), raw.get("uri"), raw.get("media_type")
    if data is None and uri is None:
        raise BadRecord(name, "has neither data nor uri")
    if data is not None and not isinstance(data, bytes):
        raise BadRecord(f"{name}.data", f"must be bytes, got {kind(data)}")
    if data is not None and not data:
        raise BadRecord(f"{name}.data", "is empty")
    for key, part, limit in (
        ("uri", uri, MAX_URI_BYTES),
        ("media_type", media_type, MAX_NAME_BYTES),
    ):
        if part is not None and not isinstance(part, str):
            raise BadRecord(f"{name}.{key}", f"must be a string, got {kind(part)}")
        if part is not None and len(part.encode(errors="replace")) > limit:
            raise BadRecord(f"{name}.{key}", f"is longer than the limit of {limit} bytes")
    if unknown is not None and not _BLOB_FIELDS.issuperset(raw):
        _count_unknown(unknown, (f"{name}.{key}" for key in raw if key not in _BLOB_FIELDS))
    return Blob(data=data, uri=uri, media_type=media_type)


def _pack_array(array: Vector32) -> dict[str, Any]:
    return {"dtype": "<f4", "data": np.ascontiguousarray(array, dtype="<f4").tobytes()}


def _unpack_array(raw: Mapping[str, Any]) -> Vector32:
    if raw["dtype"] not in ("<f4", "<f2"):
        raise ValueError(f"dtype {raw['dtype']!r} is neither <f4 nor <f2")
    return np.frombuffer(raw["data"], dtype=raw["dtype"]).astype(np.float32)
