"""The fields `labels` and `meta` of a record, checked against the limits."""

from __future__ import annotations

import math
from typing import Any

from braid.encoders.types import Label

from ..errors import BadRecord
from .packing import MAX_NAME_BYTES, kind, pack

MAX_META_BYTES = 16 * 1024
MAX_LABELS = 64
MAX_LABELS_BYTES = 256 * 1024  # predictions contain them, too: 1 MB a message


def checked_labels(raw: object) -> dict[str, Label]:
    """The labels of a record, task to label. Raises BadRecord."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRecord("labels", f"must be a map of task to label, got {kind(raw)}")
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
                    raise BadRecord(name, f"a list must hold class names only, got {kind(one)}")
            label = "".join(label)
        if isinstance(label, bool) or not isinstance(label, (str, int, float)):
            raise BadRecord(
                name,
                f"must be a class name, a number, a caption or a list of class names, got "
                f"{kind(label)}",
            )
        if isinstance(label, float) and not math.isfinite(label):
            raise BadRecord(name, f"must be a finite number, got {label}")
        if isinstance(label, str) and len(label.encode(errors="replace")) > MAX_META_BYTES:
            raise BadRecord(name, f"is longer than the limit of {MAX_META_BYTES} bytes")
    if (size := len(pack(raw))) > MAX_LABELS_BYTES:
        raise BadRecord("labels", f"are {size} bytes packed, the limit is {MAX_LABELS_BYTES}")
    return dict(raw)


def checked_meta(raw: object) -> dict[str, Any]:
    """The meta of a record, name to scalar or list of scalars. Raises BadRecord."""
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadRecord("meta", f"must be a map, got {kind(raw)}")
    for name, value in raw.items():
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, (str, int, float, bool, type(None))):
                raise BadRecord(
                    f"meta.{name}", f"must be a scalar or a list of scalars, got {kind(part)}"
                )
            if isinstance(part, float) and not math.isfinite(part):
                raise BadRecord(f"meta.{name}", f"must be a finite number, got {part}")
    if (size := len(pack(raw))) > MAX_META_BYTES:
        raise BadRecord("meta", f"is {size} bytes packed, the limit is {MAX_META_BYTES}")
    return dict(raw)
