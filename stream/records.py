"""The schemas of braid's topics and their limits, in one file.

Values are msgpack maps with a version field `v`; keys are the UTF-8 record id. Unknown fields are
left out and counted; an unknown `v` is an error. Times (`ts`) are milliseconds since 1970.

    records        Record       what producers send; a null value deletes the id
    vectors.gNNNN  Vector       what the index applies; null deletes; PROGRESS_KEY marks progress
    predictions    a plain map, see encode_prediction
    statistics     a Tally of some seconds of one version's records, see encode_tally
    dead-letters   the original bytes; the reason stands in the headers, see dead_letter_headers
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from encoders.tally import Tally
from encoders.types import Label

from .errors import BadRecord

SCHEMA_VERSION = 1
MIB = 1024 * 1024
MAX_RECORD_BYTES = 16 * MIB  # topic and clients are set to match (topics.py)
MAX_DEAD_LETTER_BYTES = 17 * MIB
MAX_ID_BYTES = 256
MAX_TEXT_BYTES = 1 * MIB
MAX_META_BYTES = 16 * 1024
MAX_LABELS = 64
MAX_NAME_BYTES = 128
MAX_URI_BYTES = 2048
RESERVED_PREFIX = "__"
PROGRESS_KEY = b"__progress"

Scalar = str | int | float | bool | None
Vector32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """A picture or a sound: the bytes of its file, or a link to them, or both.

    Where both are given the bytes are embedded and the link is what a hit shows.
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


def pack(value: Any) -> bytes:
    """msgpack bytes of a value made of maps, lists, strings, bytes and numbers."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def check_id(id_: object) -> str:
    """The id, if it may be one. Raises BadRecord otherwise."""
    if not isinstance(id_, str) or not id_:
        raise BadRecord("id", f"must be a non-empty string, got {_kind(id_)}")
    try:
        size = len(id_.encode())
    except UnicodeEncodeError:
        raise BadRecord("id", "holds a lone surrogate, which is not valid UTF-8") from None
    if size > MAX_ID_BYTES:
        raise BadRecord("id", f"is {size} bytes of UTF-8, the limit is {MAX_ID_BYTES}")
    if id_.startswith(RESERVED_PREFIX):
        raise BadRecord("id", f"starts with {RESERVED_PREFIX!r}, which is reserved: {id_[:40]!r}")
    return id_


def encode_record(record: Record) -> bytes:
    """The msgpack value of a record.

    Raises:
        BadRecord: a field breaks the schema or the whole is over MAX_RECORD_BYTES. What this
            refuses is exactly what decode_record would refuse.
    """
    value: dict[str, Any] = {"v": SCHEMA_VERSION, "id": record.id, "ts": record.ts}
    if record.text is not None:
        value["text"] = record.text
    for name in ("image", "audio"):
        blob: Blob | None = getattr(record, name)
        if blob is not None:
            parts = {"data": blob.data, "uri": blob.uri, "media_type": blob.media_type}
            value[name] = {key: part for key, part in parts.items() if part is not None}
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
        default_ts: taken when the value has no `ts` (the broker's timestamp, in ms).
        unknown: unknown fields are counted here.

    Raises:
        BadRecord: names the field, the limit and the value seen.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise BadRecord("value", f"is {len(value)} bytes, the limit is {MAX_RECORD_BYTES}")
    raw = _unpack_map(value)
    if "v" not in raw:
        raise BadRecord("v", f"is missing, expected {SCHEMA_VERSION}")
    if raw["v"] != SCHEMA_VERSION or isinstance(raw["v"], bool):
        raise BadRecord("v", f"is {raw['v']!r}, this braid reads version {SCHEMA_VERSION}")
    id_ = check_id(raw.get("id"))
    if key != id_.encode():
        shown = "null" if key is None else repr(key[:60])
        raise BadRecord("key", f"is {shown}, but the id is {id_!r}: the key must be the id")
    ts = raw.get("ts", default_ts)
    if isinstance(ts, bool) or not isinstance(ts, int) or not 0 <= ts < 2**53:
        raise BadRecord("ts", f"must be milliseconds since 1970 as an integer, got {ts!r:.60}")
    if unknown is not None:
        unknown.update(name for name in map(str, raw) if name not in _RECORD_FIELDS)
    record = Record(
        id=id_,
        ts=ts,
        text=_text(raw.get("text")),
        image=_blob("image", raw.get("image"), unknown),
        audio=_blob("audio", raw.get("audio"), unknown),
        labels=_labels(raw.get("labels")),
        meta=_meta(raw.get("meta")),
    )
    if record.text is None and record.image is None and record.audio is None:
        raise BadRecord("value", "has no modality: one of text, image and audio must be there")
    return record


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
    raw = _unpack_map(value)
    if raw.get("v") != SCHEMA_VERSION:
        raise BadRecord("v", f"is {raw.get('v')!r}, this braid reads version {SCHEMA_VERSION}")
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
    """The value under PROGRESS_KEY: the offset in `records` up to which all is published."""
    return pack({"v": SCHEMA_VERSION, "next": next_source})


def decode_progress(value: bytes) -> int:
    """The next source offset of a progress message. Raises BadRecord."""
    next_source = _unpack_map(value).get("next")
    if not isinstance(next_source, int):
        raise BadRecord("next", f"must be an integer, got {next_source!r}")
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
        canary: there where a canary took the record, `{number, model: the champion}`, and
            `{tasks: what the champion predicts, labels: the record's own, if it has any, seconds:
            [of the champion, of the challenger] to encode a record}` where the challenger predicts
            (`model` and `tasks` are its then), `{failed: why}` where it could not (then `model` and
            `tasks` are the champion's, as ever).
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
    """The msgpack value of a `statistics` message; the key says whose tally it is."""
    plain = tally.to_plain()
    if tally.vectors_D is not None:
        plain["vectors"] = _pack_array(tally.vectors_D.astype(np.float32))
    return pack({"v": SCHEMA_VERSION, **plain})


def decode_tally(value: bytes) -> Tally:
    """The tally of a `statistics` message. Raises BadRecord."""
    raw = _unpack_map(value)
    if raw.get("v") != SCHEMA_VERSION:
        raise BadRecord("v", f"is {raw.get('v')!r}, this braid reads version {SCHEMA_VERSION}")
    try:
        if raw["vectors"] is not None:
            raw["vectors"] = _unpack_array(raw["vectors"])
        return Tally.from_plain(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord("value", f"is not a statistics message: {error}") from None


def decode_map(value: bytes) -> dict[str, Any]:
    """Any of braid's values as a plain map (predictions, models). Raises BadRecord."""
    return _unpack_map(value)


def dead_letter_headers(
    error: BadRecord, *, topic: str, partition: int, offset: int, ts: int
) -> list[tuple[str, bytes]]:
    """Headers of a dead letter: what is wrong, who found it, and where it came from."""
    return [
        ("reason", error.reason.encode()),
        ("field", error.field.encode()),
        ("stage", error.stage.encode()),
        ("error", error.kind.encode()),
        ("topic", topic.encode()),
        ("partition", str(partition).encode()),
        ("offset", str(offset).encode()),
        ("timestamp", str(ts).encode()),
    ]


def _unpack_map(value: bytes) -> dict[str, Any]:
    try:
        raw = msgpack.unpackb(value, raw=False, strict_map_key=False)
    except Exception as error:  # noqa: BLE001 (msgpack raises many kinds on hostile bytes)
        what = str(error) or type(error).__name__
        raise BadRecord("value", f"is not msgpack ({len(value)} bytes): {what[:200]}") from None
    if not isinstance(raw, dict):
        raise BadRecord("value", f"must be a msgpack map, got {_kind(raw)}")
    return raw


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _text(text: object) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRecord("text", f"must be a string, got {_kind(text)}")
    if (size := len(text.encode(errors="surrogatepass"))) > MAX_TEXT_BYTES:
        raise BadRecord("text", f"is {size} bytes of UTF-8, the limit is {MAX_TEXT_BYTES}")
    return text


def _blob(name: str, raw: object, unknown: Counter[str] | None) -> Blob | None:
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise BadRecord(name, f"must be a map with data or uri, got {_kind(raw)}")
    data, uri, media_type = raw.get("data"), raw.get("uri"), raw.get("media_type")
    if data is None and uri is None:
        raise BadRecord(name, "has neither data nor uri")
    if data is not None and not isinstance(data, bytes):
        raise BadRecord(f"{name}.data", f"must be bytes, got {_kind(data)}")
    if data is not None and not data:
        raise BadRecord(f"{name}.data", "is empty")
    for key, part, limit in (
        ("uri", uri, MAX_URI_BYTES),
        ("media_type", media_type, MAX_NAME_BYTES),
    ):
        if part is not None and not isinstance(part, str):
            raise BadRecord(f"{name}.{key}", f"must be a string, got {_kind(part)}")
        if part is not None and len(part.encode(errors="replace")) > limit:
            raise BadRecord(f"{name}.{key}", f"is longer than the limit of {limit} bytes")
    if unknown is not None:
        unknown.update(f"{name}.{key}" for key in raw if key not in _BLOB_FIELDS)
    return Blob(data=data, uri=uri, media_type=media_type)


def _labels(raw: object) -> dict[str, Label]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRecord("labels", f"must be a map of task to label, got {_kind(raw)}")
    if len(raw) > MAX_LABELS:
        raise BadRecord("labels", f"has {len(raw)} tasks, the limit is {MAX_LABELS}")
    for task, label in raw.items():
        if (
            not isinstance(task, str)
            or not 0 < len(task.encode(errors="replace")) <= MAX_NAME_BYTES
        ):
            raise BadRecord("labels", f"task names are strings of 1 to {MAX_NAME_BYTES} bytes")
        name = f"labels.{task}"
        if isinstance(label, (list, tuple)):
            if len(label) > MAX_LABELS:
                raise BadRecord(name, f"has {len(label)} class names, the limit is {MAX_LABELS}")
            for one in label:
                if not isinstance(one, str):
                    raise BadRecord(name, f"a list must hold class names only, got {_kind(one)}")
            label = "".join(label)
        if isinstance(label, bool) or not isinstance(label, (str, int, float)):
            raise BadRecord(
                name,
                f"must be a class name, a number, a caption or a list of class names, got "
                f"{_kind(label)}",
            )
        if isinstance(label, float) and not math.isfinite(label):
            raise BadRecord(name, f"must be a finite number, got {label}")
        if isinstance(label, str) and len(label.encode(errors="replace")) > MAX_META_BYTES:
            raise BadRecord(name, f"is longer than the limit of {MAX_META_BYTES} bytes")
    return dict(raw)


def _meta(raw: object) -> dict[str, Any]:
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRecord("meta", f"must be a map, got {_kind(raw)}")
    for name, value in raw.items():
        if not isinstance(name, str):
            raise BadRecord("meta", f"names must be strings, got {_kind(name)}")
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, (str, int, float, bool, type(None))):
                raise BadRecord(
                    f"meta.{name}", f"must be a scalar or a list of scalars, got {_kind(part)}"
                )
            if isinstance(part, float) and not math.isfinite(part):
                raise BadRecord(f"meta.{name}", f"must be a finite number, got {part}")
    if (size := len(pack(raw))) > MAX_META_BYTES:
        raise BadRecord("meta", f"is {size} bytes packed, the limit is {MAX_META_BYTES}")
    return dict(raw)


def _pack_array(array: Vector32) -> dict[str, Any]:
    return {"dtype": "<f4", "data": np.ascontiguousarray(array, dtype="<f4").tobytes()}


def _unpack_array(raw: Mapping[str, Any]) -> Vector32:
    if raw["dtype"] not in ("<f4", "<f2"):
        raise ValueError(f"dtype {raw['dtype']!r} is neither <f4 nor <f2")
    return np.frombuffer(raw["data"], dtype=raw["dtype"]).astype(np.float32)
