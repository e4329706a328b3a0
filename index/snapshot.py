"""Snapshots: the store's rows and offsets in one folder, complete or not there at all.

    SNAPSHOTS/00000042/   manifest.json   space, dim, generation, offsets, sha256 of each file
                                          and of the manifest itself
                          rows.msgpack    ids, versions, meta and deletions
                          fused.npy ...   float32[rows, D] by vector name, and which rows have it

Written under a temporary name, fsynced, renamed, the parent folder fsynced. The raw vectors are
the truth. Of several snapshots the newest whole one is used; the last KEEP are kept. One that is
damaged is set aside as 00000042.damaged, so that it does not count among those, and goes with the
next snapshot that is written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
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
ROWS = "rows.msgpack"
DAMAGED = ".damaged"


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
    path = folder / f"{number:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        manifest = {
            "format": FORMAT,
            "space": store.space,
            "dim": store.dim,
            "generation": generation,
            "records": len(rows),
            **offsets,
            "files": _write_content(temporary, rows, deleted, store.dim),
        }
        with _synced(temporary / MANIFEST) as file:
            file.write(json.dumps(manifest | {"sha256": _sealed(manifest)}).encode())
        _sync_folder(temporary)
        temporary.rename(path)
        _sync_folder(folder)
    except (OSError, ValueError, TypeError) as error:  # a full disk, or meta that cannot be packed
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
            _set_aside(path)
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
    try:
        content = msgpack.unpackb((path / ROWS).read_bytes(), strict_map_key=False)
        arrays = {
            name: (np.load(path / f"{name}.npy"), np.load(path / f"{name}.has.npy"))
            for name in content["vectors"]
        }
    except (OSError, ValueError) as error:  # changed since it was summed up
        raise SnapshotError(f"{path}: {error}") from error
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


def _write_content(
    folder: Path, rows: list[Upsert], deleted: list[Delete], dim: int
) -> dict[str, str]:
    names = sorted({FUSED, *(name for row in rows for name in row.by)})
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
    with _synced(folder / ROWS) as file:
        file.write(msgpack.packb(content))
    return {file.name: _sha256(file) for file in sorted(folder.iterdir())}


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        if manifest.pop("sha256") != _sealed(manifest):
            raise SnapshotError(f"{MANIFEST}: it does not fit its own sha256")
        if manifest["format"] != FORMAT:
            raise SnapshotError(f"{MANIFEST}: format {manifest['format']}, expected {FORMAT}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{MANIFEST}: {error!r}") from error
    return manifest


def _sealed(manifest: dict[str, Any]) -> str:
    """The manifest's own checksum: one flipped bit in an offset would lose records silently."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _newest_says(path: Path, space: str, offsets: dict[str, Any]) -> bool:
    try:
        manifest = _manifest(path)
    except SnapshotError:
        return False
    same = all(manifest[name] == offsets[name] for name in offsets)
    return same and manifest["space"] == space


def _existing(folder: Path) -> list[Path]:
    """The snapshots that are there, oldest first."""
    if not folder.is_dir():
        return []
    numbered = (path for path in folder.iterdir() if re.fullmatch("[0-9]{8,}", path.name))
    return sorted(numbered, key=lambda path: int(path.name))


def _set_aside(path: Path) -> None:
    aside = path.with_name(path.name + DAMAGED)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    except OSError as error:
        log.warning("%s cannot be set aside: %s", path, error)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half written, and what was set aside.

    One index node owns a folder.
    """
    for path in [*folder.glob(".[0-9]*"), *folder.glob(f"[0-9]*{DAMAGED}")]:
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
