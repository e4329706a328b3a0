"""The formats of a source's keys and values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadRecord, ConfigError
from ..kafka.packing import unpack_bounded
from ..settings import Settings
from ..settings.source_groups import Source
from .json_format import decode_json

if TYPE_CHECKING:
    from .schema_registry import SchemaRegistry

Decode = Callable[[bytes], Any]
"""Bytes to a value of maps, lists, texts, bytes and numbers.

Raises BadRecord, or SchemaRegistryAway: decode it again later."""


def decode_text(raw: bytes) -> str:
    """UTF-8. Raises BadRecord."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadRecord("value", "is not UTF-8") from None


def decode_msgpack(raw: bytes) -> Any:
    """A msgpack map; a schema registry's prefix is skipped. Raises BadRecord."""
    return unpack_bounded(raw[5:] if raw[:1] == b"\0" else raw)


def _avro(settings: Settings, file: Path | None, message: str | None) -> Decode:
    from .avro import AvroFile, RegisteredAvro

    return RegisteredAvro(_registry(settings)) if file is None else AvroFile(file)


def _protobuf(settings: Settings, file: Path | None, message: str | None) -> Decode:
    from .protobuf import ProtobufFile, RegisteredProtobuf

    if file is None:
        return RegisteredProtobuf(_registry(settings))
    return ProtobufFile(file, message)


def _registry(settings: Settings) -> SchemaRegistry:
    from .schema_registry import SchemaRegistry

    return SchemaRegistry(settings.schema_registry)


FORMATS: dict[str, Callable[[Settings, Path | None, str | None], Decode]] = {
    "json": lambda *_: decode_json,
    "msgpack": lambda *_: decode_msgpack,
    "text": lambda *_: decode_text,
    "bytes": lambda *_: bytes,
    "avro": _avro,
    "protobuf": _protobuf,
}
"""Makers of decoders, by format, from the schema's file and message. They raise ConfigError."""


def value_decoder(settings: Settings, source: Source) -> Decode:
    """Raises ConfigError: its schema cannot be read, or a package is not installed."""
    return _made(settings, source.format, source.schema_file, source.message)


def key_decoder(settings: Settings, source: Source) -> Decode:
    """The same for keys, whose schema is the schema registry's."""
    default = "text" if source.envelope == "none" else source.format
    return _made(settings, source.key_format or default)


def _made(
    settings: Settings, name: str, file: Path | None = None, message: str | None = None
) -> Decode:
    try:
        return FORMATS[name](settings, file, message)
    except ImportError as error:
        raise ConfigError(
            f"the format {name} needs {error.name}: pip install 'braid-stream[sources]'"
        ) from None
