"""The fields of a record, checked against the limits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from braid.encoders.types import Label

from ..errors import BadRecord
from .packing import MAX_NAME_BYTES, kind, pack

MAX_TEXT_BYTES = 1024 * 1024
MAX_URI_BYTES = 2048
MAX_UNKNOWN_NAMES = 32  # counted by name; others are counted together
OTHER_NAMES = "..."
MAX_META_BYTES = 16 * 1024
MAX_LABELS = 64
MAX_LABELS_BYTES = 256 * 1024  # predictions contain them, too: 1 MB a message


_BLOB_FIELDS = frozenset({"data", "uri", "media_type"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """A picture or a sound: the bytes of its file, or a link to them, or both.

    With both, the bytes are embedded and hits show the link.
    """

    data: Annotated[bytes | None, "the bytes of the file"] = None
    uri: Annotated[str | None, "file://, http:// or https://; see the settings of links"] = None
    media_type: Annotated[str | None, "such as image/png; shown, not relied upon"] = None


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


def checked_text(text: object) -> str | None:
    """The text of a record. Raises BadRecord."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise BadRecord("text", f"must be a string, got {kind(text)}")
    if (size := len(text.encode(errors="surrogatepass"))) > MAX_TEXT_BYTES:
        raise BadRecord("text", f"is {size} bytes of UTF-8, the limit is {MAX_TEXT_BYTES}")
    return text


def checked_blob(name: str, raw: object, unknown: Counter[str] | None) -> Blob | None:
    """The picture or sound of a record; unknown fields are counted. Raises BadRecord."""
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
        count_unknown(unknown, (f"{name}.{key}" for key in raw if key not in _BLOB_FIELDS))
    return Blob(data=data, uri=uri, media_type=media_type)


def count_unknown(unknown: Counter[str], names: Iterable[str]) -> None:
    """Count names, up to MAX_UNKNOWN_NAMES of them apart."""
    for name in names:
        if name not in unknown and len(unknown) >= MAX_UNKNOWN_NAMES:
            name = OTHER_NAMES
        unknown[name] += 1
