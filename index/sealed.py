"""Sealed segments: rows that no longer change, in files that are only mapped, not held.

    segment-00000007-5eed1234/
                       segment.json      rows, dim, names, sha256 of each file and of itself
                       strings.msgpack   ids, model names, the distinct values of meta by field
                       numbers.npz       versions, times, partitions, where each meta lies, columns
                       meta.bin          each row's meta, packed
                       fused.npy ...     float32[N, D] by vector name: the truth
                       fused.faiss       an approximate index, where there is one: a cache

Written by `write`, read by `open_segment`, which sums up every file first. A damaged cache is built
anew from the vectors; any other damage is a SnapshotError.

Shapes: D dimensions, R rows, N rows that have a vector, M any of them.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from . import columns
from .approximate import Approximate, approximate, load_approximate
from .errors import SnapshotError
from .files import checked, sealed_json, sync_folder, synced, unsealed_json
from .filters import Filter
from .growing import Facts
from .halves import Halves, longest
from .parts import Mask, Part
from .places import Int64
from .store import FUSED, Array, Upsert

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "segment.json"
STEP = 512  # rows handled between two breaths
BREATH_S = 0.0002
COPY = 8192  # vectors copied at once


def segment_name(number: int) -> str:
    """A name that no segment ever had, even after a rebuild that counts from 0 again."""
    return f"segment-{number:08d}-{secrets.token_hex(4)}"


def breathe() -> None:
    """Let searches have the interpreter: background work must not be felt."""
    time.sleep(BREATH_S)


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """One name's vectors.

    Attributes:
        raw_ND: float32, mapped from its file.
        row_N: the rows that they belong to, ascending; None when every row has one.
        halves: the same in float16 for exact search; None until it was asked for.
        approximate: an approximate index; None where search is exact.
    """

    raw_ND: Array
    row_N: Int64 | None
    halves: Halves | None = None
    approximate: Approximate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """What is a number for each row; meta_at has one more, the end."""

    version_R: Int64
    ts_R: Int64
    partition_R: Int64
    model_R: Int64
    meta_at_R1: Int64


class Segment:
    """Implements `index.parts.Rows`. Immutable, but for `slots`, set once, and for caches."""

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
        self.asked: set[str] = set()  # names that a search would have wanted in float16
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
        """See `index.parts.Rows`; the vectors are copies."""
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

    def has(self, name: str) -> bool:
        return name in self.vectors

    def raw(self, name: str, row_M: Int64) -> Array:
        return self.vectors[name].raw_ND[self.at(name, row_M)]

    def longest(self, name: str) -> float:
        found = self.vectors[name]
        if found.halves is not None:
            return found.halves.longest
        if name not in self._longest:
            self._longest[name] = longest(found.raw_ND)
        return self._longest[name]

    def at(self, name: str, row_M: Int64) -> Int64:
        """Where these rows' vectors lie among the N."""
        row_N = self.vectors[name].row_N
        return row_M if row_N is None else np.searchsorted(row_N, row_M)

    def quicken(self, name: str) -> None:
        """Hold one name's vectors in float16 too, if they are not yet."""
        with self._lock:
            found = self.vectors[name]
            if found.halves is None and found.approximate is None:
                ready = replace(found, halves=Halves(found.raw_ND))
                self.vectors = {**self.vectors, name: ready}

    def _has_row(self, name: str, row: int) -> bool:
        having_R = self.having(name, len(self))
        return having_R is None or bool(having_R[row])


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a segment is made.

    Attributes:
        recall: recall@10 that an approximate index must reach; 1 keeps search exact.
        folder: the folder of segments; None keeps the segment in memory.
        failpoint: called with the name of each step, for crash tests.
    """

    dim: int
    recall: float = 1.0
    folder: Path | None = None
    failpoint: Callable[[str], None] = lambda name: None


def write(name: str, parts: Sequence[tuple[Part, Int64]], recipe: Recipe) -> Segment:
    """A segment of these rows of these parts, in their order; on disk and synced on return.

    Vectors are copied piece by piece into files, then mapped: no full copy is held.

    Raises:
        OSError: it could not be written.
    """
    recipe.failpoint("segment-begin")
    folder = None if recipe.folder is None else recipe.folder / name
    if folder is not None:
        folder.mkdir(parents=True)
    ids, strings, numbers, packed, its_columns = _gathered(parts)
    vectors = {
        vector: _copied(vector, parts, recipe.dim, folder)
        for vector in sorted({v for part, _ in parts for v in _names(part)})
    }
    vectors = {vector: found for vector, found in vectors.items() if len(found.raw_ND)}
    recipe.failpoint("segment-vectors")
    packed_meta = np.frombuffer(packed, np.uint8)
    made = Segment(
        name=name, ids=ids, models=strings, numbers=numbers, packed_meta=packed_meta,
        columns=its_columns, vectors=vectors, folder=folder,
    )  # fmt: skip
    index = approximate(vectors[FUSED].raw_ND, recipe.recall)
    if index is not None:
        made.vectors[FUSED] = replace(vectors[FUSED], approximate=index)
    made.quicken(FUSED)
    if folder is None:
        return made
    _write_files(made, folder, packed)
    recipe.failpoint("segment-files")
    seal(made, recipe.dim)
    recipe.failpoint("segment-sealed")
    if packed:
        made._meta = np.memmap(folder / "meta.bin", np.uint8, "r")
    return made


def seal(segment: Segment, dim: int) -> None:
    """Write the manifest of files that are there; with it the segment is whole."""
    folder = segment.folder
    assert folder is not None
    manifest = {
        "format": FORMAT,
        "dim": dim,
        "rows": len(segment),
        "vectors": sorted(segment.vectors),
        "files": checked(folder, except_for=MANIFEST),
    }
    with synced(folder / MANIFEST) as file:
        file.write(sealed_json(manifest))
    sync_folder(folder)
    sync_folder(folder.parent)


def open_segment(folder: Path, recipe: Recipe) -> Segment:
    """A segment from its files. Raises SnapshotError if one is missing, torn or altered."""
    manifest = unsealed_json(folder / MANIFEST, FORMAT)
    damaged = {
        name for name, expected in manifest["files"].items()
        if checked(folder, only=name).get(name) != expected
    }  # fmt: skip
    caches = {name for name in damaged if name.endswith(".faiss")}
    if damaged - caches:
        raise SnapshotError(f"{folder}: damaged: {', '.join(sorted(damaged - caches))}")
    try:
        segment = _read(folder, manifest)
    except (OSError, ValueError, LookupError, TypeError) as error:  # changed since summed up
        raise SnapshotError(f"{folder}: {error!r}") from error
    if f"{FUSED}.faiss" in manifest["files"] and recipe.recall < 1:
        _bring_in(segment, recipe, damaged=bool(caches))
    segment.quicken(FUSED)
    return segment


def _bring_in(segment: Segment, recipe: Recipe, *, damaged: bool) -> None:
    """The approximate index from its file; from the vectors if that is of no use."""
    assert segment.folder is not None
    path = segment.folder / f"{FUSED}.faiss"
    index = None if damaged else load_approximate(path)
    if index is None or index.recall < recipe.recall:
        log.warning(
            "%s is %s: built anew from the vectors", path,
            "damaged" if index is None else f"of recall {index.recall:g}",
        )  # fmt: skip
        index = approximate(segment.vectors[FUSED].raw_ND, recipe.recall)
    if index is not None:
        segment.vectors[FUSED] = replace(segment.vectors[FUSED], approximate=index)


def _names(part: Part) -> Sequence[str]:
    vectors: Mapping[str, Any] = part.rows.vectors  # type: ignore[attr-defined]
    return list(vectors)


def _gathered(
    parts: Sequence[tuple[Part, Int64]],
) -> tuple[list[str], list[str], Numbers, bytes, columns.Columns]:
    """Everything of the rows but their vectors."""
    ids: list[str] = []
    metas: list[Mapping[str, Any]] = []
    packed = bytearray()
    numbers: list[tuple[int, int, int, int, int]] = []
    models: dict[str, int] = {}
    for part, rows in parts:
        for count, row in enumerate(rows.tolist()):
            facts = part.rows.facts(row)
            ids.append(facts.id)
            metas.append(msgpack.unpackb(facts.meta, strict_map_key=False))
            model = models.setdefault(facts.model, len(models))
            numbers.append((facts.version, facts.ts, facts.partition, model, len(packed)))
            packed += facts.meta
            if count % STEP == 0:
                breathe()
    found = np.array(numbers, np.int64).reshape(-1, 5).T
    return (
        ids,
        list(models),
        Numbers(found[0], found[1], found[2], found[3], np.append(found[4], len(packed))),
        bytes(packed),
        columns.build(metas, breathe=breathe),
    )


def _copied(
    name: str, parts: Sequence[tuple[Part, Int64]], dim: int, folder: Path | None
) -> Vectors:
    """One name's vectors of these rows, in a mapped file of their own."""
    taken: list[tuple[Part, Int64]] = []
    rows: list[Int64] = []
    first = 0
    for part, row_N in parts:
        if part.rows.has(name):
            having_R = part.rows.having(name, part.count)
            chosen = slice(None) if having_R is None else having_R[row_N]
            taken.append((part, row_N[chosen]))
            rows.append(first + np.arange(len(row_N))[chosen])
        first += len(row_N)
    count = sum(len(row_N) for _, row_N in taken)
    raw_ND: Array
    if folder is None or count == 0:
        raw_ND = np.empty((count, dim), np.float32)
        at = 0
        for piece_MD in _pieces(name, taken):
            raw_ND[at : at + len(piece_MD)] = piece_MD
            at += len(piece_MD)
    else:
        # Written, not mapped: on a full disk a mapped page would kill the process (SIGBUS).
        path = folder / f"{name}.npy"
        head = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        with synced(path) as file:
            np.lib.format.write_array_header_1_0(file, head)
            for piece_MD in _pieces(name, taken):
                file.write(np.ascontiguousarray(piece_MD, "<f4").data)
        raw_ND = np.load(path, mmap_mode="r")
    row_of_N = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return Vectors(raw_ND, None if count == first else row_of_N)


def _pieces(name: str, taken: Sequence[tuple[Part, Int64]]) -> Iterator[Array]:
    for part, row_N in taken:
        for begin in range(0, len(row_N), COPY):
            yield part.rows.raw(name, row_N[begin : begin + COPY])
            breathe()


def _write_files(segment: Segment, folder: Path, packed: bytes) -> None:
    plain, arrays = columns.pack(segment.columns)
    strings = {"ids": list(segment.ids), "models": list(segment.models), "columns": plain}
    with synced(folder / "strings.msgpack") as file:
        file.write(msgpack.packb(strings))
    with synced(folder / "meta.bin") as file:
        file.write(packed)
    numbers = segment.numbers
    rows_of = {
        f"rows-{name}": found.row_N
        for name, found in segment.vectors.items()
        if found.row_N is not None
    }
    kept: dict[str, Any] = {
        "version": numbers.version_R,
        "ts": numbers.ts_R,
        "partition": numbers.partition_R,
        "model": numbers.model_R,
        "meta_at": numbers.meta_at_R1,
        **rows_of,
        **arrays,
    }
    with synced(folder / "numbers.npz") as file:
        np.savez(file, **kept)
    index = segment.vectors[FUSED].approximate
    if index is not None:
        with synced(folder / f"{FUSED}.faiss") as file:
            file.write(index.dumps())


def _read(folder: Path, manifest: Mapping[str, Any]) -> Segment:
    strings = msgpack.unpackb((folder / "strings.msgpack").read_bytes(), strict_map_key=False)
    with np.load(folder / "numbers.npz") as file:
        arrays = {name: file[name] for name in file.files}
    vectors = {
        name: Vectors(
            np.load(folder / f"{name}.npy", mmap_mode="r"), arrays.get(f"rows-{name}")
        )
        for name in manifest["vectors"]
    }  # fmt: skip
    return Segment(
        name=folder.name,
        ids=strings["ids"],
        models=strings["models"],
        numbers=Numbers(
            arrays["version"], arrays["ts"], arrays["partition"], arrays["model"],
            arrays["meta_at"],
        ),
        packed_meta=np.memmap(folder / "meta.bin", np.uint8, "r"),
        columns=columns.unpack(strings["columns"], arrays),
        vectors=vectors,
        folder=folder,
    )  # fmt: skip
