"""The join's state of one id: pure functions that merge parts.

A message on `parts` is a record with some of its modalities. It may name under `expects` the
modalities that the whole record has. Each modality, label and meta entry is a *field*; of two
values of one field the one with the later `ts` wins, of two with the same `ts` the one that arrived
later. Merging is therefore independent of the order of parts that differ in `ts`.

Each field also keeps when its part was sent (the message's timestamp), so that a deletion removes
exactly the fields that were sent before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from braid.encoders.types import MODALITIES

from ...errors import BadRecord
from ...kafka.client import Message
from ...kafka.schemas import (
    SCHEMA_VERSION,
    Blob,
    Record,
    decode_map,
    decode_record,
    encode_record,
    pack,
    plain_modality,
)

STAGE = "join"

Name = tuple[str, str]  # ("text", "") or ("labels", "category")


@dataclass(frozen=True, slots=True)
class Field:
    """One value and where it stands in time: `ts` of its record, `sent_ms` of its message."""

    ts: int
    sent_ms: int
    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What is known of one id. Times are milliseconds since 1970.

    Attributes:
        expects: the modalities that any of the parts expects.
        first_ms, last_ms: when the first part since the last release, and the last one, arrived.
        offset: of the last part on `parts`.
        out_ms: when the record was last sent to `records`; 0: not yet.
        deleted_ms: parts sent up to here are deleted; 0: none.
        waiting: some expected modality is missing, and the record was not released without it.
    """

    fields: Mapping[Name, Field] = field(default_factory=dict)
    expects: tuple[str, ...] = ()
    first_ms: int = 0
    last_ms: int = 0
    offset: int = 0
    out_ms: int = 0
    deleted_ms: int = 0
    waiting: bool = False

    @property
    def missing(self) -> list[str]:
        """The expected modalities that are not there."""
        return [name for name in self.expects if (name, "") not in self.fields]

    @property
    def has_modality(self) -> bool:
        return any((name, "") in self.fields for name in MODALITIES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One valid message of `parts`."""

    fields: Mapping[Name, Field]
    expects: tuple[str, ...]
    sent_ms: int


def decode_part(message: Message) -> Part:
    """A message of `parts` that has a value.

    Raises:
        BadRecord: it breaks the schema of `records`, or `expects` is not a list of modalities.
    """
    value = message.value or b""
    record = decode_record(message.key, value, default_ts=message.ts)
    expects = decode_map(value).get("expects")
    if expects is None:
        expects = []
    if not isinstance(expects, list) or not all(
        isinstance(name, str) and name in MODALITIES for name in expects
    ):
        raise BadRecord("expects", f"must be a list of {', '.join(MODALITIES)}", stage=STAGE)
    names = tuple(name for name in MODALITIES if name in expects)
    plain = {(name, ""): plain_modality(getattr(record, name)) for name in MODALITIES}
    plain |= {("labels", task): label for task, label in record.labels.items()}
    plain |= {("meta", name): entry for name, entry in record.meta.items()}
    return Part(
        fields={
            name: Field(record.ts, message.ts, entry)
            for name, entry in plain.items()
            if entry is not None or name[0] == "meta"
        },
        expects=names,
        sent_ms=message.ts,
    )


def merge(known: Mapping[Name, Field], new: Mapping[Name, Field]) -> dict[Name, Field]:
    """The fields of both; of one that both have the later `ts`, and among equals the new one."""
    newer = {
        name: entry
        for name, entry in new.items()
        if name not in known or entry.ts >= known[name].ts
    }
    return {**known, **newer}


def with_part(state: State | None, part: Part, *, offset: int, now_ms: int) -> State:
    """The state after one more part."""
    known = state or State()
    expects = tuple(name for name in MODALITIES if name in {*known.expects, *part.expects})
    merged = replace(
        known,
        fields=merge(known.fields, part.fields),
        expects=expects,
        first_ms=known.first_ms if known.waiting else now_ms,
        last_ms=now_ms,
        offset=offset,
    )
    return replace(merged, waiting=bool(merged.missing))


def without_deleted(known: State, *, deleted_ms: int, now_ms: int) -> State:
    """The state after a deletion of everything that was sent up to `deleted_ms`."""
    kept = {name: entry for name, entry in known.fields.items() if entry.sent_ms > deleted_ms}
    left = replace(known, fields=kept, deleted_ms=max(known.deleted_ms, deleted_ms))
    if not left.has_modality:  # labels and meta alone are no record
        return replace(left, fields={}, expects=(), last_ms=now_ms, waiting=False)
    return replace(left, waiting=known.waiting and bool(left.missing))


def record_value(id_: str, state: State) -> bytes:
    """The merged `records` value. Raises BadRecord if it is over a limit of `records`."""
    whole: dict[str, Any] = {"labels": {}, "meta": {}}
    for (kind, name), entry in state.fields.items():
        if kind in ("labels", "meta"):
            whole[kind][name] = entry.value
        else:
            whole[kind] = entry.value if kind == "text" else Blob(**entry.value)
    ts = max((entry.ts for entry in state.fields.values()), default=0)
    try:
        return encode_record(Record(id=id_, ts=ts, **whole))
    except BadRecord as error:
        reason = f"of the record joined from its parts {error.reason}"
        raise BadRecord(error.field, reason, stage=STAGE) from error


def part_value(id_: str, state: State) -> bytes:
    """The merged value as one part, with `expects`: what an incomplete record's dead letter has."""
    value = msgpack.unpackb(record_value(id_, state), raw=False)
    return pack(value | {"expects": list(state.expects)})


def pack_state(state: State) -> bytes:
    """The value of the changelog `parts-seen`."""
    fields = [
        [kind, name, entry.ts, entry.sent_ms, entry.value]
        for (kind, name), entry in state.fields.items()
    ]
    times = [
        state.first_ms,
        state.last_ms,
        state.offset,
        state.out_ms,
        state.deleted_ms,
        state.waiting,
    ]
    return pack([SCHEMA_VERSION, list(state.expects), times, fields])


def unpack_state(value: bytes) -> State:
    """The inverse of pack_state. Raises ValueError for any other bytes."""
    try:
        version, expects, times, fields = msgpack.unpackb(value, raw=False)
        first_ms, last_ms, offset, out_ms, deleted_ms, waiting = times
        if version != SCHEMA_VERSION:
            raise ValueError(f"version {version!r:.20}")
        return State(
            fields={(kind, name): Field(ts, sent, entry) for kind, name, ts, sent, entry in fields},
            expects=tuple(expects),
            first_ms=int(first_ms),
            last_ms=int(last_ms),
            offset=int(offset),
            out_ms=int(out_ms),
            deleted_ms=int(deleted_ms),
            waiting=bool(waiting),
        )
    except Exception as error:  # noqa: BLE001 (msgpack raises many kinds on foreign bytes)
        raise ValueError(f"no state of the join: {type(error).__name__}") from None
