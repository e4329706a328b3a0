"""What a vector store is: the writes it takes, the hits it gives, and the interface between."""

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
    """The record is gone as of `version`."""

    id: str
    partition: int
    version: int
    ts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One answer; `score` is the inner product of unit vectors, in [-1, 1]."""

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

    One thread writes (`apply`), any number search. An older version never wins, a repeated one
    changes nothing, a deletion is remembered. Within one partition the higher version wins; an id
    that turns up in a second partition is counted, and there the later `ts` wins.
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
        """Take writes and offsets over in one step: a search sees all of them or none.

        Raises:
            ValueError: a vector's length is not `dim`; nothing of the call is applied.
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
        """The ids of all living records, at least those that `progress` promised before."""
        ...

    def sample(self, limit: int, *, seed: int = 0) -> list[Row]:
        """Up to `limit` living records, all of them if there are no more, in no promised order.

        For the same seed the same records, as far as they live: what comes and goes changes the
        sample by little.
        """
        ...

    def stats(self) -> dict[str, Any]: ...


@runtime_checkable
class Many(Protocol):
    """What a store may offer besides: several records in one call, where each call is a journey."""

    def get_many(self, ids: Sequence[str]) -> dict[str, Row]:
        """Records by id; those that are not there are left out."""
        ...


def rows_of(store: VectorStore, ids: Iterable[str]) -> dict[str, Row]:
    """Records by id, in one call where the store offers that; missing ones are left out."""
    if isinstance(store, Many):
        return store.get_many(list(ids))
    return {id_: row for id_ in ids if (row := store.get(id_)) is not None}


@runtime_checkable
class Probed(Protocol):
    """What a store may offer besides: how good its answers are now, measured.

    A store that answers approximately also has `exact`, false then; one without it is exact.
    """

    def probe(self, query_D: Array, *, k: int, vector: str = FUSED) -> float:
        """Recall@k of `search` for this query against exact search over all rows, in [0, 1].

        Rows written between the two searches may lower it a little; 1.0 where there are none.
        """
        ...


def is_exact(store: VectorStore) -> bool:
    """Whether the store's answers are exact."""
    return bool(getattr(store, "exact", True))
