"""Protobuf values and keys: by the schema registry's wire format, or of one message type.

Before a message is parsed, its fields are counted on the wire: two bytes may become a message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from ..errors import BadRecord, ConfigError
from ..kafka.packing import MAX_DEPTH
from .budget import Budget
from .protobuf_schema import compiled, in_file
from .schema_registry import CACHED, PREFIX, Schema, SchemaRegistry, unframed

VARINT, FIXED64, BYTES, START, END, FIXED32 = range(6)  # wire types
_CONTINUED = bytes(range(0x80, 0x100))  # bytes that do not end a varint
_FIXED = {
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
}
"""The bytes of a packed number."""
_TEXT = ("StringValue", "BytesValue", "BoolValue", "DoubleValue", "FloatValue")
_WRAPPERS = (*_TEXT, "Int32Value", "Int64Value", "UInt32Value", "UInt64Value")
_GOOGLE = "google.protobuf."

SPECIAL: Mapping[str, Callable[[Any], Any]] = {
    **{f"{_GOOGLE}{name}": lambda message: message.value for name in _WRAPPERS},
    **{
        f"{_GOOGLE}{name}": lambda message: message.ToJsonString()
        for name in ("Timestamp", "Duration", "FieldMask")
    },
    **{f"{_GOOGLE}{name}": MessageToDict for name in ("Struct", "Value", "ListValue")},
}
"""What becomes of Google's own types: as in JSON."""


def decode(raw: bytes, at: int, descriptor: Any) -> dict[str, Any]:
    """The message that begins at a place, as a map by field. Raises BadRecord.

    Fields without presence that are not on the wire have their default, others are left out;
    enums are names, or numbers where the schema has none.
    """
    _Wire(raw).message(at, len(raw), descriptor)
    message = GetMessageClass(descriptor)()
    try:
        message.ParseFromString(raw[at:])
    except DecodeError as error:
        raise BadRecord("value", f"is no {descriptor.full_name}: {error}") from None
    value = _plain(message, Budget())
    assert isinstance(value, dict)
    return value


class _Wire(Budget):
    """Walks over the fields of a message, within the bounds of records."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw

    def message(self, at: int, end: int, descriptor: Any) -> None:
        self.enter(0)
        fields = descriptor.fields_by_number
        groups = 0
        while at < end:
            tag, at = self.varint(at, end)
            wire, field = tag & 7, fields.get(tag >> 3)
            self.spend(1)
            if wire == VARINT:
                _, at = self.varint(at, end)
            elif wire in (FIXED64, FIXED32):
                at += 8 if wire == FIXED64 else 4
            elif wire == BYTES:
                size, at = self.varint(at, end)
                if at + size > end:
                    raise _ends_early()
                self._content(at, at + size, field)
                at += size
            elif wire in (START, END):
                groups += 1 if wire == START else -1
                if not 0 <= groups <= MAX_DEPTH:
                    raise BadRecord("value", "is no protobuf message: its groups do not match")
            else:
                raise BadRecord("value", f"is no protobuf message: wire type {wire}")
        if at > end:
            raise _ends_early()
        self.leave()

    def varint(self, at: int, end: int) -> tuple[int, int]:
        result = shift = 0
        for byte in self._raw[at : min(end, at + 10)]:
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result, at
            shift += 7
        raise _ends_early()

    def _content(self, at: int, end: int, field: Any) -> None:
        """Of a length-delimited field: a message, packed numbers, or text and bytes."""
        if field is None:
            return
        if field.message_type is not None:
            self.message(at, end, field.message_type)
        elif (size := _FIXED.get(field.type)) is not None:
            self.spend((end - at) // size)
        elif field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            self.spend(len(self._raw[at:end].translate(None, _CONTINUED)))


def _ends_early() -> BadRecord:
    return BadRecord("value", "is no protobuf message: it ends early")


def _plain(message: Any, budget: Budget) -> Any:
    descriptor = message.DESCRIPTOR
    if (special := SPECIAL.get(descriptor.full_name)) is not None:
        try:
            return special(message)
        except ValueError as error:  # a time beyond its bounds
            raise BadRecord("value", f"{descriptor.full_name}: {error}") from None
    budget.enter(len(descriptor.fields))
    value = {}
    for field in descriptor.fields:
        if field.is_repeated:
            value[field.name] = _many(getattr(message, field.name), field, budget)
        elif not field.has_presence or message.HasField(field.name):
            value[field.name] = _one(getattr(message, field.name), field, budget)
    budget.leave()
    return value


def _many(values: Any, field: Any, budget: Budget) -> Any:
    budget.spend(len(values))
    entry = field.message_type
    if entry is None or not entry.GetOptions().map_entry:
        return [_one(value, field, budget) for value in values]
    kind = entry.fields_by_name["value"]
    return {str(name): _one(values[name], kind, budget) for name in values}


def _one(value: Any, field: Any, budget: Budget) -> Any:
    if field.message_type is not None:
        return _plain(value, budget)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value


class RegisteredProtobuf:
    """Decodes the schema registry's wire format."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._types: OrderedDict[int, list[Any]] = OrderedDict()

    def __call__(self, raw: bytes) -> Any:
        """Raises BadRecord, SchemaRegistryAway."""
        id_ = unframed(raw)
        path, at = _indexes(raw)
        types = self._schema(id_)
        descriptor = None
        for index in path:
            if index >= len(types):
                raise BadRecord("value", f"schema {id_} has no message at {path}")
            descriptor = types[index]
            types = descriptor.nested_types
        return decode(raw, at, descriptor)

    def _schema(self, id_: int) -> list[Any]:
        if (known := self._types.get(id_)) is None:
            schema = self._registry.schema(id_)
            try:
                known = list(self._compiled(schema, id_))
            except BadRecord:
                raise
            except (ValueError, TimeoutExpired) as error:
                raise BadRecord("value", f"schema {id_} cannot be used: {error}") from None
            self._types[id_] = known
            if len(self._types) > CACHED:
                self._types.popitem(last=False)
        return known

    def _compiled(self, schema: Schema, id_: int) -> Any:
        if schema.kind != "PROTOBUF":
            raise ValueError(f"it is of the type {schema.kind}")
        main = f"braid-schema-{id_}.proto"
        texts = {main: schema.text}
        waiting = list(schema.references)
        while waiting:
            reference = waiting.pop()
            if reference.name not in texts:
                other = self._registry.referenced(reference)
                texts[reference.name] = other.text
                waiting += other.references
        return compiled(main, texts)


def _indexes(raw: bytes) -> tuple[list[int], int]:
    """Which message of the schema it is, by index at each level, and where it begins.

    They stand behind the schema's id as zigzag varints, with their count first; 0 is the first
    message.
    """
    wire, at = _Wire(raw), PREFIX

    def number() -> int:
        nonlocal at
        value, at = wire.varint(at, len(raw))
        return value >> 1 if not value & 1 else -1

    count = number()
    if not 0 <= count <= MAX_DEPTH:
        raise BadRecord("value", f"has no indexes of its message behind the prefix: {count}")
    path = [number() for _ in range(count)] or [0]
    if min(path) < 0:
        raise BadRecord("value", f"has no indexes of its message behind the prefix: {path}")
    return path, at


class ProtobufFile:
    """Decodes one message type of a file, without a prefix. Raises ConfigError."""

    def __init__(self, path: Path, message: str | None) -> None:
        if message is None:
            raise ConfigError("message: protobuf of a schema_file needs the message's full name")
        try:
            self._descriptor = in_file(path, message)
        except (OSError, ValueError, TimeoutExpired) as error:
            raise ConfigError(f"schema_file: {path}: {error}") from None

    def __call__(self, raw: bytes) -> Any:
        """Raises BadRecord."""
        return decode(raw, 0, self._descriptor)
