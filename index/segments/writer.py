"""Writes rows of other parts as a new sealed segment.

Shapes: D dimensions, R rows, N rows that have a vector.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ..files import checked, sealed_json, sync_folder, synced
from ..store import FUSED, Array
from . import meta_columns
from .ann import approximate
from .id_map import Int64
from .sealed import FORMAT, MANIFEST, META, Numbers, Recipe, Segment, Vectors
from .view import Part

STEP = 512  # rows between two calls of yield_gil
YIELD_S = 0.0002
COPY = 8192  # vectors copied at once


def segment_name(number: int) -> str:
    """A unique name, even after a rebuild that counts from 0 again."""
    return f"segment-{number:08d}-{secrets.token_hex(4)}"


def yield_gil() -> None:
    """Release the GIL, so that background work does not delay searches."""
    time.sleep(YIELD_S)


def write(name: str, parts: Sequence[tuple[Part, Int64]], recipe: Recipe) -> Segment:
    """Write a segment of these rows of these parts, in order; it is fsynced on return.

    Vectors are copied to files in chunks and then mapped: no full copy is in memory.

    Raises:
        OSError: the segment could not be written.
    """
    recipe.failpoint("segment-begin")
    folder = None if recipe.folder is None else recipe.folder / name
    if folder is not None:
        folder.mkdir(parents=True)
    ids, strings, numbers, packed, columns = _gathered(parts)
    vectors = {
        vector: _copied(vector, parts, recipe.dim, folder)
        for vector in sorted({v for part, _ in parts for v in part.rows.names})
    }
    vectors = {vector: copied for vector, copied in vectors.items() if len(copied.raw_ND)}
    recipe.failpoint("segment-vectors")
    packed_meta = np.frombuffer(packed, np.uint8)
    made = Segment(
        name=name,
        ids=ids,
        models=strings,
        numbers=numbers,
        packed_meta=packed_meta,
        columns=columns,
        vectors=vectors,
        folder=folder,
    )
    index = approximate(vectors[FUSED].raw_ND, recipe.recall)
    if index is not None:
        made.vectors[FUSED] = replace(vectors[FUSED], approximate=index)
    made.build_int8(FUSED)
    if folder is None:
        return made
    _write_files(made, folder, packed)
    recipe.failpoint("segment-files")
    seal(made, recipe.dim)
    recipe.failpoint("segment-sealed")
    if packed:
        made.map_meta(folder / META)
    return made


def seal(segment: Segment, dim: int) -> None:
    """Write the manifest of the segment's files, which completes the segment."""
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


def _gathered(
    parts: Sequence[tuple[Part, Int64]],
) -> tuple[list[str], list[str], Numbers, bytes, meta_columns.Columns]:
    """All data of the rows except their vectors."""
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
                yield_gil()
    version_R, ts_R, partition_R, model_R, meta_at_R = np.array(numbers, np.int64).reshape(-1, 5).T
    return (
        ids,
        list(models),
        Numbers(version_R, ts_R, partition_R, model_R, np.append(meta_at_R, len(packed))),
        bytes(packed),
        meta_columns.build(metas, yield_gil=yield_gil),
    )


def _copied(
    name: str, parts: Sequence[tuple[Part, Int64]], dim: int, folder: Path | None
) -> Vectors:
    """The vectors of one name of these rows, in a mapped file."""
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
        for chunk_MD in _chunks(name, taken):
            raw_ND[at : at + len(chunk_MD)] = chunk_MD
            at += len(chunk_MD)
    else:
        # write() instead of a writable map: on a full disk a mapped page raises SIGBUS.
        path = folder / f"{name}.npy"
        head = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        with synced(path) as file:
            np.lib.format.write_array_header_1_0(file, head)
            for chunk_MD in _chunks(name, taken):
                file.write(np.ascontiguousarray(chunk_MD, "<f4").data)
        raw_ND = np.load(path, mmap_mode="r")
    row_of_N = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return Vectors(raw_ND, None if count == first else row_of_N)


def _chunks(name: str, taken: Sequence[tuple[Part, Int64]]) -> Iterator[Array]:
    for part, row_N in taken:
        for begin in range(0, len(row_N), COPY):
            yield part.rows.raw(name, row_N[begin : begin + COPY])
            yield_gil()


def _write_files(segment: Segment, folder: Path, packed: bytes) -> None:
    plain, arrays = meta_columns.pack(segment.columns)
    strings = {"ids": list(segment.ids), "models": list(segment.models), "columns": plain}
    with synced(folder / "strings.msgpack") as file:
        file.write(msgpack.packb(strings))
    with synced(folder / "meta.bin") as file:
        file.write(packed)
    numbers = segment.numbers
    rows_of = {
        f"rows-{name}": vectors.row_N
        for name, vectors in segment.vectors.items()
        if vectors.row_N is not None
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
