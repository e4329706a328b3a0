"""Values and nesting of JSON are counted as a parser would, without parsing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.index.errors import BadQuery
from braid.index.service.limits import json_bounds
from braid.index.service.limits.json_bounds import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_NAMES,
    MAX_VALUES,
    check_json,
)

VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{},:é', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='a"\\,[', max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


def counted(value: Any) -> tuple[int, int, int, int]:
    """Commas and one, names, containers, depth."""
    if not isinstance(value, (list, dict)):
        return 1, 0, 0, 0
    parts = list(value.values()) if isinstance(value, dict) else value
    inner = [counted(part) for part in parts]
    commas = max(0, len(parts) - 1) + sum(one[0] - 1 for one in inner)
    names = (len(value) if isinstance(value, dict) else 0) + sum(one[1] for one in inner)
    containers = 1 + sum(one[2] for one in inner)
    return commas + 1, names, containers, 1 + max((one[3] for one in inner), default=0)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(1, 9), st.booleans())
def test_counts_are_those_of_the_parsed_value(value: Any, piece: int, ascii_: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_).encode()
    before = json_bounds.PIECE
    json_bounds.PIECE = piece  # strings and escapes are cut at every place
    try:
        assert json_bounds.json_counts(raw) == counted(value)
    finally:
        json_bounds.PIECE = before


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"[" + b"[]," * MAX_CONTAINERS + b"0]", f"{MAX_CONTAINERS + 1} objects and arrays"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"{MAX_DEPTH + 1} levels"),
        (b"{" + b'"a":0,' * MAX_NAMES + b'"b":0}', f"{MAX_NAMES + 1} names"),
        (b"[" + b"0," * MAX_VALUES + b"0]", f"{MAX_VALUES + 1} values"),
    ],
)
def test_too_much_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(BadQuery, match=words):
        check_json("body", raw)


def test_what_stands_in_strings_does_not_count() -> None:
    text = json.dumps({"text": "[{," * MAX_VALUES, "k": 1}).encode()
    check_json("body", text)
    check_json("body", b"")
    check_json("body", b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
