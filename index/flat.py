"""The flat index: exact search over preallocated blocks, safe while one thread writes.

Adding to a FAISS index while others search it crashes or answers wrongly, so no FAISS object is
kept at all: rows live in numpy blocks (`index.blocks`), and `faiss.knn` searches the part of each
that is published. A reader takes one immutable view; the writer publishes the next by one
assignment. A search therefore sees a whole `apply` or none of it.

Shapes: B queries, D dimensions, R rows, K hits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .blocks import Edit, Mask, Place, Published, View
from .errors import BadQuery
from .filters import Filter
from .store import FUSED, Array, Delete, Hit, Row, Upsert

log = logging.getLogger(__name__)

BLOCK = 8192  # rows; measured in benchmarks/RESULTS.md against one block of 100,000
# How a block is searched when some of its rows may not be hits, by what was quickest: when these
# times the queries are few, fetch that many hits more; with few queries, look at the wanted rows
# in place; else copy the wanted rows out.
FEW_OUT = 256
FEW_QUERIES = 16
FEW_WANTED = 0.1
GPU_MOST_K = 2048  # what FAISS's GPU search can return


@dataclass(frozen=True, slots=True)
class Entry:
    """The last word on an id, and where its row is; `row` is None when it was deleted."""

    last: Upsert | Delete
    place: Place | None


def gpu_found() -> bool:
    """Whether this FAISS build supports GPUs and sees one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


class FlatStore:
    """Implements `index.store.VectorStore`.

    Args:
        space: names the space of all vectors in here.
        dim: D.
        threads: OpenMP threads of one search.
        gpu: search on the first GPU; the FAISS build must have GPU support.
        block: rows of one block.

    Raises:
        ValueError: gpu, and this FAISS build has no GPU or finds none.
    """

    def __init__(
        self,
        *,
        space: str,
        dim: int,
        threads: int = 1,
        gpu: bool = False,
        block: int = BLOCK,
    ) -> None:
        if gpu and not gpu_found():
            raise ValueError("gpu: this FAISS build has no GPU support, or there is no GPU")
        self._space, self._dim = space, dim
        self._threads, self._block = threads, block
        self._gpu = faiss.StandardGpuResources() if gpu else None
        self._gpu_lock = threading.Lock()  # one thread at a time may use the resources
        self._view = View()
        self._entries: dict[str, Entry] = {}
        self._positions: dict[int, int] = {}
        self._progress: dict[int, int] = {}
        self._writing = threading.Lock()
        self._second_partition = 0
        self._ignored = 0

    @property
    def space(self) -> str:
        return self._space

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def positions(self) -> Mapping[int, int]:
        return dict(self._positions)

    @property
    def progress(self) -> Mapping[int, int]:
        return dict(self._progress)

    def __len__(self) -> int:
        return self._view.alive

    def apply(
        self,
        writes: Sequence[Upsert | Delete],
        *,
        positions: Mapping[int, int],
        progress: Mapping[int, int],
    ) -> None:
        """See VectorStore.apply. Whatever it raises, nothing of the call is applied."""
        for write in writes:
            if isinstance(write, Upsert):
                self._check(write)
        with self._writing:
            edit = Edit(self._view, size=self._block)
            entries: dict[str, Entry] = {}
            ignored = 0
            for write in writes:
                known = entries.get(write.id) or self._entries.get(write.id)
                if known is not None and not self._wins(write, known.last):
                    ignored += 1
                    continue
                if known is not None and known.place is not None:
                    edit.kill(known.place)
                if isinstance(write, Upsert):
                    entries[write.id] = Entry(*edit.append(write))
                else:
                    entries[write.id] = Entry(write, None)

            def moved(kept: Upsert, place: Place) -> None:
                entries[kept.id] = Entry(kept, place)

            edit.compact(1 + 2 * len(writes) // self._block, moved)
            self._view = edit.view()
            self._entries.update(entries)
            self._ignored += ignored
            # Offsets last: who sees them reached finds what they promise.
            _advance(self._positions, positions)
            _advance(self._progress, progress)

    def search(
        self,
        queries_BD: Array,
        *,
        k: int,
        vector: str = FUSED,
        filter: Filter | None = None,
    ) -> list[list[Hit]]:
        """See VectorStore.search.

        Hits of equal score come in the order of their ids; which of them make the last places,
        when there are more than fit, is not promised.
        """
        queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self._dim:
            shape = queries_BD.shape[-1] if queries_BD.ndim else 0
            raise BadQuery("vector", f"has {shape} values, this space has {self._dim}")
        if not np.isfinite(queries_BD).all():
            raise BadQuery("vector", "holds a value that is not finite")
        if k < 1:
            raise BadQuery("k", f"must be at least 1, got {k}")
        if self._gpu is not None and k > GPU_MOST_K - FEW_OUT:
            raise BadQuery("k", f"is {k}, the limit on a GPU is {GPU_MOST_K - FEW_OUT}")
        found: list[list[tuple[float, Upsert]]] = [[] for _ in range(len(queries_BD))]
        for published in self._view.blocks:
            wanted = _wanted(published, vector, filter)
            if wanted is None:
                continue
            scores_BK, rows_BK = self._knn(queries_BD, published, vector, wanted, k)
            for hits, scores, rows in zip(found, scores_BK, rows_BK, strict=True):
                for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
                    if row >= 0 and wanted[row]:
                        hits.append((score, published.block.rows[row]))
        return [[_hit(pair) for pair in _best(hits, k)] for hits in found]

    def get(self, id: str) -> Row | None:
        """The record, or None. Waits for no one."""
        entry = self._entries.get(id)
        if entry is None or isinstance(entry.last, Delete):
            return None
        write = entry.last
        return Row(
            id=write.id,
            partition=write.partition,
            version=write.version,
            ts=write.ts,
            model=write.model,
            meta=write.meta,
            vectors={FUSED: write.fused, **write.by},
        )

    def stats(self) -> dict[str, Any]:
        view = self._view
        return {
            "records": view.alive,
            "rows": view.rows,
            "dead": view.rows - view.alive,
            "blocks": sum(published.count > 0 for published in view.blocks),
            "ignored": self._ignored,
            "second_partition": self._second_partition,
            "space": self._space,
            "dim": self._dim,
        }

    def content(self) -> tuple[list[Upsert], list[Delete], dict[int, int], dict[int, int]]:
        """Everything a snapshot holds, as of one moment: rows, deletions, positions, progress."""
        with self._writing:
            view = self._view
            entries = list(self._entries.values())
            positions, progress = dict(self._positions), dict(self._progress)
        deleted = [entry.last for entry in entries if isinstance(entry.last, Delete)]
        rows = [
            published.block.rows[row] for published in view.blocks for row in published.living()
        ]
        return rows, deleted, positions, progress

    def _check(self, write: Upsert) -> None:
        for name, vector_D in {FUSED: write.fused, **write.by}.items():
            if not name.isidentifier() or FUSED in write.by:
                raise ValueError(f"{write.id}: {name!r} cannot name a modality's vector")
            if vector_D.shape != (self._dim,):
                raise ValueError(
                    f"{write.id}: {name} has shape {vector_D.shape}, this space has ({self._dim},)"
                )
            if not np.isfinite(vector_D).all():
                raise ValueError(f"{write.id}: {name} holds a value that is not finite")

    def _wins(self, write: Upsert | Delete, known: Upsert | Delete) -> bool:
        if known.partition == write.partition:
            return write.version > known.version
        if self._second_partition == 0:
            log.warning(
                "id %r is in partitions %d and %d: its producers partition differently; "
                "the later ts wins (said once, counted in /v1/status)",
                write.id,
                known.partition,
                write.partition,
            )
        self._second_partition += 1
        return (write.ts, write.partition) > (known.ts, known.partition)

    def _knn(
        self, queries_BD: Array, published: Published, vector: str, wanted: Mask, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores and row numbers in the block, [B, K]; -1 where there are fewer than K."""
        rows_RD = published.block.vectors[vector][: published.count]
        count, in_ = published.count, int(wanted.sum())
        out = count - in_
        if out * len(queries_BD) <= FEW_OUT:
            return self._faiss(queries_BD, rows_RD, min(k + out, count))
        if self._gpu is None and len(queries_BD) < FEW_QUERIES and in_ > FEW_WANTED * count:
            return self._selected(queries_BD, rows_RD, wanted, min(k, in_))
        living = np.flatnonzero(wanted)
        scores_BK, found_BK = self._faiss(queries_BD, rows_RD[living], min(k, in_))
        return scores_BK, np.where(found_BK >= 0, living[found_BK], -1)

    def _faiss(
        self, queries_BD: Array, rows_RD: Array, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        if self._gpu is None:
            # OpenMP keeps this number per thread, and searches come from any.
            faiss.omp_set_num_threads(self._threads)
            return faiss.knn(queries_BD, rows_RD, k, metric=faiss.METRIC_INNER_PRODUCT)
        with self._gpu_lock:
            return faiss.knn_gpu(
                self._gpu, queries_BD, rows_RD, k, metric=faiss.METRIC_INNER_PRODUCT
            )

    def _selected(
        self, queries_BD: Array, rows_RD: Array, wanted: Mask, k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`faiss.knn` over the wanted rows only, which its Python form cannot be told."""
        faiss.omp_set_num_threads(self._threads)
        bits = np.packbits(wanted, bitorder="little")
        scores_BK = np.empty((len(queries_BD), k), np.float32)
        found_BK = np.empty((len(queries_BD), k), np.int64)
        faiss.knn_inner_product(
            faiss.swig_ptr(queries_BD),
            faiss.swig_ptr(rows_RD),
            self._dim,
            len(queries_BD),
            len(rows_RD),
            k,
            faiss.swig_ptr(scores_BK),
            faiss.swig_ptr(found_BK),
            faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)),
        )
        return scores_BK, found_BK


def _wanted(published: Published, vector: str, filter: Filter | None) -> Mask | None:
    """Which of the published rows may be hits; None when none may."""
    if vector not in published.block.has:
        return None
    count = published.count
    wanted: Mask = published.keep[:count] & published.block.has[vector][:count]
    if filter is not None:
        rows = published.block.rows
        for row in np.flatnonzero(wanted).tolist():
            if not filter(rows[row].meta):
                wanted[row] = False
    return wanted if wanted.any() else None


def _advance(offsets: dict[int, int], by: Mapping[int, int]) -> None:
    for number, next_ in by.items():
        offsets[number] = max(next_, offsets.get(number, 0))


def _best(hits: Iterable[tuple[float, Upsert]], k: int) -> list[tuple[float, Upsert]]:
    return sorted(hits, key=lambda pair: (-pair[0], pair[1].id))[:k]


def _hit(pair: tuple[float, Upsert]) -> Hit:
    score, write = pair
    return Hit(
        id=write.id,
        score=score,
        meta=write.meta,
        model=write.model,
        version=write.version,
        partition=write.partition,
    )
