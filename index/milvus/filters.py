"""Filters as Milvus expressions over tags that each row carries.

What Milvus says about JSON paths is not what `braid.index.filters` says: a comparison of an absent
key is neither true nor false, `== 1` finds `true`, lists and nulls have rules of their own, and
keys with brackets are cut apart by its parser. So a row carries beside its meta an array of short
tags, one for each thing that a filter may ask:

    (value, field, v)   the field is v, or a list that holds it
    (there, field)      the field is there and not null
    (number, field)     the field is a number;  (string, field)  a string

A tag is a digest, so no name and no value of a query stands in an expression as it was given, and
`array_contains` over a field that is never null has no third truth value. Only the bound of a range
is compared on the JSON path itself, guarded by the tag that says its kind.

An expression finds every record that the filter admits, and may find more: where a range's field
has a name that Milvus's parser is not sure to take, where numbers beyond 2^53 meet Milvus's
doubles, and in rows whose meta has no tags (`told` is false: see `tags_of`). Who searches with it
asks the filter itself about each hit.
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
EXACT = 2**53  # below, a double holds every integer
INT64 = 2**63

_PATH = re.compile(r"[A-Za-z0-9_-]{1,128}")
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_OPPOSITE = {"gt": "lte", "gte": "lt", "lt": "gte", "lte": "gt"}
_ALL = "(told == true or told == false)"
_NONE = "(told == true and told == false)"


def quoted(text: str) -> str:
    """A string literal. Both parsers (the server's and Lite's) take all else as it is."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + re.sub(r'[\\"\n\r]', lambda match: escapes[match[0]], text) + '"'


def tags_of(meta: Mapping[str, Any]) -> list[str] | None:
    """The tags of a record's meta; None if they cannot say it all.

    That is: more than MAX_TAGS, a number that is not finite or beyond 64 bits, more JSON than
    Milvus holds. Such a row is a candidate for every filter.
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
    """An expression that every row fulfils whose record the filter admits."""
    return f"(told == false or {_condition(filter, True)})"


def _condition(filter: Filter, matches: bool) -> str:
    """What finds the records for which the filter's answer is `matches`: `not` goes inwards."""
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
        # Half a surrogate pair fits in no message, and in no meta that has tags.
        sound = bound.encode("utf-8", "ignore").decode() == bound
        return f"({path} {_OPERATORS[op]} {quoted(bound)})" if sound else _ALL
    if -EXACT < bound < EXACT:
        return f"({path} {_OPERATORS[op]} {bound!r})"
    try:
        near = float(bound)
    except OverflowError:
        return _ALL
    # Milvus compares as doubles, where a number may be taken for its neighbour: let those in.
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
    """Equal for what `braid.index.filters.key_of` holds equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = hex(value) if isinstance(value, int) else str(value)  # hex has no limit of digits
    return _tag("value", field, type(value).__name__, text)


def _tag(*parts: str) -> str:
    """16 letters; two of a billion tags are the same with a probability of 10^-11."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return base64.urlsafe_b64encode(digest.digest()).decode()
