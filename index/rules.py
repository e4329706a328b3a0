"""Rules that every vector store implements: which write wins, and checks of vectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from .errors import BadQuery
from .store import FUSED, Array, Delete, Upsert

log = logging.getLogger(__name__)


class WriteVersion(Protocol):
    """The order of a write to an id: partition, version and timestamp."""

    @property
    def partition(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def ts(self) -> int: ...


def supersedes(write: WriteVersion, last: WriteVersion) -> bool:
    """Whether a write replaces the last write of its id."""
    if write.partition == last.partition:
        return write.version > last.version
    return (write.ts, write.partition) > (last.ts, last.partition)


def warn_of_second_partition(write: Upsert | Delete, last: WriteVersion) -> None:
    """Log that an id is in two partitions; a store logs it once and counts the rest."""
    log.warning(
        "id %r is in partitions %d and %d: its producers partition differently; "
        "the later ts wins (said once, counted in /v1/status)",
        write.id,
        last.partition,
        write.partition,
    )


def advanced(offsets: Mapping[int, int], by: Mapping[int, int]) -> dict[int, int]:
    """Offsets by partition, moved on by others; none moves back."""
    return {**offsets, **{n: max(next_, offsets.get(n, 0)) for n, next_ in by.items()}}


def check_vectors(write: Upsert, dim: int) -> None:
    """Raises ValueError: a vector's length is not `dim`, or a value is not finite."""
    for name, vector_D in {FUSED: write.fused, **write.by}.items():
        if vector_D.shape != (dim,):
            raise ValueError(
                f"{write.id}: {name} has shape {vector_D.shape}, this space has ({dim},)"
            )
        if not np.isfinite(vector_D).all():
            raise ValueError(f"{write.id}: {name} holds a value that is not finite")


def checked_queries(queries_BD: Array, *, dim: int, k: int) -> Array:
    """The queries as contiguous float32[B, dim].

    Raises:
        BadQuery: they are not that, or not finite, or k is below 1.
    """
    queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
    if queries_BD.ndim != 2 or queries_BD.shape[1] != dim:
        shape = queries_BD.shape[-1] if queries_BD.ndim else 0
        raise BadQuery("vector", f"has {shape} values, this space has {dim}")
    if not np.isfinite(queries_BD).all():
        raise BadQuery("vector", "holds a value that is not finite")
    if k < 1:
        raise BadQuery("k", f"must be at least 1, got {k}")
    return queries_BD
