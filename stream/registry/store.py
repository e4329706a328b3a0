"""Where a registry is kept: objects by key, on a folder here or in an object store.

    log/00000001.json                 the first event (`braid.stream.registry.log`)
    versions/NAME/manifest.json, ...  the files of a version, its manifest last

Events are created once and never changed.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

from braid.index.files import created, sync_folder

from ..errors import RegistryError

ABANDONED_S = 3600.0
EARLIER = ("champion", "generations", "handovers", "canary", "numbers")
"""Folders of registries without a log, before braid 0.1."""


class Store(Protocol):
    """What a registry needs of the place that keeps it."""

    def check(self) -> None:
        """Raises RegistryError: the place holds something else than a registry of this format."""

    def create(self, key: str, content: bytes) -> None:
        """Create an object, durably. Raises FileExistsError: there is one of this key."""

    def get(self, key: str) -> bytes | None:
        """An object's content; None: there is none of this key."""

    def all(self, prefix: str) -> dict[str, bytes]:
        """The contents of all objects below a prefix, by key, in the order of their keys."""

    def sweep(self) -> None:
        """Remove what killed processes left."""


class FolderStore:
    """Objects as files below a folder, which is made with the first one.

    A file is written under another name, fsynced and linked, so that it is seen whole or not at
    all, and of several processes that create it one succeeds.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def check(self) -> None:
        if earlier := [name for name in EARLIER if (self._root / name).is_dir()]:
            folders = ", ".join(f"{name}/" for name in earlier)
            raise RegistryError(
                f"{self._root} is a registry of an earlier braid ({folders}), which this one does "
                "not read: start with another home, copy versions/ there, and promote one of them"
            )

    def create(self, key: str, content: bytes) -> None:
        path = self._root / key
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
        created(path, content)

    def get(self, key: str) -> bytes | None:
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError:
            return None

    def all(self, prefix: str) -> dict[str, bytes]:
        names = sorted(path.name for path in (self._root / prefix).glob("[!.]*"))
        return {
            key: content
            for key in (f"{prefix}{name}" for name in names)
            if (content := self.get(key)) is not None
        }

    def sweep(self) -> None:
        for draft in self._root.glob("log/.[0-9]*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > ABANDONED_S:  # else it is being linked
                    draft.unlink()
