"""Copies of training windows in the registry's object store.

    windows/20261126T033700.123Z-1f6c/shards/00003-0001.msgpack
    windows/20261126T033700.123Z-1f6c/window.json    the shards with their sha256
    windows/20261126T033700.123Z-1f6c/run.json       the run, last: without it there is no copy

A run that repeats the window of another has only a `run.json`, whose `window_of` names the other.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braid.encoders.manifest import sha256_of
from braid.index.files import sync_folder

from ..errors import ConfigError, RegistryError, WindowError
from ..registry.object_store import ObjectStore, put_waiting
from ..registry.versions import object_store_of
from ..settings import Settings
from .window import FILE_NAME, SHARDS, open_window, sweep

log = logging.getLogger(__name__)

RUN = "run.json"
PREFIX = "windows/"


class RemoteWindows:
    """The windows of all trainers that share the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def upload(self, run: Mapping[str, Any], folder: Path) -> None:
        """Upload a run and its window; files that are there are not sent again.

        Args:
            run: the content of the run's file.
            folder: of the window.

        Raises:
            RegistryError: the store refuses it, or is away; another call continues.
        """
        at = f"{PREFIX}{run['window_of']}/"
        present = set(self._store.keys(at))
        names = [f"{SHARDS}/{shard.name}" for shard in open_window(folder).shards]
        for name in (*names, FILE_NAME):
            if f"{at}{name}" not in present:
                put_waiting(self._store, f"{at}{name}", folder / name)
        if run["id"] not in self.ids():
            content = json.dumps(run, indent=1).encode()
            self._store.create(f"{PREFIX}{run['id']}/{RUN}", content)
            log.info("the window of run %s is in %s", run["id"], self._store)

    def run(self, name: str) -> dict[str, Any] | None:
        """The newest run of this id, or that makes the version of this name; None: there is none.

        Raises RegistryError: the store is away.
        """
        for id_ in reversed(self.ids()):
            run = self._read(id_)
            if name in (run["id"], run["name"]):
                return run
        return None

    def fetch(self, id_: str, folder: Path) -> None:
        """Download a run's window into its folder; it is complete there or absent.

        Raises:
            WindowError: there is none in the store, or it is damaged there.
            RegistryAway: the store does not answer.
        """
        at, draft = f"{PREFIX}{id_}/", folder.with_name(f".{id_}.{uuid.uuid4().hex[:8]}.tmp")
        if f"{at}{FILE_NAME}" not in self._store.keys(at):
            raise WindowError(f"{self._store} has no window of run {id_}")
        try:
            (draft / SHARDS).mkdir(parents=True)
            self._store.fetch_file(f"{at}{FILE_NAME}", draft / FILE_NAME)
            for shard in open_window(draft).shards:
                path = draft / SHARDS / shard.name
                if Path(shard.name).name != shard.name:
                    raise WindowError(f"{shard.name!r} lies outside of the window")
                self._store.fetch_file(f"{at}{SHARDS}/{shard.name}", path)
                if sha256_of(path) != shard.sha256:
                    raise WindowError(f"{at}{SHARDS}/{shard.name} in {self._store} is damaged")
            folder.mkdir(exist_ok=True)
            sweep(folder)
            for name in (SHARDS, FILE_NAME):
                (draft / name).rename(folder / name)
                sync_folder(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        log.info("the window of run %s is fetched from %s", id_, self._store)

    def forget(self, keep: int) -> None:
        """Remove the windows of all but the newest `keep` runs, and of those that these repeat."""
        ids = self.ids()[-keep:]
        kept = {*ids, *(self._read(id_)["window_of"] for id_ in ids)}
        present = {key.split("/")[1] for key in self._store.keys(PREFIX)}
        for id_ in present - kept:
            if id_ < ids[0]:  # later ones are being uploaded
                self.remove(id_)

    def remove(self, id_: str) -> None:
        """Remove a run and its window. Raises RegistryError: the store is away."""
        at = f"{PREFIX}{id_}/"
        keys = self._store.keys(at)
        for some in ([key for key in keys if key == f"{at}{RUN}"], keys):  # first what names them
            if some:
                self._store.remove(some)

    def ids(self) -> list[str]:
        """All runs whose windows are there, oldest first."""
        keys = self._store.keys(PREFIX)
        return sorted(key.split("/")[1] for key in keys if key.endswith(f"/{RUN}"))

    def _read(self, id_: str) -> dict[str, Any]:
        content = self._store.get(f"{PREFIX}{id_}/{RUN}")
        if content is None:
            raise RegistryError(f"{PREFIX}{id_}/{RUN} is missing in {self._store}")
        return dict(json.loads(content))


def remote_windows_of(settings: Settings) -> RemoteWindows | None:
    """The copies that the settings ask for; None: there are none.

    Raises ConfigError: the registry is not in an object store.
    """
    if not settings.refresh.upload_windows:
        return None
    store = object_store_of(settings)
    if store is None:
        raise ConfigError("refresh.upload_windows needs model.registry in an object store")
    return RemoteWindows(store)
