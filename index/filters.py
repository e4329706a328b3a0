"""Filters on meta: a small language as JSON, compiled to one function.

    {"lang": "de"}                          equality; a list in meta matches if it holds the value
    {"year": {"gte": 2020, "lt": 2030}}     ranges, of numbers or of strings
    {"lang": {"in": ["de", "fr"]}}          one of
    {"lang": {"exists": true}}              present and not null
    {"and": [..]}, {"or": [..]}, {"not": {..}}

Several fields in one object must all match.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from .errors import BadQuery

Filter = Callable[[Mapping[str, Any]], bool]

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


def compile_filter(given: object) -> Filter:
    """A function that says whether a record's meta matches.

    Raises:
        BadQuery: names the part at fault and what is allowed there.
    """
    counted = [0]
    return _object(given, "filter", 0, counted)


def _object(given: object, where: str, depth: int, counted: list[int]) -> Filter:
    if not isinstance(given, dict) or not given:
        raise BadQuery(where, f"must be a non-empty object, got {given!r:.60}")
    if depth > MAX_DEPTH:
        raise BadQuery(where, f"is nested deeper than the limit of {MAX_DEPTH}")
    parts: list[Filter] = []
    for name, condition in given.items():
        counted[0] += 1
        if counted[0] > MAX_CONDITIONS:
            raise BadQuery(where, f"has more than {MAX_CONDITIONS} conditions")
        inside = f"{where}.{name}"
        if name in ("and", "or"):
            parts.append(_combined(name, condition, inside, depth, counted))
        elif name == "not":
            parts.append(_negated(_object(condition, inside, depth + 1, counted)))
        elif isinstance(condition, dict):
            parts.append(_operators(name, condition, inside))
        else:
            parts.append(_equals(name, _scalar(condition, inside)))
    return parts[0] if len(parts) == 1 else lambda meta: all(part(meta) for part in parts)


def _combined(name: str, given: object, where: str, depth: int, counted: list[int]) -> Filter:
    if not isinstance(given, list) or not given:
        raise BadQuery(where, "must be a non-empty list of filters")
    parts = [
        _object(part, f"{where}[{number}]", depth + 1, counted) for number, part in enumerate(given)
    ]
    test = all if name == "and" else any
    return lambda meta: test(part(meta) for part in parts)


def _negated(part: Filter) -> Filter:
    return lambda meta: not part(meta)


def _operators(name: str, given: Mapping[str, Any], where: str) -> Filter:
    if not given:
        raise BadQuery(where, f"names no operator; there are {', '.join(OPERATORS)}")
    parts: list[Filter] = []
    for key, value in given.items():
        inside = f"{where}.{key}"
        if key == "in":
            parts.append(_one_of(name, value, inside))
        elif key == "exists":
            if not isinstance(value, bool):
                raise BadQuery(inside, f"must be true or false, got {value!r:.60}")
            parts.append(_exists(name, value))
        elif key in RANGES:
            parts.append(_range(name, RANGES[key], value, inside))
        else:
            raise BadQuery(inside, f"unknown operator; there are {', '.join(OPERATORS)}")
    return lambda meta: all(part(meta) for part in parts)


def _scalar(value: object, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadQuery(where, f"must be finite, got {value}")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise BadQuery(where, f"must be a string, number, boolean or null, got {value!r:.60}")


def _key(value: object) -> object:
    """What is equal in JSON has equal keys: 1 and 1.0, but not 1 and true."""
    if value is None or isinstance(value, (str, int, float)):
        return isinstance(value, bool), value
    return None  # equal to no scalar


def _equals(name: str, value: object) -> Filter:
    key = _key(value)

    def test(meta: Mapping[str, Any]) -> bool:
        found = meta.get(name)
        if isinstance(found, list):
            return any(_key(part) == key for part in found)
        return _key(found) == key

    return test


def _one_of(name: str, given: object, where: str) -> Filter:
    if not isinstance(given, list) or not given:
        raise BadQuery(where, "must be a non-empty list")
    if len(given) > MAX_CHOICES:
        raise BadQuery(where, f"has {len(given)} choices, the limit is {MAX_CHOICES}")
    # A set: a thousand choices cost what one costs.
    choices = frozenset(_key(_scalar(value, where)) for value in given)

    def test(meta: Mapping[str, Any]) -> bool:
        found = meta.get(name)
        parts = found if isinstance(found, list) else (found,)
        return any(_key(part) in choices for part in parts)

    return test


def _exists(name: str, wanted: bool) -> Filter:
    return lambda meta: (meta.get(name) is not None) is wanted


def _range(name: str, compare: Callable[[Any, Any], bool], bound: object, where: str) -> Filter:
    _scalar(bound, where)
    if isinstance(bound, bool) or not isinstance(bound, (str, int, float)):
        raise BadQuery(where, f"must be a number or a string, got {bound!r}")
    kinds = (str,) if isinstance(bound, str) else (int, float)

    def test(meta: Mapping[str, Any]) -> bool:
        found = meta.get(name)
        return isinstance(found, kinds) and not isinstance(found, bool) and compare(found, bound)

    return test
