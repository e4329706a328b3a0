"""Avro values and keys: by the schema registry's wire format, or of one schema in a file."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastavro import parse_schema, schemaless_reader

from ..errors import BadRecord, ConfigError, SchemaRegistryAway
from .avro_bounds import Cursor, Walk, walker
from .plain import plain
from .schema_registry import CACHED, PREFIX, Reference, Schema, SchemaRegistry, unframed


@dataclass(frozen=True, slots=True)
class Parsed:
    """A schema of fastavro, the walk over its values, and whether it has logical types."""

    schema: Any
    walk: Walk
    logical: bool


def parsed(schema: Schema, referenced: Callable[[Reference], Schema]) -> Parsed:
    """A registered schema.

    Args:
        referenced: the schema that a reference names.

    Raises:
        ValueError: it is not Avro, or does not parse.
        SchemaRegistryAway: of a schema that it refers to.
    """
    if schema.kind != "AVRO":
        raise ValueError(f"it is of the type {schema.kind}")
    named: dict[str, Any] = {}
    texts: list[str] = []
    _collect(schema, referenced, named, texts, depth=0)
    try:
        whole = parse_schema(json.loads(schema.text), named)
    except (SchemaRegistryAway, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (fastavro raises many kinds)
        raise ValueError(f"{type(error).__name__}: {error}") from None
    texts.append(schema.text)
    return Parsed(whole, walker(whole, named), any('"logicalType"' in text for text in texts))


def _collect(
    schema: Schema,
    referenced: Callable[[Reference], Schema],
    named: dict[str, Any],
    texts: list[str],
    *,
    depth: int,
) -> None:
    """Parse what a schema refers to, the innermost first."""
    if depth > 16:
        raise ValueError("its references are nested deeper than 16")
    for reference in schema.references:
        if reference.name in named:
            continue
        other = referenced(reference)
        _collect(other, referenced, named, texts, depth=depth + 1)
        parse_schema(json.loads(other.text), named)
        texts.append(other.text)


def decode(raw: bytes, at: int, schema: Parsed) -> Any:
    """The value that begins at a place of a message. Raises BadRecord."""
    cursor = Cursor(raw, at)
    schema.walk(cursor)
    if cursor.at != len(raw):
        raise BadRecord("value", f"has {len(raw) - cursor.at} bytes more than its schema says")
    file = io.BytesIO(raw)
    file.seek(at)
    try:
        value = schemaless_reader(file, schema.schema, None)
        return plain(value) if schema.logical else value
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (fastavro raises many kinds on odd bytes)
        raise BadRecord(
            "value", f"is no Avro of its schema: {error or type(error).__name__}"
        ) from None


class RegisteredAvro:
    """Decodes the schema registry's wire format."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._parsed: OrderedDict[int, Parsed] = OrderedDict()

    def __call__(self, raw: bytes) -> Any:
        """Raises BadRecord, SchemaRegistryAway."""
        return decode(raw, PREFIX, self._schema(unframed(raw)))

    def _schema(self, id_: int) -> Parsed:
        if (known := self._parsed.get(id_)) is None:
            try:
                known = parsed(self._registry.schema(id_), self._registry.referenced)
            except BadRecord:
                raise
            except ValueError as error:
                raise BadRecord("value", f"schema {id_} cannot be used: {error}") from None
            self._parsed[id_] = known
            if len(self._parsed) > CACHED:
                self._parsed.popitem(last=False)
        return known


class AvroFile:
    """Decodes values of the schema in a file, without a prefix. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        try:
            self._schema = parsed(Schema("AVRO", path.read_text()), _no_reference)
        except (OSError, ValueError) as error:
            raise ConfigError(f"schema_file: {path}: {error}") from None

    def __call__(self, raw: bytes) -> Any:
        """Raises BadRecord."""
        return decode(raw, 0, self._schema)


def _no_reference(reference: Reference) -> Schema:
    raise ValueError(f"there is no schema {reference.name}")
