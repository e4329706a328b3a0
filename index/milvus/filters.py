"""Filters for Milvus: tags that a row carries, and a filter as an expression over them.

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
    return '"' + re.sub(r'[\\"\n\r]', lambda found: escapes[found[0]], text) + '"'


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
    for field, found in meta.items():
        if found is None:
            continue
        tags.add(_tag("there", field))
        if isinstance(found, str):
            tags.add(_tag("string", field))
        elif isinstance(found, (int, float)) and not isinstance(found, bool):
            tags.add(_tag("number", field))
        for part in found if isinstance(found, list) else [found]:
            if isinstance(part, int) and not -INT64 <= part < INT64:
                return None
            if key_of(part) is not None:
                tags.add(_value_tag(field, part))
        if len(tags) > MAX_TAGS:
            return None
    return sorted(tags)


def expression(filter: Filter) -> str:
    """An expression that every row fulfils whose record the filter admits."""
    return f"(told == false or {_say(filter, True)})"


def _say(filter: Filter, wanted: bool) -> str:
    """What finds the records for which the filter's answer is `wanted`: `not` goes inwards."""
    match filter:
        case Equals(field, value):
            return _is_one_of(field, (value,), wanted)
        case OneOf(field, values):
            return _is_one_of(field, values, wanted)
        case Exists(field, there):
            return _has(_tag("there", field), there is wanted)
        case Range():
            return _range(filter, wanted)
        case And(parts):
            return _joined("and" if wanted else "or", (_say(part, wanted) for part in parts))
        case Or(parts):
            return _joined("or" if wanted else "and", (_say(part, wanted) for part in parts))
        case Not(part):
            return _say(part, not wanted)


def _is_one_of(field: str, values: tuple[Scalar, ...], wanted: bool) -> str:
    tags = sorted({_value_tag(field, value) for value in values})
    found = f"array_contains_any(tags, [{', '.join(map(quoted, tags))}])" if tags else _NONE
    said = [found if wanted else f"(not {found})"]
    if None in values:  # absent is null; a list that holds null has the tag
        said.append(_has(_tag("there", field), not wanted))
    return _joined("or" if wanted else "and", said)


def _range(asked: Range, wanted: bool) -> str:
    kind = _tag("string" if isinstance(asked.bound, str) else "number", asked.field)
    op = asked.op if wanted else _OPPOSITE[asked.op]
    compared = _compared(asked.field, op, asked.bound)
    return _joined("and" if wanted else "or", [_has(kind, wanted), compared])


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


def _has(tag: str, wanted: bool) -> str:
    found = f"array_contains(tags, {quoted(tag)})"
    return found if wanted else f"(not {found})"


def _joined(word: str, parts: Iterable[str]) -> str:
    said = list(parts)
    if not said:
        return _ALL if word == "and" else _NONE
    return said[0] if len(said) == 1 else f"({f' {word} '.join(said)})"


def _value_tag(field: str, value: Scalar) -> str:
    """Equal for what `braid.index.filters.key_of` holds equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    said = hex(value) if isinstance(value, int) else str(value)  # hex has no limit of digits
    return _tag("value", field, type(value).__name__, said)


def _tag(*parts: str) -> str:
    """16 letters; two of a billion tags are the same with a probability of 10^-11."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return base64.urlsafe_b64encode(digest.digest()).decode()
