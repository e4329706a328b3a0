"""Copies of a generation's snapshots in the registry's object store.

    snapshots/g0001/NODE/segments/segment-00000007-…/   sealed segments, uploaded once
    snapshots/g0001/NODE/000001796112345678/            the other files of one snapshot
    snapshots/g0001/NODE/heads/000001796112345678.json  all files of it with their sha256, last

NODE is a random name of an index folder, so that no other node removes its files. The number is the
time of the upload in milliseconds.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from braid.encoders.manifest import sha256_of
from braid.index.errors import SnapshotError
from braid.index.files import replaced, sealed_json, unsealed
from braid.index.segments.snapshot import files_of, newest, segments_folder

from ..errors import ConfigError, RegistryAway, RegistryError
from ..registry.object_store import ObjectStore
from ..registry.versions import object_store_of
from ..settings import Settings

log = logging.getLogger(__name__)

FORMAT = 1
KEEP = 2
FORGOTTEN_MS = 7 * 86_400_000  # how long the uploads of a node that is gone are kept
READERS = 8
STOP_S = 20.0  # how long a node's end waits for its last upload


class RemoteSnapshots:
    """The uploads of one generation. `upload` runs on a thread of its own.

    Args:
        folder: of the generation's snapshots.
        node: a file with the name of this node, made if it is missing.
        every_s: seconds between two uploads.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        store: ObjectStore,
        generation: str,
        folder: Path,
        *,
        node: Path,
        every_s: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._folder, self._every_s, self._wall = store, folder, every_s, wall
        self._all = f"snapshots/{generation}"
        self._own = f"{self._all}/{_name(node)}"
        self._there: set[str] | None = None  # the keys of this node's objects
        self._uploaded_at = float("-inf")
        self._uploaded: Path | None = None  # the snapshot of the last upload
        self._thread: threading.Thread | None = None

    def offer(self, *, last: bool = False) -> None:
        """Begin to upload the newest snapshot if it is time, or if it is the last one."""
        due = last or self._wall() - self._uploaded_at >= self._every_s
        if due and (self._thread is None or not self._thread.is_alive()):
            self._uploaded_at = self._wall()
            self._thread = threading.Thread(target=self._try, name="upload", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Wait for the upload that runs, then upload what is newer; within a bound."""
        if self._thread is not None:
            self._thread.join(STOP_S)
        self.offer(last=True)
        if self._thread is not None:
            self._thread.join(STOP_S)

    def upload(self) -> str | None:
        """Upload the newest snapshot, with the segments that are not there yet; returns its head.

        None: there is no snapshot, or it is there already.

        Raises:
            RegistryError: the store refuses it, or is away.
            OSError, SnapshotError: the snapshot was removed meanwhile, or is damaged.
        """
        path = newest(self._folder)
        if path in (None, self._uploaded):
            return None
        assert path is not None
        if self._there is None:
            self._there = set(self._store.keys(f"{self._own}/"))
        at_ms = f"{int(1000 * self._wall()):018d}"
        files = {}
        for name, file in files_of(path).items():
            shared = name.startswith(f"{segments_folder(Path()).name}/")
            key = f"{self._own}/{name}" if shared else f"{self._own}/{at_ms}/{name}"
            files[key] = {"name": name, "sha256": sha256_of(file)}
            if key not in self._there:
                self._store.put_file(key, file)
                self._there.add(key)
        head = f"{self._own}/heads/{at_ms}.json"
        content = sealed_json({"format": FORMAT, "snapshot": path.name, "files": files})
        self._store.create(head, content)
        self._there.add(head)
        self._uploaded = path
        self._forget(int(at_ms))
        return head

    def restore(self) -> bool:
        """Download the newest snapshot of any node into the empty folder; returns whether.

        Raises:
            RegistryAway: the store does not answer.
        """
        heads = [key for key in self._store.keys(f"{self._all}/") if "/heads/" in key]
        for head in sorted(heads, key=lambda key: key.rpartition("/")[2], reverse=True):
            try:
                self._fetch(head)
            except RegistryAway:
                raise
            except (RegistryError, SnapshotError) as error:
                log.error("%s in %s is not used: %s", head, self._store, error)
                continue
            log.info("the snapshot %s is fetched from %s", head, self._store)
            return True
        return False

    def drop(self) -> None:
        """Remove the uploads of all nodes. Raises RegistryError."""
        self._store.delete(f"{self._all}/")

    def _try(self) -> None:
        try:
            began = time.monotonic()
            if (head := self.upload()) is not None:
                log.info("uploaded %s in %.1f s", head, time.monotonic() - began)
        except (RegistryError, SnapshotError, OSError) as error:
            self._there = None
            log.warning("no snapshot was uploaded, the last one stays: %s", error)

    def _forget(self, now_ms: int) -> None:
        """Remove what no kept head of this node names, and the nodes that are gone."""
        assert self._there is not None
        heads = sorted(key for key in self._there if "/heads/" in key)
        kept = set(heads[-KEEP:])
        for head in heads[-KEEP:]:
            kept |= self._head(head)["files"].keys()
        self._remove(self._there - kept)
        self._there &= kept
        last: dict[str, int] = {}
        for key in self._store.keys(f"{self._all}/"):
            node, _, name = key.removeprefix(f"{self._all}/").partition("/")
            if name.startswith("heads/"):
                last[node] = max(last.get(node, 0), int(Path(name).stem))
        for node, at_ms in last.items():
            if now_ms - at_ms > FORGOTTEN_MS:
                self._store.delete(f"{self._all}/{node}/")

    def _remove(self, keys: set[str]) -> None:
        heads = {key for key in keys if "/heads/" in key}
        for some in (heads, keys - heads):  # first what names the others
            if some:
                self._store.remove(sorted(some))

    def _head(self, key: str) -> dict[str, Any]:
        content = self._store.get(key)
        if content is None:
            raise RegistryError(f"{key} is missing")
        return unsealed(content, FORMAT)

    def _fetch(self, head: str) -> None:
        plain = self._head(head)
        draft = self._folder.with_name(f".{self._folder.name}.fetched")
        shutil.rmtree(draft, ignore_errors=True)

        def fetch(item: tuple[str, dict[str, str]]) -> None:
            key, file = item
            path = draft / "snapshot" / file["name"]
            if not path.resolve().is_relative_to(draft.resolve()):
                raise RegistryError(f"{file['name']!r} lies outside of the snapshot")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store.fetch_file(key, path)
            if sha256_of(path) != file["sha256"]:
                raise RegistryError(f"{key} is damaged")

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(fetch, plain["files"].items()))
        snapshot = draft / "snapshot"
        self._folder.mkdir(parents=True, exist_ok=True)
        segments = segments_folder(snapshot)
        if segments.is_dir():
            shutil.copytree(segments, segments_folder(self._folder), dirs_exist_ok=True)
            shutil.rmtree(segments)
        snapshot.rename(self._folder / plain["snapshot"])
        shutil.rmtree(draft, ignore_errors=True)


def remote_snapshots_of(settings: Settings, generation: str) -> RemoteSnapshots | None:
    """The uploads that the settings ask for; None: there are none.

    Raises ConfigError: the registry is not in an object store.
    """
    every_s = settings.index.upload_every_s
    if every_s is None:
        return None
    store = object_store_of(settings)
    if store is None:
        raise ConfigError("index.upload_every_s needs model.registry in an object store")
    folder = settings.index_dir(generation)
    node = settings.index_home / "node"
    return RemoteSnapshots(store, generation, folder, node=node, every_s=every_s)


def _name(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        replaced(path, secrets.token_hex(6).encode())
        return path.read_text()
