"""Where the files of versions are: in the registry's folder, or in an object store with a cache.

In an object store a version is uploaded whole, its manifest last, and then an event of the log
names it with the manifest's sha256. The cache below the home is checked by that sum; it may be
removed while no process uses it.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import (
    FILE_NAME,
    Manifest,
    engines_folder,
    read_manifest,
    sha256_of,
    verify,
)
from braid.index.files import sync_folder

from ..errors import RegistryError
from ..failpoints import Failpoints
from ..local.filelock import file_lock
from .log import EventLog
from .object_store import ObjectStore, put_waiting
from .state import Event, State

log = logging.getLogger(__name__)

FETCH_S = 3600.0  # how long another process of this home may download a version


class VersionFiles(Protocol):
    """The folders of versions."""

    def names(self) -> list[str]:
        """All finished versions."""

    def folder(self, name: str) -> Path:
        """A version's folder, to read. Raises RegistryError: it cannot be had."""

    def manifest(self, name: str) -> Manifest:
        """Raises RegistryError: the version is missing or its manifest does not parse."""

    def number(self, name: str) -> int:
        """A version's number."""

    def publish(self, name: str) -> None:
        """Let every process see a version that this one has written. Idempotent."""

    def remove(self, name: str) -> None:
        """Remove a version: it is out of sight at once, and gone when this returns."""

    def sweep(self, living: Collection[str]) -> None:
        """Remove what killed processes left, except of those versions that `living` write."""


class LocalVersions:
    """Versions in the folder that they are written to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        if not self._root.is_dir():
            return []
        return [folder.name for folder in self._root.iterdir() if is_version(folder)]

    def folder(self, name: str) -> Path:
        return self._root / name

    def manifest(self, name: str) -> Manifest:
        return _manifest(name, self._root / name)

    def number(self, name: str) -> int:
        """By the manifest, else by the name: one damaged version must not hide the others."""
        try:
            return self.manifest(name).version
        except RegistryError:
            return _number(name)

    def publish(self, name: str) -> None:
        return None

    def remove(self, name: str) -> None:
        _remove_folder(self._root / name)

    def sweep(self, living: Collection[str]) -> None:
        _sweep_drafts(self._root, living)


class CachedVersions:
    """Versions in an object store, with a cache of those that this home has used.

    Args:
        root: the cache's folder; versions are written there, too, before they are published.
        clock, sleep: monotonic seconds; as time.sleep.
    """

    def __init__(
        self,
        root: Path,
        events: EventLog,
        store: ObjectStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._root, self._log, self._store = root, events, store
        self._clock, self._sleep = clock, sleep
        self._failpoint = Failpoints.from_environment()
        self._verified: set[str] = set()

    def names(self) -> list[str]:
        return list(self._log.state().versions)

    def number(self, name: str) -> int:
        return _number(name)

    def folder(self, name: str) -> Path:
        """A version's folder, downloaded and verified if it is not in the cache.

        Raises:
            RegistryError: there is no such version, or its files in the store are damaged.
            RegistryAway: it is not in the cache, and the store does not answer.
            FileLockError: another process downloads it for longer than FETCH_S.
        """
        state, path = self._log.known(), self._root / name
        if name not in state.versions:
            state = self._log.state()
        sha256 = _sha256(state, name)
        if name in self._verified and _fits(path, sha256):
            return path
        with file_lock(self._root / f".{name}.lock", what=f"version {name}", timeout=FETCH_S):
            if not (_fits(path, sha256) and _whole(path)):
                self._fetch(name, sha256, path)
        self._verified.add(name)
        return path

    def manifest(self, name: str) -> Manifest:
        state = self._log.state()
        sha256, path = _sha256(state, name), self._root / name
        if not _fits(path, sha256):
            path = self._root / ".manifests" / sha256
            if not _fits(path, sha256):
                path.mkdir(parents=True, exist_ok=True)
                self._fetch_manifest(name, sha256, path)
        return _manifest(name, path)

    def publish(self, name: str) -> None:
        """Upload a version, its manifest last, and name it in the log.

        A store that is away is waited for, UPLOAD_S at most.

        Raises:
            RegistryError: the version is damaged, or was removed.
            RegistryAway: the store was away for too long; another call goes on.
        """
        folder = self._root / name
        if name in self._log.state().versions:
            return
        try:
            files = verify(folder).files
        except CheckpointError as error:
            raise RegistryError(f"{name} is not published: {error}") from error
        for file in (*files, FILE_NAME):
            key = f"versions/{name}/{file}"
            put_waiting(self._store, key, folder / file, clock=self._clock, sleep=self._sleep)
            self._failpoint("upload-manifest" if file == FILE_NAME else "upload-file")
        sha256 = sha256_of(folder / FILE_NAME)

        def published(state: State) -> Event | None:
            known = state.versions.get(name) == sha256
            return None if known else self._log.event("version", name=name, sha256=sha256)

        self._log.append(published)
        self._failpoint("upload-published")
        log.info("%s is in %s", name, self._store)

    def remove(self, name: str) -> None:
        self._log.append(lambda _: self._log.event("removed", name=name))
        self._store.delete(f"versions/{name}/")
        if (self._root / name).exists():
            _remove_folder(self._root / name)

    def sweep(self, living: Collection[str]) -> None:
        """Also of removed versions: their files in the store and in the cache."""
        _sweep_drafts(self._root, living)
        removed = self._log.state().removed
        left = {key.split("/")[1] for key in self._store.keys("versions/")} & removed
        for name in left:
            self._store.delete(f"versions/{name}/")
        for name in removed:
            if (self._root / name).exists():
                _remove_folder(self._root / name)

    def _fetch(self, name: str, sha256: str, path: Path) -> None:
        draft = self._root / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        draft.mkdir(parents=True)
        try:
            for file in inner_files(self._fetch_manifest(name, sha256, draft)):
                (draft / file).parent.mkdir(parents=True, exist_ok=True)
                self._store.fetch_file(f"versions/{name}/{file}", draft / file)
            try:
                verify(draft)
            except CheckpointError as error:
                raise RegistryError(f"{name} is damaged in {self._store}: {error}") from error
            if path.exists():  # it does not fit the log
                _remove_folder(path)
            draft.rename(path)
            sync_folder(self._root)
        finally:
            _remove(draft)
        log.info("%s is fetched from %s", name, self._store)

    def _fetch_manifest(self, name: str, sha256: str, folder: Path) -> Manifest:
        self._store.fetch_file(f"versions/{name}/{FILE_NAME}", folder / FILE_NAME)
        if not _fits(folder, sha256):
            raise RegistryError(
                f"{name} is damaged in {self._store}: its manifest does not have the sha256 "
                "of the log"
            )
        return _manifest(name, folder)


def inner_files(manifest: Manifest) -> list[str]:
    """The files that a manifest names. Raises RegistryError: one lies outside of the version."""
    for file in manifest.files:
        parts = file.split("/")
        if "\\" in file or any(part in ("", ".", "..") for part in parts):
            raise RegistryError(f"{manifest.name}: {file!r} lies outside of the version")
    return list(manifest.files)


def is_version(folder: Path) -> bool:
    """Whether a version was written there to its end."""
    return not folder.name.startswith(".") and (folder / FILE_NAME).is_file()


def _sha256(state: State, name: str) -> str:
    try:
        return state.versions[name]
    except KeyError:
        raise RegistryError(f"no version {name!r} is published") from None


def _fits(folder: Path, sha256: str | None) -> bool:
    try:
        return sha256_of(folder / FILE_NAME) == sha256
    except OSError:
        return False


def _whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError as error:
        log.warning("%s: fetched again", error)
        return False
    return True


def _number(name: str) -> int:
    return int(name.rpartition("-")[2]) if name[-1:].isdigit() else 0


def _manifest(name: str, folder: Path) -> Manifest:
    try:
        return read_manifest(folder)
    except CheckpointError as error:
        raise RegistryError(f"{name}: {error}") from error


def _sweep_drafts(root: Path, living: Collection[str]) -> None:
    for draft in root.glob(".*.tmp"):  # .NAME.RANDOM.tmp
        if draft.name[1:].rsplit(".", 2)[0] not in living:
            _remove(draft)


def _remove_folder(path: Path) -> None:
    """Out of sight at once, with what lies beside it."""
    gone = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    path.rename(gone)
    path.with_name(f"{path.name}.html").unlink(missing_ok=True)
    _remove(engines_folder(path))
    _remove(gone)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
