"""Filters on meta: a small JSON language, parsed into a tree of conditions.

    {"lang": "de"}                          equality; a list in meta matches if it holds the value
    {"labels.category": "animals"}          a label: meta holds it under this name
    {"year": {"gte": 2020, "lt": 2030}}     ranges, of numbers or of strings
    {"lang": {"in": ["de", "fr"]}}          one of
    {"lang": {"exists": true}}              present and not null
    {"and": [..]}, {"or": [..]}, {"not": {..}}

All fields of one object must match. A node of the tree, called with a meta, evaluates one record;
`braid.index.segments.meta_columns` evaluates all rows of a segment at once, and a property test
keeps the two equal.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from .errors import BadQuery

Scalar = str | int | float | bool | None
Meta = Mapping[str, Any]

MAX_DEPTH = 8
MAX_CONDITIONS = 64
MAX_CHOICES = 1000
RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
OPERATORS = ("in", "exists", *RANGES)


def key_of(value: object) -> tuple[bool, Any] | None:
    """Equal for values equal in JSON: 1 and 1.0, but not 1 and true; None: not a scalar."""
    if value is None or isinstance(value, (str, int, float)):
        return isinstance(value, bool), value
    return None


@dataclass(frozen=True, slots=True)
class Equals:
    """The field is the value, or a list that holds it; absent is null."""

    field: str
    value: Scalar

    def __call__(self, meta: Meta) -> bool:
        key, held = key_of(self.value), meta.get(self.field)
        if isinstance(held, list):
            return any(key_of(part) == key for part in held)
        return key_of(held) == key


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field is one of the values, or a list that holds one of them."""

    field: str
    values: tuple[Scalar, ...]
    keys: frozenset[object] = dataclass_field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A set: the cost does not grow with the number of choices.
        object.__setattr__(self, "keys", frozenset(key_of(value) for value in self.values))

    def __call__(self, meta: Meta) -> bool:
        held = meta.get(self.field)
        parts = held if isinstance(held, list) else (held,)
        return any(key_of(part) in self.keys for part in parts)


@dataclass(frozen=True, slots=True)
class Exists:
    """The field exists and is not null (`present`), or not."""

    field: str
    present: bool

    def __call__(self, meta: Meta) -> bool:
        return (meta.get(self.field) is not None) is self.present


@dataclass(frozen=True, slots=True)
class Range:
    """Compares a number with a number or a string with a string; other values never match."""

    field: str
    op: str
    bound: str | int | float

    def __call__(self, meta: Meta) -> bool:
        held = meta.get(self.field)
        kinds = (str,) if isinstance(self.bound, str) else (int, float)
        if not isinstance(held, kinds) or isinstance(held, bool):
            return False
        return RANGES[self.op](held, self.bound)


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Filter, ...]

    def __call__(self, meta: Meta) -> bool:
        return all(part(meta) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Filter, ...]

    def __call__(self, meta: Meta) -> bool:
        return any(part(meta) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter

    def __call__(self, meta: Meta) -> bool:
        return not self.part(meta)


Filter = Equals | OneOf | Exists | Range | And | Or | Not


def compile_filter(node: object) -> Filter:
    """The tree of a filter; called with a record's meta, it returns whether the meta matches.

    Raises:
        BadQuery: names the invalid part and what is allowed there.
    """
    return _object(node, "filter", 0, [0])


def _seen(value: object) -> str:
    """A short description of a query's value, at a cost that does not depend on its size."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return repr(value[:60] if isinstance(value, str) else value)[:80]


def _object(node: object, where: str, depth: int, counted: list[int]) -> Filter:
    if not isinstance(node, dict) or not node:
        raise BadQuery(where, f"must be a non-empty object, got {_seen(node)}")
    if depth > MAX_DEPTH:
        raise BadQuery(where, f"is nested deeper than the limit of {MAX_DEPTH}")
    parts: list[Filter] = []
    for name, condition in node.items():
        counted[0] += 1
        if counted[0] > MAX_CONDITIONS:
            raise BadQuery(where, f"has more than {MAX_CONDITIONS} conditions")
        inside = f"{where}.{name}"
        if name in ("and", "or"):
            parts.append(_combined(name, condition, inside, depth, counted))
        elif name == "not":
            parts.append(Not(_object(condition, inside, depth + 1, counted)))
        elif isinstance(condition, dict):
            parts.append(_operators(name, condition, inside))
        else:
            parts.append(Equals(name, _scalar(condition, inside)))
    return _all(parts)


def _all(parts: list[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _combined(name: str, node: object, where: str, depth: int, counted: list[int]) -> Filter:
    if not isinstance(node, list) or not node:
        raise BadQuery(where, "must be a non-empty list of filters")
    parts = tuple(
        _object(part, f"{where}[{number}]", depth + 1, counted) for number, part in enumerate(node)
    )
    return And(parts) if name == "and" else Or(parts)


def _operators(name: str, node: Mapping[str, Any], where: str) -> Filter:
    if not node:
        raise BadQuery(where, f"names no operator; there are {', '.join(OPERATORS)}")
    parts: list[Filter] = []
    for key, value in node.items():
        inside = f"{where}.{key}"
        if key == "in":
            parts.append(_one_of(name, value, inside))
        elif key == "exists":
            if not isinstance(value, bool):
                raise BadQuery(inside, f"must be true or false, got {value!r:.60}")
            parts.append(Exists(name, value))
        elif key in RANGES:
            parts.append(_range(name, key, value, inside))
        else:
            raise BadQuery(inside, f"unknown operator; there are {', '.join(OPERATORS)}")
    return _all(parts)


def _scalar(value: object, where: str) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadQuery(where, f"must be finite, got {value}")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise BadQuery(where, f"must be a string, number, boolean or null, got {_seen(value)}")


def _one_of(name: str, node: object, where: str) -> Filter:
    if not isinstance(node, list) or not node:
        raise BadQuery(where, "must be a non-empty list")
    if len(node) > MAX_CHOICES:
        raise BadQuery(where, f"has {len(node)} choices, the limit is {MAX_CHOICES}")
    return OneOf(name, tuple(_scalar(value, where) for value in node))


def _range(name: str, op: str, bound: object, where: str) -> Filter:
    _scalar(bound, where)
    if isinstance(bound, bool) or not isinstance(bound, (str, int, float)):
        raise BadQuery(where, f"must be a number or a string, got {_seen(bound)}")
    return Range(name, op, bound)
