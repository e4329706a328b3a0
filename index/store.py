"""The vector store interface and its types: writes, hits, rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .filters import Filter

Array = npt.NDArray[np.float32]
FUSED = "fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upsert:
    """One record's vectors. `version` is its offset in `records`, `ts` milliseconds since 1970."""

    id: str
    partition: int
    version: int
    ts: int
    model: str
    fused: Array
    by: Mapping[str, Array] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """A deletion of the record, as of `version`."""

    id: str
    partition: int
    version: int
    ts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One hit; `score` is the inner product of unit vectors, in [-1, 1]."""

    id: str
    score: float
    meta: Mapping[str, Any]
    model: str
    version: int
    partition: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One record as the store holds it."""

    id: str
    partition: int
    version: int
    ts: int
    model: str
    meta: Mapping[str, Any]
    vectors: Mapping[str, Array]


class VectorStore(Protocol):
    """Vectors of one space, searchable while they are written.

    One thread writes (`apply`), any number of threads search. Within one partition the higher
    version wins, a repeated version changes nothing, and deletions are remembered. An id that
    appears in a second partition is counted; between partitions the later `ts` wins.
    """

    @property
    def space(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def positions(self) -> Mapping[int, int]:
        """Partition of `vectors` -> the next offset to read."""
        ...

    @property
    def progress(self) -> Mapping[int, int]:
        """Partition of `records` -> the next offset that is not reflected yet."""
        ...

    def __len__(self) -> int:
        """How many records are searchable."""
        ...

    def apply(
        self,
        writes: Sequence[Upsert | Delete],
        *,
        positions: Mapping[int, int],
        progress: Mapping[int, int],
    ) -> None:
        """Apply writes and offsets atomically: a search sees all of them or none.

        Raises:
            ValueError: a vector's length is not `dim`; no write is applied.
        """
        ...

    def search(
        self,
        queries_BD: Array,
        *,
        k: int,
        vector: str = FUSED,
        filter: Filter | None = None,
    ) -> list[list[Hit]]:
        """The k records with the highest inner product, best first, for each query.

        Raises:
            BadQuery: queries are not [B, dim] or not finite, or k is below 1.
        """
        ...

    def get(self, id: str) -> Row | None: ...

    def ids(self) -> set[str]:
        """The ids of all live records, at least those that `progress` covered before the call."""
        ...

    def sample(self, limit: int, *, seed: int = 0) -> list[Row]:
        """Up to `limit` live records, in no particular order.

        The same seed gives the same records while they live: writes and deletions change the
        sample by few records.
        """
        ...

    def stats(self) -> dict[str, Any]: ...


@runtime_checkable
class SupportsGetMany(Protocol):
    """Optional interface of a store: several records in one call."""

    def get_many(self, ids: Sequence[str]) -> dict[str, Row]:
        """Records by id; missing ones are left out."""
        ...


def rows_of(store: VectorStore, ids: Iterable[str]) -> dict[str, Row]:
    """Records by id, in one call if the store supports it; missing ones are left out."""
    if isinstance(store, SupportsGetMany):
        return store.get_many(list(ids))
    return {id_: row for id_ in ids if (row := store.get(id_)) is not None}


@runtime_checkable
class SupportsProbe(Protocol):
    """Optional interface of a store: measures its recall.

    An approximate store also has `exact`, which is false; a store without it is exact.
    """

    def probe(self, query_D: Array, *, k: int, vector: str = FUSED) -> float:
        """Recall@k of `search` for this query against exact search over all rows, in [0, 1].

        Rows written between the two searches may lower it slightly; 1.0 for an empty store.
        """
        ...


def is_exact(store: VectorStore) -> bool:
    """Whether the store's answers are exact."""
    return bool(getattr(store, "exact", True))
