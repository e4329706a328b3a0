"""Filters as Milvus expressions over tags that each row carries.

JSON paths in Milvus differ from `braid.index.filters`: a comparison with an absent key is neither
true nor false, `== 1` matches `true`, lists and nulls follow other rules, and its parser splits
keys with brackets. A row therefore stores, beside its meta, an array of short tags, one for each
condition that a filter may test:

    (value, field, v)   the field is v, or a list that holds it
    (there, field)      the field exists and is not null
    (number, field)     the field is a number;  (string, field)  a string

A tag is a digest, so an expression contains no name and no value of a query, and `array_contains`
on a field that is never null is either true or false. Only the bound of a range is compared on the
JSON path itself, guarded by the tag of its kind.

An expression matches every record that the filter matches, and may match more: if the field of a
range has a name that Milvus may not parse, if numbers exceed 2^53 (Milvus compares doubles), and
for rows without tags (`tagged` is false: see `tags_of`). The caller applies the filter to each hit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..filters import And, Equals, Exists, Filter, Not, OneOf, Or, Range, Scalar, key_of

MAX_TAGS = 1024  # the capacity of the array; Milvus allows 4096
MAX_JSON_BYTES = 60_000  # of a meta with tags; a server's limit for JSON is 65,536
EXACT = 2**53  # a double represents every integer below
INT64 = 2**63

_PATH = re.compile(r"[A-Za-z0-9_-]{1,128}")
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_OPPOSITE = {"gt": "lte", "gte": "lt", "lt": "gte", "lte": "gt"}
_ALL = "(tagged == true or tagged == false)"
_NONE = "(tagged == true and tagged == false)"


def quoted(text: str) -> str:
    """A string literal. The parsers of the server and of Lite need no other escapes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + re.sub(r'[\\"\n\r]', lambda match: escapes[match[0]], text) + '"'


def tags_of(meta: Mapping[str, Any]) -> list[str] | None:
    """The tags of a record's meta; None if tags cannot represent it.

    That is: more than MAX_TAGS tags, a number that is not finite or exceeds 64 bits, or more JSON
    than Milvus stores. Such a row is a candidate for every filter.
    """
    try:
        if len(json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()) > MAX_JSON_BYTES:
            return None
    except (TypeError, ValueError):  # bytes, NaN, half a surrogate pair
        return None
    tags: set[str] = set()
    for field, value in meta.items():
        if value is None:
            continue
        tags.add(_tag("there", field))
        if isinstance(value, str):
            tags.add(_tag("string", field))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            tags.add(_tag("number", field))
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, int) and not -INT64 <= part < INT64:
                return None
            if key_of(part) is not None:
                tags.add(_value_tag(field, part))
        if len(tags) > MAX_TAGS:
            return None
    return sorted(tags)


def expression(filter: Filter) -> str:
    """An expression that is true for every row that the filter matches."""
    return f"(tagged == false or {_condition(filter, True)})"


def _condition(filter: Filter, matches: bool) -> str:
    """The condition for records whose filter result is `matches`; negation is pushed inwards."""
    match filter:
        case Equals(field, value):
            return _is_one_of(field, (value,), matches)
        case OneOf(field, values):
            return _is_one_of(field, values, matches)
        case Exists(field, there):
            return _has(_tag("there", field), there is matches)
        case Range():
            return _range(filter, matches)
        case And(parts):
            return _joined(
                "and" if matches else "or", [_condition(part, matches) for part in parts]
            )
        case Or(parts):
            return _joined(
                "or" if matches else "and", [_condition(part, matches) for part in parts]
            )
        case Not(part):
            return _condition(part, not matches)


def _is_one_of(field: str, values: tuple[Scalar, ...], matches: bool) -> str:
    tags = sorted({_value_tag(field, value) for value in values})
    contains = f"array_contains_any(tags, [{', '.join(map(quoted, tags))}])" if tags else _NONE
    terms = [contains if matches else f"(not {contains})"]
    if None in values:  # absent is null; a list that holds null has the tag
        terms.append(_has(_tag("there", field), not matches))
    return _joined("or" if matches else "and", terms)


def _range(range_: Range, matches: bool) -> str:
    kind = _tag("string" if isinstance(range_.bound, str) else "number", range_.field)
    op = range_.op if matches else _OPPOSITE[range_.op]
    compared = _compared(range_.field, op, range_.bound)
    return _joined("and" if matches else "or", [_has(kind, matches), compared])


def _compared(field: str, op: str, bound: str | int | float) -> str:
    if not _PATH.fullmatch(field):
        return _ALL
    path = f"meta[{quoted(field)}]"
    if isinstance(bound, str):
        # Half a surrogate pair cannot be sent, and no meta with tags contains one.
        sound = bound.encode("utf-8", "ignore").decode() == bound
        return f"({path} {_OPERATORS[op]} {quoted(bound)})" if sound else _ALL
    if -EXACT < bound < EXACT:
        return f"({path} {_OPERATORS[op]} {bound!r})"
    try:
        near = float(bound)
    except OverflowError:
        return _ALL
    # Milvus compares doubles, which may round to a neighbour: include the neighbours.
    op = op if op.endswith("e") else f"{op}e"
    near = math.nextafter(near, -math.inf if op == "gte" else math.inf)
    return f"({path} {_OPERATORS[op]} {near!r})" if math.isfinite(near) else _ALL


def _has(tag: str, matches: bool) -> str:
    contains = f"array_contains(tags, {quoted(tag)})"
    return contains if matches else f"(not {contains})"


def _joined(word: str, parts: Iterable[str]) -> str:
    terms = list(parts)
    if not terms:
        return _ALL if word == "and" else _NONE
    return terms[0] if len(terms) == 1 else f"({f' {word} '.join(terms)})"


def _value_tag(field: str, value: Scalar) -> str:
    """Equal for values with equal `braid.index.filters.key_of`: 1 and 1.0, but not 1 and true."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = hex(value) if isinstance(value, int) else str(value)  # str() limits the digits of an int
    return _tag("value", field, type(value).__name__, text)


def _tag(*parts: str) -> str:
    """16 characters; two of a billion tags collide with a probability of 10^-11."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return base64.urlsafe_b64encode(digest.digest()).decode()
