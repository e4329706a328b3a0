"""Open generations by name, and the alias that names the serving one.

    INDEX/serving.json   the alias: the serving generation's name and a number that only grows
    INDEX/g0001/         a generation's snapshots and segments

The alias file is replaced by a rename: after a crash it names the old generation or the new one. In
memory the alias is one reference: a query reads it once and keeps that generation. The caller opens
generations and decides when the alias flips.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import BraidIndexError, SnapshotError
from .files import replaced, sealed_json, sync_folder, unsealed_json

log = logging.getLogger(__name__)

ALIAS = "serving.json"
FORMAT = 1
NAME = re.compile(r"g[0-9]{4}")
DROPPED = ".dropped"

T = TypeVar("T")


class GenerationError(BraidIndexError):
    """A generation does not exist, exists already, or serves and cannot be dropped."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Which generation serves; `seq` counts the flips."""

    name: str
    seq: int


class Generations(Generic[T]):
    """Open generations by name; `T` is the caller's object for a generation.

    Args:
        folder: holds the alias and a folder for each generation.
        first: the serving generation until an alias is written.
    """

    def __init__(self, folder: Path, *, first: str) -> None:
        self._folder = folder
        self._open: Mapping[str, T] = {}
        self._changing = threading.Lock()
        self._alias = self._read() or Alias(_checked(first), 0)

    @property
    def alias(self) -> Alias:
        return self._alias

    @property
    def serving(self) -> T:
        """The serving generation. Raises GenerationError while it is not open."""
        return self.get(self._alias.name)

    @property
    def names(self) -> list[str]:
        """The open generations, oldest first."""
        return sorted(self._open)

    def folder(self, name: str) -> Path:
        """The folder of a generation's snapshots."""
        return self._folder / _checked(name)

    def kept(self) -> list[str]:
        """The generations that have a folder, open or not, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(p.name for p in self._folder.iterdir() if NAME.fullmatch(p.name))

    def get(self, name: str) -> T:
        """The open generation of that name. Raises GenerationError, which names the open ones."""
        generation = self._open.get(name)
        if generation is None:
            raise GenerationError(
                f"no generation {name[:60]!r} is open; there are: {', '.join(self.names) or 'none'}"
            )
        return generation

    def add(self, name: str, generation: T) -> None:
        """Add an open generation. Raises GenerationError if one of that name is open."""
        with self._changing:
            if _checked(name) in self._open:
                raise GenerationError(f"generation {name} is open already")
            self._open = {**self._open, name: generation}

    def flip(self, name: str) -> Alias:
        """Make another open generation serve; durable on return.

        Raises:
            GenerationError: it is not open.
            OSError: the alias could not be written; the old one stays.
        """
        with self._changing:
            self.get(name)
            if name == self._alias.name and self._alias.seq:
                return self._alias
            alias = Alias(name, self._alias.seq + 1)
            self._folder.mkdir(parents=True, exist_ok=True)
            content = {"format": FORMAT, "name": alias.name, "seq": alias.seq}
            replaced(self._folder / ALIAS, sealed_json(content))
            log.info("generation %s serves instead of %s", name, self._alias.name)
            self._alias = alias
            return alias

    def drop(self, name: str) -> T | None:
        """Close a generation and remove its files; returns the caller's object, if it was open.

        Raises:
            GenerationError: it serves, or does not exist.
        """
        with self._changing:
            if name == self._alias.name:
                raise GenerationError(f"generation {name} serves: flip to another one first")
            if name not in self._open and name not in self.kept():
                raise GenerationError(f"no generation {name[:60]!r} to drop")
            dropped = self._open.get(name)
            self._open = {other: kept for other, kept in self._open.items() if other != name}
            self._remove(name)
            return dropped

    def sweep(self) -> None:
        """Remove folders whose removal was interrupted by a crash."""
        for path in self._folder.glob(f"*{DROPPED}"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove(self, name: str) -> None:
        folder = self.folder(name)
        if not folder.exists():
            return
        gone = folder.with_name(name + DROPPED)
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)  # atomic: a half-removed generation must not be opened
        sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)

    def _read(self) -> Alias | None:
        path = self._folder / ALIAS
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = unsealed_json(path, FORMAT)
            return Alias(_checked(content["name"]), int(content["seq"]))
        except (SnapshotError, GenerationError, LookupError, TypeError, ValueError) as error:
            # The rename is atomic, so another program wrote this file. A guess could serve the
            # wrong space.
            raise GenerationError(
                f"{path} is damaged: {error}; write which generation serves "
                "by removing it, and the first one serves"
            ) from error


def _checked(name: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise GenerationError(f"a generation is called g0001, g0002, ..., not {name!r:.60}")
    return name
