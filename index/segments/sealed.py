"""Sealed segments: immutable rows in memory-mapped files.

    segment-00000007-5eed1234/
                       segment.json      rows, dim, names, sha256 of each file and of itself
                       strings.msgpack   ids, model names, the distinct values of meta by field
                       numbers.npz       versions, times, partitions, offsets into meta.bin, columns
                       meta.bin          each row's meta, packed
                       fused.npy ...     float32[N, D] by vector name
                       fused.faiss       an approximate index, if there is one: a cache

`braid.index.segments.writer` writes a segment. `open_segment` reads it and checks every file's
digest first: a damaged cache is rebuilt from the vectors, and compaction then rewrites the segment;
any other damage is a SnapshotError.

Shapes: D dimensions, R rows, N rows that have a vector, M any of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from ..errors import SnapshotError
from ..files import checked, unsealed_json
from ..filters import Filter
from ..store import FUSED, Array, Upsert
from . import meta_columns as columns
from .ann import Approximate, approximate, load_approximate
from .growing import Facts
from .id_map import Int64
from .int8 import Int8Index, longest
from .view import Mask

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, META = "segment.json", "meta.bin"


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The vectors of one name.

    Attributes:
        raw_ND: float32, mapped from its file.
        row_N: the rows that have a vector, ascending; None if all rows have one.
        int8: the same in 8 bits for exact search; None until a search has requested it.
        approximate: an approximate index; None if search is exact.
    """

    raw_ND: Array
    row_N: Int64 | None
    int8: Int8Index | None = None
    approximate: Approximate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """Numbers of each row; `meta_at_R1` has one entry more, the end."""

    version_R: Int64
    ts_R: Int64
    partition_R: Int64
    model_R: Int64
    meta_at_R1: Int64


class Segment:
    """Implements `braid.index.segments.view.Rows`. Immutable, except for caches and `slots`, which
    is set once."""

    def __init__(
        self,
        *,
        name: str,
        ids: Sequence[str],
        models: Sequence[str],
        numbers: Numbers,
        packed_meta: npt.NDArray[np.uint8],
        columns: columns.Columns,
        vectors: Mapping[str, Vectors],
        folder: Path | None,
    ) -> None:
        self.name = name
        self.ids = ids
        self.models = models
        self.numbers = numbers
        self.columns = columns
        self.vectors = dict(vectors)
        self.folder = folder
        self.slots: Int64 = np.zeros(0, np.int64)
        self.worn = False  # its files are damaged: compaction rewrites it
        self.int8_requests: set[str] = set()  # names of vectors
        self._meta = packed_meta
        self._having: dict[str, Mask] = {}
        self._longest: dict[str, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, row: int) -> str:
        return self.ids[row]

    def meta(self, row: int) -> Mapping[str, Any]:
        unpacked: dict[str, Any] = msgpack.unpackb(self._packed(row), strict_map_key=False)
        return unpacked

    def facts(self, row: int) -> Facts:
        numbers = self.numbers
        return Facts(
            self.ids[row],
            int(numbers.version_R[row]),
            int(numbers.ts_R[row]),
            int(numbers.partition_R[row]),
            self.model(row),
            self._packed(row),
        )

    def _packed(self, row: int) -> bytes:
        begin, end = self.numbers.meta_at_R1[row : row + 2].tolist()
        return self._meta[begin:end].tobytes()

    def model(self, row: int) -> str:
        return self.models[int(self.numbers.model_R[row])]

    def record(self, row: int) -> Upsert:
        """See `braid.index.segments.view.Rows`; the vectors are copies."""
        numbers = self.numbers
        by = {
            name: self.raw(name, np.array([row]))[0]
            for name in self.vectors
            if name != FUSED and self._has_row(name, row)
        }
        return Upsert(
            id=self.ids[row],
            partition=int(numbers.partition_R[row]),
            version=int(numbers.version_R[row]),
            ts=int(numbers.ts_R[row]),
            model=self.model(row),
            fused=self.raw(FUSED, np.array([row]))[0],
            by=by,
            meta=self.meta(row),
        )

    def matching(self, filter: Filter, count: int) -> Mask:
        return self.columns.mask(filter, self.meta)

    def having(self, name: str, count: int) -> Mask | None:
        row_N = self.vectors[name].row_N
        if row_N is None:
            return None
        if name not in self._having:
            mask_R = np.zeros(len(self), np.bool_)
            mask_R[row_N] = True
            self._having[name] = mask_R
        return self._having[name]

    @property
    def names(self) -> Sequence[str]:
        return list(self.vectors)

    def map_meta(self, path: Path) -> None:
        """Read packed meta from its file instead of memory."""
        self._meta = np.memmap(path, np.uint8, "r")

    def has(self, name: str) -> bool:
        return name in self.vectors

    def raw(self, name: str, row_M: Int64) -> Array:
        return self.vectors[name].raw_ND[self.at(name, row_M)]

    def longest(self, name: str) -> float:
        vectors = self.vectors[name]
        if vectors.int8 is not None:
            return vectors.int8.longest
        if name not in self._longest:
            self._longest[name] = longest(vectors.raw_ND)
        return self._longest[name]

    def at(self, name: str, row_M: Int64) -> Int64:
        """Indices of these rows' vectors among the N."""
        row_N = self.vectors[name].row_N
        return row_M if row_N is None else np.searchsorted(row_N, row_M)

    def build_int8(self, name: str) -> None:
        """Build the 8-bit index of one name's vectors, if there is none."""
        with self._lock:
            vectors = self.vectors[name]
            if vectors.int8 is None and vectors.approximate is None:
                ready = replace(vectors, int8=Int8Index(vectors.raw_ND))
                self.vectors = {**self.vectors, name: ready}

    def _has_row(self, name: str, row: int) -> bool:
        having_R = self.having(name, len(self))
        return having_R is None or bool(having_R[row])


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings of new segments.

    Attributes:
        recall: recall@10 that an approximate index must reach; 1 keeps search exact.
        folder: the folder of segments; None keeps the segment in memory.
        failpoint: called with the name of each step, for crash tests.
    """

    dim: int
    recall: float = 1.0
    folder: Path | None = None
    failpoint: Callable[[str], None] = lambda name: None


def open_segment(folder: Path, recipe: Recipe) -> Segment:
    """Open a segment. Raises SnapshotError if a file is missing or damaged."""
    manifest = unsealed_json(folder / MANIFEST, FORMAT)
    damaged = {
        name
        for name, expected in manifest["files"].items()
        if checked(folder, only=name).get(name) != expected
    }
    caches = {name for name in damaged if name.endswith(".faiss")}
    if damaged - caches:
        raise SnapshotError(f"{folder}: damaged: {', '.join(sorted(damaged - caches))}")
    try:
        segment = _read(folder, manifest)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:  # changed since the check
        raise SnapshotError(f"{folder}: {error!r}") from error
    if f"{FUSED}.faiss" in manifest["files"] and recipe.recall < 1:
        _load_index(segment, recipe, damaged=bool(caches))
    segment.build_int8(FUSED)
    return segment


def _load_index(segment: Segment, recipe: Recipe, *, damaged: bool) -> None:
    """Load the approximate index from its file, or rebuild it from the vectors."""
    assert segment.folder is not None
    path = segment.folder / f"{FUSED}.faiss"
    index = None if damaged else load_approximate(path)
    if index is None or index.recall < recipe.recall:
        log.warning(
            "%s is %s: built anew from the vectors",
            path,
            "damaged" if index is None else f"of recall {index.recall:g}",
        )
        index = approximate(segment.vectors[FUSED].raw_ND, recipe.recall)
        segment.worn = True
    if index is not None:
        segment.vectors[FUSED] = replace(segment.vectors[FUSED], approximate=index)


def _read(folder: Path, manifest: Mapping[str, Any]) -> Segment:
    strings = msgpack.unpackb((folder / "strings.msgpack").read_bytes(), strict_map_key=False)
    with np.load(folder / "numbers.npz") as file:
        arrays = {name: file[name] for name in file.files}
    vectors = {
        name: Vectors(np.load(folder / f"{name}.npy", mmap_mode="r"), arrays.get(f"rows-{name}"))
        for name in manifest["vectors"]
    }
    return Segment(
        name=folder.name,
        ids=strings["ids"],
        models=strings["models"],
        numbers=Numbers(
            arrays["version"],
            arrays["ts"],
            arrays["partition"],
            arrays["model"],
            arrays["meta_at"],
        ),
        packed_meta=np.memmap(folder / "meta.bin", np.uint8, "r"),
        columns=columns.unpack(strings["columns"], arrays),
        vectors=vectors,
        folder=folder,
    )
