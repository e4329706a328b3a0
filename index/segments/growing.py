"""Growing block: preallocated rows, published by a row count.

Shapes: D dimensions, R rows of one block, N of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

from ..filters import Filter
from ..store import FUSED, Array, Upsert
from . import meta_columns
from .id_map import Int64

Mask = npt.NDArray[np.bool_]


class Facts(NamedTuple):
    """A row without its vectors; `meta` is packed."""

    id: str
    version: int
    ts: int
    partition: int
    model: str
    meta: bytes


class Block:
    """`size` rows. Readers see the published count; the writer fills the rows after it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: Int64 = np.zeros(size, np.int64)
        self._longest = 0.0
        self.vectors: dict[str, Array] = {}
        self._has: dict[str, Mask] = {}
        self._rows: list[Upsert] = []
        self._columns: meta_columns.Columns | None = None

    def write(self, row: int, write: Upsert, slot: int) -> None:
        """Fill one row that is not published yet."""
        vectors = {FUSED: write.fused, **write.by}
        for name, vector_D in vectors.items():
            if name not in self.vectors:
                # New dictionaries, so that concurrent look-ups are safe; `_has` is replaced last
                # because readers look there first.
                array = np.zeros((self.size, vector_D.shape[0]), dtype=np.float32)
                self.vectors = {**self.vectors, name: array}
                self._has = {**self._has, name: np.zeros(self.size, dtype=np.bool_)}
            self.vectors[name][row] = vector_D
            self._longest = max(self._longest, sqrt(vector_D @ vector_D))
        for name, has_R in self._has.items():
            has_R[row] = name in vectors  # an abandoned edit may have set it
        self.slots[row] = slot
        del self._rows[row:]
        # The stored write refers to the block's arrays instead of vectors of its own.
        self._rows.append(
            Upsert(
                id=write.id,
                partition=write.partition,
                version=write.version,
                ts=write.ts,
                model=write.model,
                fused=self.vectors[FUSED][row],
                by={name: self.vectors[name][row] for name in write.by},
                meta=write.meta,
            )
        )

    def id(self, row: int) -> str:
        return self._rows[row].id

    def record(self, row: int) -> Upsert:
        return self._rows[row]

    def facts(self, row: int) -> Facts:
        write = self._rows[row]
        packed: bytes = msgpack.packb(dict(write.meta))
        return Facts(write.id, write.version, write.ts, write.partition, write.model, packed)

    def meta(self, row: int) -> Mapping[str, Any]:
        return self._rows[row].meta

    def matching(self, filter: Filter, count: int) -> Mask:
        """See `braid.index.segments.view.Rows`."""
        if count == self.size:  # the block is full: columns can be kept
            if self._columns is None:
                self._columns = meta_columns.build([row.meta for row in self._rows])
            return self._columns.mask(filter, self.meta)
        rows = self._rows
        return np.fromiter((filter(rows[row].meta) for row in range(count)), np.bool_, count)

    def having(self, name: str, count: int) -> Mask | None:
        return self._has[name][:count]

    @property
    def names(self) -> Sequence[str]:
        return list(self.vectors)

    def has(self, name: str) -> bool:
        return name in self._has

    def longest(self, name: str) -> float:
        return self._longest

    def raw(self, name: str, row_N: Int64) -> Array:
        return self.vectors[name][row_N]
