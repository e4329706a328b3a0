"""Snapshots of the store: atomic, checksummed, with shared segments.

    FOLDER/segments/segment-00000007-…/ sealed segments, written once, shared by snapshots
    FOLDER/00000042/   manifest.json    space, dim, generation, offsets, segments with digests, and
                                        the digests of all files here and of the manifest itself
                       growing/         the rows that are not sealed yet, as a segment
                       rest.msgpack     the live rows of each segment; deletions
                       facts.json       facts of the store's owner

A snapshot is written under a temporary name, fsynced and renamed, and the parent folder is fsynced.
The store's writer waits only while references are taken; rows are not copied. `restore` loads the
newest undamaged snapshot; the last KEEP are kept. A damaged one is renamed to 00000042.damaged, so
that it is not counted, and is removed with the next snapshot.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ..errors import SnapshotError
from ..files import checked, replaced, sealed_json, sync_folder, synced, unsealed_json
from ..store import Delete, Upsert
from .gpu import Gpu
from .growing import Block
from .id_map import LastWrite
from .live_store import LiveStore
from .sealed import MANIFEST as SEGMENT
from .sealed import Recipe, Segment, open_segment
from .view import Part
from .writer import write

log = logging.getLogger(__name__)

FORMAT = 2
KEEP = 2
MANIFEST, FACTS, REST, GROWING = "manifest.json", "facts.json", "rest.msgpack", "growing"
SEGMENTS = "segments"
DAMAGED = ".damaged"
# A full disk, meta that cannot be packed, a segment whose files were removed.
UNWRITTEN = (OSError, ValueError, TypeError, OverflowError, LookupError)
READERS = 4  # files hashed at once; SHA-256 releases the GIL

Failpoint = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotInfo:
    """A written snapshot; `stall_s` is how long the store's writer waited."""

    path: Path
    records: int
    nbytes: int
    stall_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """A restored store, and its owner's facts."""

    store: LiveStore
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Content:
    """The store at one moment: references, not copies."""

    parts: list[Part]
    deleted: list[tuple[str, LastWrite]]
    positions: dict[int, int]
    progress: dict[int, int]
    next_number: int
    stall_s: float

    @property
    def records(self) -> int:
        return sum(part.alive for part in self.parts)


def segments_folder(folder: Path) -> Path:
    """The folder of the sealed segments, below a snapshot folder."""
    return folder / SEGMENTS


def newest(folder: Path) -> Path | None:
    """The newest snapshot in a folder."""
    return next(reversed(_existing(folder)), None)


def files_of(path: Path) -> dict[str, Path]:
    """The files of a snapshot and of its segments, by their names below the snapshot folder.

    Raises SnapshotError: its manifest is damaged.
    """
    manifest = unsealed_json(path / MANIFEST, FORMAT)
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    for entry in manifest["segments"]:
        for file in (segments_folder(path.parent) / entry["name"]).iterdir():
            files[f"{SEGMENTS}/{entry['name']}/{file.name}"] = file
    return files


def save(
    store: LiveStore,
    folder: Path,
    *,
    generation: str,
    facts: Mapping[str, Any] | None = None,
    failpoint: Failpoint = lambda name: None,
) -> SnapshotInfo | None:
    """Write a snapshot below `folder`. If the newest has the same offsets, write only its facts and
    return None.

    Raises:
        SnapshotError: it could not be written; existing snapshots are unchanged.
    """
    content = _captured(store)
    offsets = {"positions": _keyed(content.positions), "progress": _keyed(content.progress)}
    existing = _existing(folder)
    # Facts may be rewritten alone; the offsets bind them to their snapshot.
    sealed_facts = sealed_json({"format": FORMAT, **offsets, "facts": dict(facts or {})})
    number = int(existing[-1].name) + 1 if existing else 1
    temporary = folder / f".{number:08d}.{os.getpid()}"
    path = folder / f"{number:08d}"
    try:
        if existing and _newest_says(existing[-1], store.space, offsets):
            replaced(existing[-1] / FACTS, sealed_facts)
            _drop_unused(folder, keep=lambda: _in_use(store))
            return None
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
        failpoint("snapshot-begin")
        segments = _write_content(temporary, folder, content, store.recipe)
        with synced(temporary / FACTS) as file:
            file.write(sealed_facts)
        failpoint("snapshot-files")
        manifest = {
            "format": FORMAT,
            "space": store.space,
            "dim": store.dim,
            "generation": generation,
            "records": content.records,
            "next_number": content.next_number,
            **offsets,
            "segments": segments,
            "growing": checked(temporary / GROWING, only=SEGMENT).get(SEGMENT),
            "files": checked(temporary, except_for=FACTS),
        }
        with synced(temporary / MANIFEST) as file:
            file.write(sealed_json(manifest))
        sync_folder(temporary)
        failpoint("snapshot-manifest")
        temporary.rename(path)
        failpoint("snapshot-renamed")
        sync_folder(folder)
    except UNWRITTEN as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SnapshotError(f"{folder}: {error}") from error
    for old in [*existing, path][:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    failpoint("snapshot-old-gone")
    _drop_unused(folder, keep=lambda: _in_use(store))
    failpoint("snapshot-end")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return SnapshotInfo(path=path, records=content.records, nbytes=size, stall_s=content.stall_s)


def restore(
    folder: Path,
    *,
    threads: int = 1,
    recall: float = 1.0,
    gpu: Gpu | None = None,
    failpoint: Failpoint = lambda name: None,
) -> Restored | None:
    """Load the newest undamaged snapshot; damaged ones are logged and skipped.

    None: there is none, and the topic must be read from its beginning.
    """
    restored = None
    for path in reversed(_existing(folder)):
        try:
            restored = load(path, threads=threads, recall=recall, gpu=gpu, failpoint=failpoint)
            break
        except SnapshotError as error:
            log.error("snapshot %s is damaged and not used: %s", path, error)
            _set_aside(path)
    _drop_unused(folder)
    return restored


def load(
    path: Path,
    *,
    threads: int = 1,
    recall: float = 1.0,
    gpu: Gpu | None = None,
    failpoint: Failpoint = lambda name: None,
) -> Restored:
    """Load one snapshot. Raises SnapshotError if a file is missing or damaged."""
    try:
        return _loaded(path, threads=threads, recall=recall, gpu=gpu, failpoint=failpoint)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
    ) as error:  # unreadable or changed
        raise SnapshotError(f"{path}: {error!r}") from error


def _loaded(
    path: Path, *, threads: int, recall: float, gpu: Gpu | None, failpoint: Failpoint
) -> Restored:
    manifest = unsealed_json(path / MANIFEST, FORMAT)
    facts = unsealed_json(path / FACTS, FORMAT)
    if any(facts[name] != manifest[name] for name in ("positions", "progress")):
        raise SnapshotError(f"{path / FACTS}: belongs to another snapshot")
    for name, expected in manifest["files"].items():
        digest = checked(path, only=name).get(name)
        if digest != expected:
            raise SnapshotError(f"{path / name}: is missing, or its sha256 is another")
    place = segments_folder(path.parent)
    store = LiveStore(
        space=manifest["space"],
        dim=manifest["dim"],
        threads=threads,
        recall=recall,
        gpu=gpu,
        folder=place,
        failpoint=failpoint,
    )
    folders = [place / entry["name"] for entry in manifest["segments"]]
    with ThreadPoolExecutor(READERS, "restore") as pool:
        segments = list(pool.map(lambda folder: open_segment(folder, store.recipe), folders))
        within = [path / GROWING] if manifest["growing"] else []
        growing = list(pool.map(lambda at: open_segment(at, Recipe(dim=store.dim)), within))
    sums = [*(entry["sha256"] for entry in manifest["segments"]), manifest["growing"]]
    for folder, expected in zip([*folders, *within], sums, strict=False):
        if checked(folder, only=SEGMENT)[SEGMENT] != expected:
            raise SnapshotError(f"{folder}: is not the segment that the snapshot means")
    rest = msgpack.unpackb((path / REST).read_bytes())
    kept = [_unpacked(rest["keep"][segment.name], len(segment)) for segment in segments]
    store.adopt(list(zip(segments, kept, strict=True)), manifest["next_number"])
    writes: list[Upsert | Delete] = [
        segment.record(row) for segment in growing for row in range(len(segment))
    ]
    writes += [
        Delete(id=id_, partition=partition, version=version, ts=ts)
        for id_, partition, version, ts in rest["deleted"]
    ]
    store.apply(
        writes,
        positions={int(number): next_ for number, next_ in manifest["positions"].items()},
        progress={int(number): next_ for number, next_ in manifest["progress"].items()},
    )
    return Restored(store=store, facts=facts["facts"])


def _captured(store: LiveStore) -> _Content:
    with store.writing:
        began = time.perf_counter()
        parts = list(store.view.parts.values())
        positions, progress = dict(store.positions), dict(store.progress)
        deleted = list(store.id_map.deleted())
        number = store.next_number
        stall_s = time.perf_counter() - began
    return _Content(parts, deleted, positions, progress, number, stall_s)


def _write_content(
    temporary: Path, folder: Path, content: _Content, recipe: Recipe
) -> list[dict[str, str]]:
    """Write the files of a snapshot; returns names and digests of its segments."""
    place = segments_folder(folder)
    place.mkdir(exist_ok=True)
    keep: dict[str, bytes] = {}
    segments = []
    for part in content.parts:
        if isinstance(part.rows, Segment):
            at = _on_disk(part, place, recipe)
            keep[at.name] = np.packbits(part.keep).tobytes()
            segments.append({"name": at.name, "sha256": checked(at, only=SEGMENT)[SEGMENT]})
    blocks = [
        (part, part.living())
        for part in content.parts
        if isinstance(part.rows, Block) and part.alive
    ]
    if blocks:
        write(GROWING, blocks, replace(recipe, recall=1.0, folder=temporary))
    deleted = [(id_, last.partition, last.version, last.ts) for id_, last in content.deleted]
    with synced(temporary / REST) as file:
        file.write(msgpack.packb({"keep": keep, "deleted": deleted}))
    return segments


def _on_disk(part: Part, place: Path, recipe: Recipe) -> Path:
    """The folder of a segment; one that lives in memory, or elsewhere, or was lost, is written."""
    assert isinstance(part.rows, Segment)
    at = place / part.rows.name
    if not (at / SEGMENT).exists():
        shutil.rmtree(at, ignore_errors=True)
        write(at.name, [(part, np.arange(part.count))], replace(recipe, folder=place))
    return at


def _unpacked(packed: bytes, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows).astype(np.bool_)


def _newest_says(path: Path, space: str, offsets: dict[str, Any]) -> bool:
    try:
        manifest = unsealed_json(path / MANIFEST, FORMAT)
    except SnapshotError:
        return False
    same = all(manifest[name] == offsets[name] for name in offsets)
    return same and manifest["space"] == space


def _existing(folder: Path) -> list[Path]:
    """The snapshots in a folder, oldest first."""
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
    """Remove unfinished snapshots of a killed process, and damaged ones.

    One index node owns a folder.
    """
    for path in [*folder.glob(".[0-9]*"), *folder.glob(f"[0-9]*{DAMAGED}")]:
        shutil.rmtree(path, ignore_errors=True)


def _in_use(store: LiveStore) -> set[str]:
    """The segments of a store, including the one that is being written."""
    being_written = store.being_written  # first: when it is in hand no more it is in the view
    return {segment.name for segment in store.segments()} | {being_written or ""}


def _drop_unused(folder: Path, *, keep: Callable[[], set[str]] = set) -> None:
    """Remove segments that no snapshot refers to and that are not among `keep`.

    Segments may be written meanwhile: the folder is listed before the segments in use are, so that
    a later segment is not on the list.
    """
    there = list(segments_folder(folder).glob("segment-*"))
    used = keep()
    for path in _existing(folder):
        try:
            manifest = unsealed_json(path / MANIFEST, FORMAT)
        except SnapshotError:
            continue
        used |= {entry["name"] for entry in manifest["segments"]}
    for path in there:
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)


def _keyed(offsets: dict[int, int]) -> dict[str, int]:
    return {str(number): offsets[number] for number in sorted(offsets)}
