"""The immutable view that one search reads, and the edit that makes the next view.

A part refers to rows: a growing block (`braid.index.segments.growing`) or a sealed segment
(`braid.index.segments.sealed`). Readers see the first `count` rows, of which `keep` are alive. The
writer makes an `Edit` of the view, which copies every mask that it changes, and publishes the next
view. Data that readers can see never changes, and an abandoned edit has no effect.

Shapes: D dimensions, R rows of a part, N of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..filters import Filter
from ..store import Array, Upsert
from .growing import Block, Facts
from .id_map import Int64, place_of, split

Mask = npt.NDArray[np.bool_]


class Rows(Protocol):
    """Rows of a part, as search and compaction read them."""

    @property
    def slots(self) -> Int64:
        """int64[R], the rows' places in `braid.index.segments.id_map.IdMap`."""
        ...

    def id(self, row: int) -> str: ...

    def record(self, row: int) -> Upsert:
        """The row as it was written, with its vectors."""
        ...

    def facts(self, row: int) -> Facts:
        """The row without its vectors."""
        ...

    def meta(self, row: int) -> Mapping[str, Any]: ...

    def matching(self, filter: Filter, count: int) -> Mask:
        """bool[count], a new array: which of the first rows match."""
        ...

    def having(self, name: str, count: int) -> Mask | None:
        """bool[count], which rows have that vector; None if all have. Read-only."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The vectors that rows may have."""
        ...

    def has(self, name: str) -> bool:
        """Whether any row may have that vector."""
        ...

    def longest(self, name: str) -> float:
        """Upper bound on the norms of that name's vectors."""
        ...

    def raw(self, name: str, row_N: Int64) -> Array:
        """float32[N, D], the vectors of these rows, which must have one."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a view."""

    number: int
    rows: Rows
    count: int
    keep: Mask
    alive: int

    def living(self) -> Int64:
        """int64[alive], the numbers of the live rows."""
        return np.flatnonzero(self.keep[: self.count])

    def holds(self, id: str, row: int) -> bool:
        return row < self.count and bool(self.keep[row]) and self.rows.id(row) == id


@dataclass(frozen=True, slots=True)
class View:
    """The parts that one search reads. `tail` is the number of the block being filled, or None."""

    parts: Mapping[int, Part] = field(default_factory=dict)
    tail: int | None = None

    @property
    def alive(self) -> int:
        return sum(part.alive for part in self.parts.values())

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts.values())


class Edit:
    """Builds the next view.

    Args:
        size: rows of a new block.
        next_number: number of the next new part; numbers are not reused.
    """

    def __init__(self, view: View, *, size: int, next_number: int) -> None:
        self._parts = dict(view.parts)
        self._tail = view.tail
        self._size = size
        self._copied: set[int] = set()
        self.next_number = next_number

    def append(self, write: Upsert, slot: int) -> int:
        """Add a row; returns its place."""
        tail = None if self._tail is None else self._parts[self._tail]
        if tail is None or tail.count == self._size:
            block = Block(self._size)
            tail = Part(self.next_number, block, 0, np.zeros(self._size, np.bool_), 0)
            self._parts[tail.number] = tail
            self._copied.add(tail.number)
            self._tail = tail.number
            self.next_number += 1
        tail = self._writable(tail.number)
        row = tail.count
        assert isinstance(tail.rows, Block)
        tail.rows.write(row, write, slot)
        tail.keep[row] = True
        self._parts[tail.number] = Part(tail.number, tail.rows, row + 1, tail.keep, tail.alive + 1)
        return place_of(tail.number, row)

    def kill(self, place: int) -> None:
        """Mark a row as dead."""
        number, row = split(place)
        part = self._writable(number)
        part.keep[row] = False
        self._parts[number] = replace(part, alive=part.alive - 1)

    def swap(self, out: set[int], into: Part | None) -> None:
        """Replace parts by one part, or by none if they have no live row."""
        parts: dict[int, Part] = {}
        for number, part in self._parts.items():
            if number not in out:
                parts[number] = part
            elif into is not None and into.number not in parts:
                parts[into.number] = into
        self._parts = parts
        if self._tail in out:
            self._tail = None

    def view(self) -> View:
        return View(self._parts, self._tail)

    def _writable(self, number: int) -> Part:
        part = self._parts[number]
        if number not in self._copied:
            part = replace(part, keep=part.keep.copy())
            self._parts[number] = part
            self._copied.add(number)
        return part
