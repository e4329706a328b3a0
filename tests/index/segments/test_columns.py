"""Filters by column give the result of filters by record, for every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.index.filters import RANGES, And, Equals, Exists, Filter, Not, OneOf, Or, Range
from braid.index.segments import meta_columns as columns_module
from braid.index.segments.meta_columns import Columns, build, pack, unpack

FIELDS = ("a", "b", "c")
SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, -2.5, 2**60, 2**60 + 1, "", "1", "b", "ü"]

scalars = st.sampled_from(SCALARS)
values = st.one_of(scalars, st.just(float("nan")), st.lists(scalars, max_size=3), st.just({"x": 1}))
metas = st.lists(st.dictionaries(st.sampled_from(FIELDS), values), max_size=12)
fields = st.sampled_from((*FIELDS, "nowhere"))
bounds = st.sampled_from([s for s in SCALARS if s is not None and not isinstance(s, bool)])
leaves: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equals, fields, scalars),
    st.builds(OneOf, fields, st.lists(scalars, min_size=1, max_size=4).map(tuple)),
    st.builds(Exists, fields, st.booleans()),
    st.builds(Range, fields, st.sampled_from(sorted(RANGES)), bounds),
)
filters: st.SearchStrategy[Filter] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Or(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=5,
)


def agree(columns: Columns, rows: list[dict[str, Any]], filter: Filter) -> None:
    mask = columns.mask(filter, rows.__getitem__)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [filter(row) for row in rows]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(metas, filters)
def test_columns_answer_as_records_do(rows: list[dict[str, Any]], filter: Filter) -> None:
    columns = build(rows)
    agree(columns, rows, filter)
    agree(unpack(*pack(columns)), rows, filter)


@settings(max_examples=50, deadline=None)
@given(metas, filters)
def test_fields_without_a_column_are_read_from_meta(
    rows: list[dict[str, Any]], filter: Filter
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "MAX_FIELDS", 1)
        columns = build(rows)
    assert len(columns.columns) <= 1
    agree(columns, rows, filter)


def test_the_most_frequent_fields_get_columns() -> None:
    rows = [{"often": n, **({f"rare{n}": n} if n < 100 else {})} for n in range(300)]
    columns = build(rows)
    assert "often" in columns.columns
    assert len(columns.columns) == columns_module.MAX_FIELDS
    assert len(columns.left_out) == 101 - columns_module.MAX_FIELDS
