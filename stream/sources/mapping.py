"""The mapping of a source: a decoded message becomes a record, by the paths of the settings."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from braid.encoders.types import MEDIA, MODALITIES

from ..errors import BadRecord, ConfigError
from ..kafka.packing import kind, pack, shown, unpack_map
from ..kafka.schemas import Blob, Record, check_id, encode_record
from ..settings.source_groups import SourceMap
from .paths import Path, Paths

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_LINK = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://")
_DATA_URI = re.compile(r"data:([^;,]{0,128})(?:;[^,]{0,256})?;base64,", re.I)


class RecordMap:
    """Maps the documents of one source.

    Args:
        paths: compiles the paths, and holds the message that is mapped.

    Attributes:
        is_part: the records are parts, for the join.

    Raises:
        ConfigError: a path is not JMESPath, or there is no path for a modality.
    """

    def __init__(self, settings: SourceMap, paths: Paths) -> None:
        def optional(name: str, text: str | None) -> Path | None:
            return None if text is None else paths.path(f"map.{name}", text)

        self._unit: Literal["s", "ms", "us", "ns"] = settings.ts_unit
        self._id = paths.path("map.id", settings.id)
        self._ts = optional("ts", settings.ts)
        self._text = optional("text", settings.text)
        self._media = {name: optional(name, getattr(settings, name)) for name in MEDIA}
        self._labels = _table("labels", settings.labels, paths)
        self._meta: Path | dict[str, Path]
        if isinstance(settings.meta, str):
            self._meta = paths.path("map.meta", settings.meta)
        else:
            self._meta = _table("meta", settings.meta, paths)
        expects = settings.expects
        self._expects = paths.path("map.expects", expects) if isinstance(expects, str) else expects
        self.is_part = expects is not None
        if not (self._text or any(self._media.values())):
            raise ConfigError(f"{paths.where}.map: none of {', '.join(MODALITIES)} is mapped")
        if isinstance(expects, list) and (unknown := set(expects) - set(MODALITIES)):
            raise ConfigError(
                f"{paths.where}.map.expects: {', '.join(sorted(unknown))}: expects lists "
                f"{', '.join(MODALITIES)}"
            )

    def id_of(self, document: Any) -> str | None:
        """The id in a document; None: there is none. Raises BadRecord."""
        value = self._id.find(document)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self._id.bad(f"gives {_shown(value)}, not a string or an integer")
        try:
            return check_id(str(value))
        except BadRecord as error:
            raise self._id.bad(f"gives an id that {error.reason}") from None

    def missing_id(self, where: str) -> BadRecord:
        """The error of a document without an id."""
        return self._id.bad(f"gives nothing {where}")

    def record(self, id_: str, document: Any, *, default_ts: int) -> Record:
        """The record of a document; its limits are not checked.

        Args:
            default_ts: for a mapping without `ts`, in milliseconds since 1970.

        Raises:
            BadRecord: a path gives something unusable.
        """
        return Record(
            id=id_,
            ts=default_ts if self._ts is None else _time_ms(self._ts, document, self._unit),
            text=_text(self._text, document),
            **{name: _blob(path, document) for name, path in self._media.items()},
            labels=_values(self._labels, document),
            meta=self._meta_of(document),
        )

    def value(self, id_: str, document: Any, *, default_ts: int) -> bytes:
        """The value for `records`, or for `parts`.

        Raises:
            BadRecord: as `record`, or the record breaks a limit.
        """
        record = self.record(id_, document, default_ts=default_ts)
        try:
            packed = encode_record(record)
        except BadRecord as error:
            raise self._located(error) from None
        if self._expects is None:
            return packed
        expects = self._expects
        if isinstance(expects, Path):
            expects = expects.find(document) or []
        return pack(unpack_map(packed) | {"expects": expects})

    def _meta_of(self, document: Any) -> Mapping[str, Any]:
        if not isinstance(self._meta, Path):
            return _values(self._meta, document)
        value = self._meta.find(document)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._meta.bad(f"gives {_shown(value)}, not an object")
        return {name: part for name, part in value.items() if part is not None}

    def _located(self, error: BadRecord) -> BadRecord:
        """The error of a record with the path that the field at fault came from."""
        group, _, name = error.field.partition(".")
        path: Any = {
            "text": self._text,
            **self._media,
            "ts": self._ts,
            "labels": self._labels,
            "meta": self._meta,
        }.get(group)
        if isinstance(path, dict):
            path = path.get(name)
        if isinstance(path, Path):
            return path.bad(f"gives {error.field}, which {error.reason}")
        return BadRecord(error.field, error.reason, stage="map")


def _table(name: str, texts: Mapping[str, str], paths: Paths) -> dict[str, Path]:
    return {key: paths.path(f"map.{name}.{key}", text) for key, text in texts.items()}


def _values(table: Mapping[str, Path], document: Any) -> dict[str, Any]:
    values = {name: path.find(document) for name, path in table.items()}
    return {name: value for name, value in values.items() if value is not None}


def _text(path: Path | None, document: Any) -> str | None:
    value = None if path is None else path.find(document, gaps=True)
    if path is not None and value is not None and not isinstance(value, str):
        raise path.bad(f"gives {_shown(value)}, not a text: a template makes one of it")
    return value


def _time_ms(path: Path, document: Any, unit: str) -> int:
    value = path.find(document)
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
            return round(at.timestamp() * 1000)
        if isinstance(value, int) and not isinstance(value, bool):
            return value * 1_000 // PER_SECOND[unit]
        if isinstance(value, float):
            return round(value * 1_000 / PER_SECOND[unit])
    except (ValueError, OverflowError):
        pass
    raise path.bad(f"gives {_shown(value)}, not a time: a number, or a text as in ISO 8601")


def _blob(path: Path | None, document: Any) -> Blob | None:
    value = None if path is None else path.find(document)
    if path is None or value is None:
        return None
    if isinstance(value, bytes):
        return Blob(data=value) if value else None
    if not isinstance(value, str):
        raise path.bad(f"gives {_shown(value)}, not bytes, base64 or a link")
    if _LINK.match(value):
        return Blob(uri=value)
    media_type = None
    if (header := _DATA_URI.match(value)) is not None:
        media_type, value = header[1] or None, value[header.end() :]
    try:
        data = base64.b64decode(_standard(value), validate=True)
    except (binascii.Error, ValueError):
        raise path.bad(f"gives {shown(value)}, neither base64 nor a link") from None
    return Blob(data=data, media_type=media_type)


def _standard(text: str) -> str:
    """Base64 with line breaks, in the alphabet for URLs or without padding, as plain base64."""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/")
    return plain + "=" * (-len(plain) % 4)


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{shown(value)} ({kind(value)})"
