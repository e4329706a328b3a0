"""Encodes records as rows of a Milvus collection, and decodes them.

    id               VARCHAR, the primary key; the row HEADER is not a record
    lot              position in samples, see `braid.index.milvus.sample`
    alive            whether the row is a record; a deletion is a row that is not alive
    partition_no, version, ts, model     of its last write
    meta, tagged, tags the meta, whether it is stored as JSON, and tags for filters (see
                     `braid.index.milvus.filters`); if `tagged` is false, meta is {"packed":
                     msgpack in base64} and has no tags
    vector_NAME      float32[D] for `fused` and each modality, zeros where the record has none
    has_NAME         whether it has one: zeros have an inner product with everything

One row holds all vectors of a record, so a record changes atomically. A collection per vector would
need no zeros, but could show a record's new text with its old picture.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import msgpack
import numpy as np

from ..rules import check_vectors
from ..store import FUSED, Array, Delete, Hit, Row, Upsert
from .filters import MAX_TAGS, tags_of
from .sample import lot_of

HEADER = "__header"  # reserved
MAX_ID_BYTES = 1024
MAX_MODEL_BYTES = 256
MAX_PACKED_BYTES = 60_000
MOST_VECTORS = 10  # of one collection; a server's proxy.maxVectorFieldNum is 4 by default
HIT_FIELDS = ["id", "partition_no", "version", "model", "meta", "tagged"]
LAST_FIELDS = ["id", "partition_no", "version", "ts", "alive"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A collection's space, the offsets that it reflects, and its owner's facts (as JSON)."""

    space: str
    dim: int
    names: tuple[str, ...]
    positions: Mapping[int, int]
    progress: Mapping[int, int]
    facts: Mapping[str, Any] = dataclass_field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class LastWrite:
    """The last write of an id."""

    partition: int
    version: int
    ts: int


def vector_field(name: str) -> str:
    return f"vector_{name}"


def flag_field(name: str) -> str:
    """The field that says whether a row may be a hit of a search by this vector."""
    return "alive" if name == FUSED else f"has_{name}"


def schema(client: Any, *, dim: int, names: Sequence[str]) -> Any:
    """The collection's schema; `names` are the modalities."""
    from pymilvus import DataType

    if 1 + len(names) > MOST_VECTORS:
        raise ValueError(f"names: {len(names)} modalities, the limit is {MOST_VECTORS - 1}")
    made = client.create_schema(auto_id=False, enable_dynamic_field=False)
    made.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
    for field in ("lot", "partition_no", "version", "ts"):
        made.add_field(field, DataType.INT64)
    made.add_field("model", DataType.VARCHAR, max_length=MAX_MODEL_BYTES)
    made.add_field("meta", DataType.JSON)
    made.add_field(
        "tags",
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_length=16,
        max_capacity=MAX_TAGS,
    )
    for field in ("tagged", "alive", *map(flag_field, names)):
        made.add_field(field, DataType.BOOL)
    for name in (FUSED, *names):
        made.add_field(vector_field(name), DataType.FLOAT_VECTOR, dim=dim)
    return made


def check(write: Upsert | Delete, *, dim: int, names: Sequence[str]) -> None:
    """Raises ValueError: the write does not fit in a row."""
    if write.id == HEADER or len(write.id.encode()) > MAX_ID_BYTES:
        raise ValueError(
            f"{write.id[:80]!r} cannot be an id: the limit is {MAX_ID_BYTES} bytes, "
            f"and {HEADER} is reserved"
        )
    if isinstance(write, Delete):
        return
    if len(write.model.encode()) > MAX_MODEL_BYTES:
        raise ValueError(f"{write.id}: the model's name is over {MAX_MODEL_BYTES} bytes")
    for name in write.by:
        if name not in names:
            raise ValueError(
                f"{write.id}: {name!r} is no vector of this collection; it has {', '.join(names)}"
            )
    check_vectors(write, dim)


def encode(write: Upsert | Delete, *, dim: int, names: Sequence[str]) -> dict[str, Any]:
    """A write as a row. Raises ValueError: its meta is too large, or is not data."""
    nothing_D = np.zeros(dim, np.float32)
    upsert = write if isinstance(write, Upsert) else None
    by = upsert.by if upsert else {}
    meta = dict(upsert.meta) if upsert else {}
    tags = tags_of(meta)
    row: dict[str, Any] = {
        "id": write.id,
        "lot": lot_of(write.id),
        "partition_no": write.partition,
        "version": write.version,
        "ts": write.ts,
        "model": upsert.model if upsert else "",
        "meta": meta if tags is not None else _packed(write.id, meta),
        "tagged": tags is not None,
        "tags": tags or [],
        "alive": upsert is not None,
        vector_field(FUSED): _floats(upsert.fused) if upsert else nothing_D,
    }
    for name in names:
        row[flag_field(name)] = name in by
        row[vector_field(name)] = _floats(by[name]) if name in by else nothing_D
    return row


def encode_header(header: Header) -> dict[str, Any]:
    """The header as a row."""
    deletion = Delete(id=HEADER, partition=-1, version=0, ts=0)
    row = encode(deletion, dim=header.dim, names=header.names)
    row["meta"] = {
        "space": header.space,
        "dim": header.dim,
        "names": list(header.names),
        "positions": {str(number): next_ for number, next_ in header.positions.items()},
        "progress": {str(number): next_ for number, next_ in header.progress.items()},
        "facts": dict(header.facts),
    }
    return row


def decode_header(row: Mapping[str, Any]) -> Header:
    meta = row["meta"]
    return Header(
        space=meta["space"],
        dim=meta["dim"],
        names=tuple(meta["names"]),
        positions={int(number): next_ for number, next_ in meta["positions"].items()},
        progress={int(number): next_ for number, next_ in meta["progress"].items()},
        facts=meta["facts"],
    )


def decode_last(row: Mapping[str, Any]) -> LastWrite:
    return LastWrite(partition=row["partition_no"], version=row["version"], ts=row["ts"])


def decode_hit(row: Mapping[str, Any], score: float) -> Hit:
    return Hit(
        id=row["id"],
        score=score,
        meta=_meta(row),
        model=row["model"],
        version=row["version"],
        partition=row["partition_no"],
    )


def decode_row(row: Mapping[str, Any], names: Sequence[str]) -> Row:
    vectors = {
        name: np.asarray(row[vector_field(name)], np.float32)
        for name in (FUSED, *names)
        if row[flag_field(name)]
    }
    return Row(
        id=row["id"],
        partition=row["partition_no"],
        version=row["version"],
        ts=row["ts"],
        model=row["model"],
        meta=_meta(row),
        vectors=vectors,
    )


def size_of(row: Mapping[str, Any], names: Sequence[str]) -> int:
    """Approximate size of a row in a message, in bytes."""
    vectors = 4 * sum(len(row[vector_field(name)]) for name in (FUSED, *names))
    return vectors + 20 * len(row["tags"]) + len(json.dumps(row["meta"])) + 512


def _floats(vector_D: Array) -> Array:
    return np.ascontiguousarray(vector_D, np.float32)


def _packed(id_: str, meta: Mapping[str, Any]) -> dict[str, str]:
    try:
        packed = msgpack.packb(meta, use_bin_type=True, unicode_errors="surrogatepass")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{id_}: meta is not data: {error}") from None
    text = base64.b64encode(packed).decode()
    if len(text) > MAX_PACKED_BYTES:
        raise ValueError(f"{id_}: meta is {len(packed)} bytes, the limit is 45,000")
    return {"packed": text}


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = row["meta"]
    if row["tagged"]:
        return dict(meta)
    unpacked: Mapping[str, Any] = msgpack.unpackb(
        base64.b64decode(meta["packed"]), unicode_errors="surrogatepass", strict_map_key=False
    )
    return unpacked
