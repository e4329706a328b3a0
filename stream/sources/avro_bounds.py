"""Walks over Avro's binary encoding before it is decoded, within the bounds of records.

An array of nulls or of empty records takes no bytes for its items: ten bytes may stand for 2**60
of them. The walk skips texts and bytes, so that it costs by objects, not by size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import BadRecord
from .budget import Budget

Walk = Callable[["Cursor"], None]
FIXED = {"null": 0, "boolean": 1, "float": 4, "double": 8}
LONGEST_VARINT = 10


class Cursor(Budget):
    """A place in a message."""

    def __init__(self, raw: bytes, at: int) -> None:
        super().__init__()
        self.raw, self.at = raw, at

    def skip(self, count: int) -> None:
        """Raises BadRecord: the message ends before."""
        if count < 0 or self.at + count > len(self.raw):
            raise BadRecord("value", "is no Avro of its schema: it ends early")
        self.at += count

    def number(self) -> int:
        """A zigzag varint. Raises BadRecord."""
        result = shift = 0
        for byte in self.raw[self.at : self.at + LONGEST_VARINT]:
            self.at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (result >> 1) ^ -(result & 1)
            shift += 7
        raise BadRecord("value", "is no Avro of its schema: a number does not end")


def walker(schema: Any, named: Mapping[str, Any]) -> Walk:
    """The walk over values of a schema.

    Args:
        schema: as fastavro has parsed it.
        named: the named schemas that it refers to.
    """
    return _Walkers(named).of(schema)


class _Walkers:
    """Makes walks; those of named schemas once, since they may refer to themselves."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._made: dict[str, Walk] = {}

    def of(self, schema: Any) -> Walk:
        if isinstance(schema, list):
            return _union([self.of(branch) for branch in schema])
        kind = schema["type"] if isinstance(schema, Mapping) else schema
        if isinstance(kind, list | Mapping):
            return self.of(kind)
        if kind in FIXED:
            return _fixed(FIXED[kind])
        if kind in ("int", "long"):
            return lambda cursor: void(cursor.number())
        if kind in ("bytes", "string"):
            return lambda cursor: cursor.skip(cursor.number())
        if kind == "array":
            return _blocks(self.of(schema["items"]))
        if kind == "map":
            values = self.of(schema["values"])
            return _blocks(lambda cursor: _entry(cursor, values))
        return self._of_name(kind, schema)

    def _of_name(self, kind: str, schema: Any) -> Walk:
        """Of a record, an enum, a fixed, or a name that stands for one."""
        if kind == "enum":
            return lambda cursor: void(cursor.number())
        if kind == "fixed":
            return _fixed(schema["size"])
        if kind not in ("record", "error"):
            return self._made[kind] if kind in self._made else self.of(self._named[kind])
        if (name := schema["name"]) not in self._made:
            # Its fields may refer to it before it is made.
            self._made[name] = lambda cursor: made(cursor)
            made = self._made[name] = _record([self.of(one["type"]) for one in schema["fields"]])
        return self._made[name]


def void(_: object) -> None:
    """Drops a value."""


def _fixed(size: int) -> Walk:
    return lambda cursor: cursor.skip(size)


def _union(branches: list[Walk]) -> Walk:
    def walk(cursor: Cursor) -> None:
        number = cursor.number()
        if not 0 <= number < len(branches):
            raise BadRecord("value", "is no Avro of its schema: there is no such branch of a union")
        branches[number](cursor)

    return walk


def _record(fields: list[Walk]) -> Walk:
    def walk(cursor: Cursor) -> None:
        cursor.enter(len(fields))
        for field in fields:
            field(cursor)
        cursor.leave()

    return walk


def _blocks(item: Walk) -> Walk:
    """Of an array or a map: blocks, each with a count, which is negative if a size follows."""

    def walk(cursor: Cursor) -> None:
        cursor.enter(0)
        while count := cursor.number():
            if count < 0:
                count = -count
                cursor.number()
            cursor.spend(count)
            for _ in range(count):
                item(cursor)
        cursor.leave()

    return walk


def _entry(cursor: Cursor, value: Walk) -> None:
    cursor.skip(cursor.number())
    value(cursor)
