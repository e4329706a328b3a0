"""Snapshots: the store's rows and offsets in one folder, complete or not there at all.

    SNAPSHOTS/00000042/   manifest.json   space, dim, generation, offsets, sha256 of each file
                          rows.msgpack    ids, versions, meta and deletions
                          fused.npy ...   float32[rows, D] by vector name, and which rows have it

Written under a temporary name, fsynced, renamed, the parent folder fsynced. The raw vectors are
the truth. Of several snapshots the newest whole one is used; the last KEEP are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgpack
import numpy as np

from .errors import SnapshotError
from .flat import FlatStore
from .store import FUSED, Delete, Upsert

log = logging.getLogger(__name__)

FORMAT = 1
KEEP = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotInfo:
    """What was written."""

    path: Path
    records: int
    nbytes: int


def save(store: FlatStore, folder: Path, *, generation: str) -> SnapshotInfo | None:
    """Write a snapshot below `folder`; None if the newest one already says the same.

    Raises:
        SnapshotError: it could not be written; the snapshots that are there stay as they are.
    """
    rows, deleted, positions, progress = store.content()
    offsets = {"positions": _keyed(positions), "progress": _keyed(progress)}
    existing = _existing(folder)
    if existing and _newest_says(existing[-1], store.space, offsets):
        return None
    number = int(existing[-1].name) + 1 if existing else 1
    temporary = folder / f".{number:08d}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        files = _write_content(temporary, rows, deleted)
        manifest = {
            "format": FORMAT,
            "space": store.space,
            "dim": store.dim,
            "generation": generation,
            "records": len(rows),
            **offsets,
            "files": files,
        }
        with _synced(temporary / MANIFEST) as file:
            file.write(json.dumps(manifest).encode())
        _sync_folder(temporary)
        path = folder / f"{number:08d}"
        temporary.rename(path)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SnapshotError(f"{folder}: {error}") from error
    for old in [*existing, path][:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in path.iterdir())
    return SnapshotInfo(path=path, records=len(rows), nbytes=size)


def restore(folder: Path, *, threads: int = 1, gpu: bool = False) -> FlatStore | None:
    """The newest whole snapshot as a store; damaged ones are named in the log and passed over.

    None means: nothing usable, read the topic from its beginning.
    """
    for path in reversed(_existing(folder)):
        try:
            return load(path, threads=threads, gpu=gpu)
        except SnapshotError as error:
            log.error("snapshot %s is damaged and not used: %s", path, error)
    return None


def load(path: Path, *, threads: int = 1, gpu: bool = False) -> FlatStore:
    """One snapshot as a store. Raises SnapshotError if any file is missing, torn or altered."""
    manifest = _manifest(path)
    for name, expected in manifest["files"].items():
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise SnapshotError(f"{name}: {error.strerror}") from error
        if found != expected:
            raise SnapshotError(f"{name}: its sha256 is {found[:12]}…, not {expected[:12]}…")
    content = msgpack.unpackb((path / "rows.msgpack").read_bytes(), strict_map_key=False)
    arrays = {
        name: (np.load(path / f"{name}.npy"), np.load(path / f"{name}.has.npy"))
        for name in content["vectors"]
    }
    store = FlatStore(space=manifest["space"], dim=manifest["dim"], threads=threads, gpu=gpu)
    writes: list[Upsert | Delete] = []
    for number, (id_, partition, version, ts, model, meta) in enumerate(content["rows"]):
        by = {
            name: array[number]
            for name, (array, has) in arrays.items()
            if name != FUSED and has[number]
        }
        writes.append(
            Upsert(
                id=id_,
                partition=partition,
                version=version,
                ts=ts,
                model=model,
                meta=meta,
                fused=arrays[FUSED][0][number],
                by=by,
            )
        )
    writes += [
        Delete(id=id_, partition=partition, version=version, ts=ts)
        for id_, partition, version, ts in content["deleted"]
    ]
    store.apply(
        writes,
        positions={int(number): next_ for number, next_ in manifest["positions"].items()},
        progress={int(number): next_ for number, next_ in manifest["progress"].items()},
    )
    return store


def _write_content(folder: Path, rows: list[Upsert], deleted: list[Delete]) -> dict[str, str]:
    names = sorted({FUSED, *(name for row in rows for name in row.by)}) if rows else []
    dim = len(rows[0].fused) if rows else 0
    for name in names:
        has = np.array([name == FUSED or name in row.by for row in rows], dtype=np.bool_)
        array = np.zeros((len(rows), dim), dtype=np.float32)
        for number, row in enumerate(rows):
            if has[number]:
                array[number] = row.fused if name == FUSED else row.by[name]
        for suffix, part in (("npy", array), ("has.npy", has)):
            with _synced(folder / f"{name}.{suffix}") as file:
                np.save(file, part, allow_pickle=False)
    content = {
        "vectors": names,
        "rows": [(r.id, r.partition, r.version, r.ts, r.model, dict(r.meta)) for r in rows],
        "deleted": [(d.id, d.partition, d.version, d.ts) for d in deleted],
    }
    with _synced(folder / "rows.msgpack") as file:
        file.write(msgpack.packb(content))
    return {file.name: _sha256(file) for file in sorted(folder.iterdir())}


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise SnapshotError(f"{MANIFEST}: format {manifest['format']}, expected {FORMAT}")
        for name in ("space", "dim", "positions", "progress", "files"):
            manifest[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{MANIFEST}: {error!r}") from error
    return manifest


def _newest_says(path: Path, space: str, offsets: dict[str, Any]) -> bool:
    try:
        manifest = _manifest(path)
    except SnapshotError:
        return False
    same = all(manifest[name] == offsets[name] for name in offsets)
    return same and manifest["space"] == space


def _existing(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half written. One index node owns a folder."""
    for path in folder.glob(".[0-9]*"):
        shutil.rmtree(path, ignore_errors=True)


def _keyed(offsets: dict[int, int]) -> dict[str, int]:
    return {str(number): offsets[number] for number in sorted(offsets)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
