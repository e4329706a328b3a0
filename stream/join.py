"""The join: parts of a record that arrive on different topics' schedules become one record.

A message on `parts` is a record with some of its modalities, and may name under `expects` the
modalities that the whole record has. A Faust agent keeps what it has seen of each id in a table and
sends the merged record to `records`: once all expected modalities are there, or, without `expects`,
after every part, each more complete than the one before (the later record replaces the earlier).

Faust delivers at least once: a part seen twice sends the same merged record twice, and the second
replaces the first. What breaks the schema becomes a dead letter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import faust

from .errors import BadRecord
from .records import (
    Record,
    dead_letter_headers,
    decode_map,
    decode_record,
    encode_record,
    pack,
)
from .settings import Settings

log = logging.getLogger(__name__)

MODALITIES = ("text", "image", "audio")
KEEP_S = 3600.0


def merge(known: Mapping[str, Any] | None, part: Mapping[str, Any]) -> dict[str, Any]:
    """Two partial record values as one; of a field that both have, the later `ts` wins."""
    if known is None:
        return dict(part)
    older, newer = sorted((known, part), key=lambda value: int(value.get("ts", 0)))
    merged = {**older, **newer}
    for name in ("labels", "meta"):
        if name in older and name in newer:
            merged[name] = {**older[name], **newer[name]}
    return merged


def complete(value: Mapping[str, Any]) -> bool:
    """Whether all modalities under `expects` are there; true when it names none."""
    return all(value.get(name) is not None for name in value.get("expects") or ())


def joined(key: bytes | None, known: Mapping[str, Any] | None, value: bytes) -> dict[str, Any]:
    """The merged value after one more part.

    Raises:
        BadRecord: the part breaks the schema of `records`, or `expects` is not a list of
            modalities.
    """
    decode_record(key, value)
    part = decode_map(value)
    expects = part.get("expects")
    if expects is not None and (
        not isinstance(expects, list) or not set(expects) <= set(MODALITIES)
    ):
        raise BadRecord("expects", f"must be a list of {', '.join(MODALITIES)}, got {expects!r}")
    return merge(known, part)


def add_join(app: faust.App, settings: Settings) -> None:
    """Give the app its agent on `parts`."""
    parts = app.topic(settings.topic("parts"), key_type=bytes, value_type=bytes, **_RAW)
    records = app.topic(settings.topic("records"), key_type=bytes, value_type=bytes, **_RAW)
    dead = app.topic(settings.topic("dead-letters"), key_type=bytes, value_type=bytes, **_RAW)
    seen = app.Table(
        f"{settings.prefix}parts-seen",
        partitions=settings.partitions,
        schema=faust.Schema(
            key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        ),
    )

    @app.agent(parts, name=f"{settings.prefix}join")
    async def join(stream: faust.StreamT) -> None:
        async for event in stream.events():
            key: bytes = event.key
            value: bytes | None = event.value
            if value is None:
                continue
            known = seen.get(key)
            try:
                merged = joined(key, None if known is None else decode_map(known), value)
                whole = encode_record_value(key, merged) if complete(merged) else None
            except BadRecord as error:
                message = event.message
                log.warning("dead letter from parts: %s", error)
                await dead.send(
                    key=key,
                    value=value,
                    headers=dead_letter_headers(
                        error,
                        topic=message.topic,
                        partition=message.partition,
                        offset=message.offset,
                        ts=int(message.timestamp * 1000),
                    ),
                )
                continue
            if whole is None:
                seen[key] = pack(merged)
            else:
                await records.send(key=key, value=whole)
                if merged.get("expects"):
                    seen.pop(key, None)
                else:
                    seen[key] = pack(merged)


def encode_record_value(key: bytes, merged: Mapping[str, Any]) -> bytes:
    """The merged value as a `records` value, checked against its limits. Raises BadRecord."""
    value = {name: part for name, part in merged.items() if name != "expects"}
    record: Record = decode_record(key, pack(value))
    return encode_record(record)


_RAW: dict[str, Any] = {"key_serializer": "raw", "value_serializer": "raw", "internal": False}
