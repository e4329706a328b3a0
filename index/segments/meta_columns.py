"""Columnar meta of a segment: evaluates a filter for all rows at once.

A column holds a field's distinct scalars, sorted, and an int32 code for each row. Equality and
ranges become intervals of codes, found by bisection, without Python code per row. Values are sorted
by kind first, so that booleans, numbers and strings stay distinct, as in JSON. The elements of
lists are in a second pair of arrays.

Fields beyond the MAX_FIELDS most frequent have no column; a filter on such a field is evaluated row
by row from meta.

Shapes: R rows, E elements of lists.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..filters import And, Equals, Exists, Filter, Meta, Not, OneOf, Or, Range, Scalar

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int32]

ABSENT, OTHER = -1, -2  # null or missing; a list or an object
MAX_FIELDS = 64
KINDS: dict[type, int] = {bool: 0, int: 1, float: 1, str: 2}


def _sortable(value: Any) -> bool:
    """Whether a value can be in a dictionary; NaN cannot, since it equals nothing."""
    return type(value) in KINDS and value == value


def _key(value: Any) -> tuple[int, Any]:
    """Sort key of scalars: kind first, so that only comparable values are compared."""
    return KINDS[type(value)], value


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One field of all rows.

    Attributes:
        values: the distinct scalars, sorted by `_key`.
        code_R: index into `values`, ABSENT or OTHER.
        element_row_E, element_code_E: the scalars inside lists; null among them is ABSENT.
    """

    values: Sequence[Any]
    code_R: Codes
    element_row_E: Codes
    element_code_E: Codes

    def equals(self, value: Scalar) -> Mask:
        if value is None:
            return self._with_elements(self.code_R == ABSENT, self.element_code_E == ABSENT)
        at = self._find(value)
        if at is None:
            return np.zeros(len(self.code_R), np.bool_)
        return self._with_elements(self.code_R == at, self.element_code_E == at)

    def one_of(self, values: Iterable[Scalar]) -> Mask:
        # Two more entries than values: ABSENT and OTHER index them from the end.
        is_choice = np.zeros(len(self.values) + 2, np.bool_)
        for value in values:
            at = ABSENT if value is None else self._find(value)
            if at is not None:
                is_choice[at] = True
        return self._with_elements(is_choice[self.code_R], is_choice[self.element_code_E])

    def exists(self) -> Mask:
        mask_R: Mask = self.code_R != ABSENT
        return mask_R

    def in_range(self, op: str, bound: str | int | float) -> Mask:
        kind = KINDS[type(bound)]
        low = bisect_left(self.values, kind, key=lambda value: KINDS[type(value)])
        high = bisect_right(self.values, kind, key=lambda value: KINDS[type(value)])
        if op in ("gt", "gte"):
            find = bisect_right if op == "gt" else bisect_left
            low = find(self.values, (kind, bound), low, high, key=_key)
        else:
            find = bisect_left if op == "lt" else bisect_right
            high = find(self.values, (kind, bound), low, high, key=_key)
        if low >= high:
            return np.zeros(len(self.code_R), np.bool_)
        if low == 0:
            return (self.code_R < high) & (self.code_R >= 0)
        return (self.code_R >= low) & (self.code_R < high)

    def _find(self, value: Any) -> int | None:
        at = bisect_left(self.values, _key(value), key=_key)
        if at < len(self.values) and _key(self.values[at]) == _key(value):
            return at
        return None

    def _with_elements(self, mask_R: Mask, mask_E: Mask) -> Mask:
        if len(mask_E):
            mask_R[self.element_row_E[mask_E]] = True
        return mask_R


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The columns of R rows; `left_out` fields have none."""

    rows: int
    columns: Mapping[str, Column]
    left_out: frozenset[str] = frozenset()

    def mask(self, filter: Filter, meta_of: Callable[[int], Meta]) -> Mask:
        """bool[R], a fresh array: which rows match.

        Args:
            meta_of: returns the meta of a row; called only for fields without a column.
        """
        if isinstance(filter, And):
            mask_R = self.mask(filter.parts[0], meta_of)
            for part in filter.parts[1:]:
                mask_R &= self.mask(part, meta_of)
            return mask_R
        if isinstance(filter, Or):
            mask_R = self.mask(filter.parts[0], meta_of)
            for part in filter.parts[1:]:
                mask_R |= self.mask(part, meta_of)
            return mask_R
        if isinstance(filter, Not):
            return ~self.mask(filter.part, meta_of)
        if filter.field in self.left_out:
            matches = (filter(meta_of(row)) for row in range(self.rows))
            return np.fromiter(matches, np.bool_, self.rows)
        column = self.columns.get(filter.field)
        if column is None:  # no row has the field
            return np.full(self.rows, filter({}), np.bool_)
        return LEAVES[type(filter)](column, filter)


LEAVES: dict[type, Callable[[Column, Any], Mask]] = {
    Equals: lambda column, filter: column.equals(filter.value),
    OneOf: lambda column, filter: column.one_of(filter.values),
    Exists: lambda column, filter: column.exists() == filter.present,
    Range: lambda column, filter: column.in_range(filter.op, filter.bound),
}


def build(metas: Sequence[Meta], *, yield_gil: Callable[[], None] = lambda: None) -> Columns:
    """The columns of these rows. `yield_gil` is called between fields."""
    counts = Counter(name for meta in metas for name in meta)
    kept = [name for name, _ in counts.most_common(MAX_FIELDS)]
    columns = {}
    for name in kept:
        columns[name] = _column(name, metas)
        yield_gil()
    return Columns(len(metas), columns, frozenset(counts) - frozenset(kept))


def _column(name: str, metas: Sequence[Meta]) -> Column:
    values = [meta.get(name) for meta in metas]
    distinct: dict[tuple[int, Any], Any] = {}
    elements: list[tuple[int, Any]] = []
    for row, value in enumerate(values):
        if _sortable(value):
            distinct.setdefault(_key(value), value)
        elif isinstance(value, list):
            for part in value:
                if part is None:
                    elements.append((row, None))
                elif _sortable(part):
                    distinct.setdefault(_key(part), part)
                    elements.append((row, part))
    order = sorted(distinct)
    at = {key: number for number, key in enumerate(order)}

    def code(value: Any) -> int:
        if value is None:
            return ABSENT
        return at[_key(value)] if _sortable(value) else OTHER

    return Column(
        values=[distinct[key] for key in order],
        code_R=np.fromiter(map(code, values), np.int32, len(values)),
        element_row_E=np.fromiter((row for row, _ in elements), np.int32, len(elements)),
        element_code_E=np.fromiter((code(part) for _, part in elements), np.int32, len(elements)),
    )


def pack(columns: Columns) -> tuple[dict[str, Any], dict[str, Codes]]:
    """Columns in the form that is written to files: plain values, and arrays by name."""
    plain = {
        "rows": columns.rows,
        "left_out": sorted(columns.left_out),
        "values": {name: list(column.values) for name, column in columns.columns.items()},
    }
    arrays: dict[str, Codes] = {}
    for number, column in enumerate(columns.columns.values()):
        arrays[f"code-{number}"] = column.code_R
        arrays[f"element-row-{number}"] = column.element_row_E
        arrays[f"element-code-{number}"] = column.element_code_E
    return plain, arrays


def unpack(plain: Mapping[str, Any], arrays: Mapping[str, Codes]) -> Columns:
    """The inverse of `pack`. Raises KeyError if an array is missing."""
    columns = {
        name: Column(
            values,
            arrays[f"code-{number}"],
            arrays[f"element-row-{number}"],
            arrays[f"element-code-{number}"],
        )
        for number, (name, values) in enumerate(plain["values"].items())
    }
    return Columns(plain["rows"], columns, frozenset(plain["left_out"]))
