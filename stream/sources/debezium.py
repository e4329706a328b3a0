"""Debezium's envelopes: a change of a row, with the row before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRecord
from ..kafka.packing import shown

UPDATE, DELETE = "u", "d"
WRITES = ("c", "r", UPDATE)  # create, read by a snapshot, update


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a row; `after` is None when it was deleted."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    envelope: Mapping[str, Any]

    @property
    def updates(self) -> bool:
        """Whether the row was there before."""
        return bool(self.envelope["op"] == UPDATE)


def unwrapped(document: Any) -> Any:
    """The payload of a JSON converter's `{schema, payload}`; anything else stays as it is."""
    if isinstance(document, Mapping) and document.keys() == {"schema", "payload"}:
        return document["payload"]
    return document


def change_of(document: Any) -> Change:
    """The change in an envelope.

    Raises:
        BadRecord: not an envelope, or one of no row, such as of a truncated table.
    """
    envelope = unwrapped(document)
    if not isinstance(envelope, Mapping) or "op" not in envelope:
        raise BadRecord("value", "is not a Debezium envelope: it has no op", stage="map")
    op, before, after = envelope["op"], envelope.get("before"), envelope.get("after")
    if op != DELETE and op not in WRITES:
        known = ", ".join((*WRITES, DELETE))
        raise BadRecord("op", f"is {shown(op)}, a change of a row is one of {known}", stage="map")
    if op in WRITES and not isinstance(after, Mapping):
        raise BadRecord("after", f"is no row though op is {op}", stage="map")
    return Change(
        before if isinstance(before, Mapping) else None,
        None if op == DELETE else after,
        envelope,
    )
