"""Rows in preallocated blocks, seen through immutable views.

Readers hold a `View`: blocks, how many rows of each are published, and which of those are alive.
The one writer makes an `Edit` of the view, fills rows behind the published counts, copies every
mask that it changes, and hands out the next view. Nothing that a reader can see changes, and an
edit that is given up half way leaves no trace.

Shapes: D dimensions, R rows of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from .store import FUSED, Array, Upsert

Mask = npt.NDArray[np.bool_]
Place = tuple[int, int]  # block number, row


@dataclass(slots=True, eq=False)
class Block:
    """`size` rows. Rows behind the published count belong to the writer, the others to nobody."""

    size: int
    vectors: dict[str, Array] = field(default_factory=dict)
    has: dict[str, Mask] = field(default_factory=dict)
    rows: list[Upsert] = field(default_factory=list)

    def write(self, row: int, write: Upsert) -> Upsert:
        """Fill one row, which nobody sees yet; the write as kept, its vectors lying in here."""
        given = {FUSED: write.fused, **write.by}
        for name, vector_D in given.items():
            if name not in self.vectors:
                # New dictionaries, so that a reader's look-up is never disturbed; `has` last,
                # because that is where a reader looks first.
                array = np.zeros((self.size, vector_D.shape[0]), dtype=np.float32)
                self.vectors = {**self.vectors, name: array}
                self.has = {**self.has, name: np.zeros(self.size, dtype=np.bool_)}
            self.vectors[name][row] = vector_D
        for name, has_R in self.has.items():
            has_R[row] = name in given  # an edit that was given up may have left another answer
        views = {name: self.vectors[name][row] for name in write.by}
        kept = replace(write, fused=self.vectors[FUSED][row], by=views)
        del self.rows[row:]
        self.rows.append(kept)
        return kept


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """One block as readers may see it: the first `count` rows, of which `keep` are alive."""

    block: Block
    count: int
    keep: Mask
    alive: int

    def living(self) -> list[int]:
        """The numbers of the rows that are alive."""
        rows: list[int] = np.flatnonzero(self.keep[: self.count]).tolist()
        return rows


@dataclass(frozen=True, slots=True)
class View:
    """All that one search reads. `tail` is the block being filled, -1 when there is none.

    A block that compaction emptied keeps its number, with a count of 0, until it is used again.
    """

    blocks: tuple[Published, ...] = ()
    tail: int = -1

    @property
    def alive(self) -> int:
        return sum(published.alive for published in self.blocks)

    @property
    def rows(self) -> int:
        return sum(published.count for published in self.blocks)


class Edit:
    """The next view while it is made."""

    def __init__(self, view: View, *, size: int) -> None:
        self._blocks = list(view.blocks)
        self._tail = view.tail
        self._size = size
        self._copied: set[int] = set()

    def append(self, write: Upsert) -> tuple[Upsert, Place]:
        """Add a row; the write as kept, and where."""
        if self._tail < 0 or self._blocks[self._tail].count == self._size:
            self._tail = self._fresh()
        number = self._tail
        published = self._writable(number)
        row = published.count
        kept = published.block.write(row, write)
        published.keep[row] = True
        self._blocks[number] = Published(
            published.block, row + 1, published.keep, published.alive + 1
        )
        return kept, (number, row)

    def kill(self, place: Place) -> None:
        """The row is no longer to be found."""
        number, row = place
        published = self._writable(number)
        published.keep[row] = False
        self._blocks[number] = Published(
            published.block, published.count, published.keep, published.alive - 1
        )

    def compact(self, limit: int, moved: Callable[[Upsert, Place], None]) -> None:
        """Empty up to `limit` full blocks that are more than half dead, by moving their living.

        A move costs a row, and each was paid for by a row that died: the work stays in proportion
        to the writes, and no single edit carries all of it.
        """
        for number, published in enumerate(self._blocks):
            if limit == 0:
                return
            if (
                number == self._tail
                or published.count < self._size
                or published.alive > self._size // 2
            ):
                continue
            limit -= 1
            for row in published.living():
                moved(*self.append(published.block.rows[row]))
            self._blocks[number] = self._empty(0)
            self._copied.discard(number)

    def view(self) -> View:
        return View(tuple(self._blocks), self._tail)

    def _fresh(self) -> int:
        """The number of an empty block: one that compaction freed, or a new one."""
        free = (n for n, published in enumerate(self._blocks) if published.count == 0)
        number = next(free, len(self._blocks))
        self._blocks[number : number + 1] = [self._empty(self._size)]
        self._copied.add(number)
        return number

    def _empty(self, rows: int) -> Published:
        return Published(Block(self._size), 0, np.zeros(rows, np.bool_), 0)

    def _writable(self, number: int) -> Published:
        published = self._blocks[number]
        if number not in self._copied:
            published = replace(published, keep=published.keep.copy())
            self._blocks[number] = published
            self._copied.add(number)
        return published
