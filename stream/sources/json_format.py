"""JSON values of a source, within the bounds of records."""

from __future__ import annotations

from typing import Any

from braid.index.service.limits.json_bounds import json_counts

from ..errors import BadRecord
from ..kafka.packing import MAX_DEPTH, MAX_OBJECTS
from ..strict_json import strict_json


def decode_json(raw: bytes) -> Any:
    """The value of UTF-8 JSON; a schema registry's prefix is skipped.

    Raises:
        BadRecord: not JSON, more than MAX_OBJECTS values, or deeper than MAX_DEPTH.
    """
    if raw[:1] == b"\0":  # no JSON begins so: the magic byte, and the schema's id
        raw = raw[5:]
    containers = raw.count(b"[") + raw.count(b"{")  # an upper bound, as the commas are
    if raw.count(b",") + containers >= MAX_OBJECTS or containers > MAX_DEPTH:
        values, _, containers, depth = json_counts(raw)
        # A container without values has one that counts here: commas and one.
        if values + containers > MAX_OBJECTS:
            raise BadRecord("value", f"holds more than the limit of {MAX_OBJECTS} objects")
        if depth > MAX_DEPTH:
            raise BadRecord("value", f"is nested deeper than the limit of {MAX_DEPTH}")
    try:
        return strict_json(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadRecord("value", "is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord("value", f"is not JSON ({len(raw)} bytes): {error}") from None
