"""The model registry: immutable version folders and a champion pointer that only moves forward.

    models/versions/braid-0001/     model.safetensors, manifest.json (encoders.checkpoint)
    models/champion/00000001.json   who became champion, and when; the highest number holds

The pointer's sequence number is the fencing token of promotions: its file is created exclusively,
so of two that promote at once one fails. A rollback is a new number that names an older version.
The `models` topic carries the same facts to every process; the folder is what they fall back on.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from encoders.errors import CheckpointError
from encoders.manifest import Manifest, read_manifest, verify

from .errors import RegistryError


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """Which version serves, since when; `seq` only grows."""

    seq: int
    name: str
    version: int
    space: str
    generation: str
    at_ms: int
    why: str


class Registry:
    """The versions and the champion below one folder.

    Args:
        root: the registry's folder; made when the first version is written.
        base: what versions are called: `braid` makes braid-0001, braid-0002, ...
        wall: seconds since 1970.
    """

    def __init__(
        self, root: Path, *, base: str = "braid", wall: Callable[[], float] = time.time
    ) -> None:
        self.root = root
        self._versions = root / "versions"
        self._champions = root / "champion"
        self._base = base
        self._wall = wall

    def path(self, name: str) -> Path:
        """The folder of a version."""
        return self._versions / name

    def names(self) -> list[str]:
        """All finished versions, oldest first."""
        if not self._versions.is_dir():
            return []
        found = [folder.name for folder in self._versions.iterdir() if _is_version(folder)]
        return sorted(found, key=lambda name: (self.manifest(name).version, name))

    def next(self) -> tuple[str, int]:
        """Name and number for a new version, one above every version there is."""
        number = 1 + max((self.manifest(name).version for name in self.names()), default=0)
        return f"{self._base}-{number:04d}", number

    def resolve(self, given: str) -> str:
        """A version's name from its name or its number ("braid-0002", "2").

        Raises:
            RegistryError: there is none; the message lists those that are there.
        """
        names = self.names()
        for name in names:
            if given in (name, str(self.manifest(name).version)):
                return name
        raise RegistryError(f"no version {given!r}; there are: {', '.join(names) or 'none yet'}")

    def manifest(self, name: str) -> Manifest:
        """Raises RegistryError if the version is missing or its manifest does not parse."""
        try:
            return read_manifest(self.path(name))
        except CheckpointError as error:
            raise RegistryError(f"{name}: {error}") from error

    def champion(self) -> Champion | None:
        """Who serves now; None before the first promotion."""
        seqs = self._seqs()
        return self._read(seqs[-1]) if seqs else None

    def history(self) -> list[Champion]:
        """Every champion that ever was, oldest first."""
        return [self._read(seq) for seq in self._seqs()]

    def check(self, name: str) -> Manifest:
        """A version's manifest, if it may serve.

        Raises:
            RegistryError: it is missing or damaged.
        """
        manifest = self.manifest(name)
        try:
            verify(self.path(name))
        except CheckpointError as error:
            raise RegistryError(f"{name} is damaged and cannot serve: {error}") from error
        return manifest

    def promote(self, name: str, *, generation: str, why: str = "promoted") -> Champion:
        """Make a version champion, after checking its files against their checksums.

        Raises:
            RegistryError: missing, damaged, of another space than the champion, or another
                process promoted at the same moment.
        """
        manifest = self.check(name)
        now = self.champion()
        if now is not None and now.space != manifest.space and now.generation == generation:
            raise RegistryError(
                f"{name} makes vectors of space {manifest.space}, {generation} holds {now.space} "
                f"(from {now.name}): serving it would answer queries of one space with vectors "
                "of another. A new space needs a new generation"
            )
        champion = Champion(
            seq=(now.seq if now else 0) + 1,
            name=name,
            version=manifest.version,
            space=manifest.space,
            generation=generation,
            at_ms=int(self._wall() * 1000),
            why=why,
        )
        self._create(champion)
        return champion

    def earlier(self) -> Champion:
        """The champion before this one, which a rollback goes back to.

        Raises:
            RegistryError: there was no other version before.
        """
        history = self.history()
        for earlier in reversed(history):
            if earlier.name != history[-1].name:
                return earlier
        raise RegistryError("there is no earlier champion to go back to")

    def _seqs(self) -> list[int]:
        if not self._champions.is_dir():
            return []
        return sorted(int(file.stem) for file in self._champions.glob("[0-9]*.json"))

    def _read(self, seq: int) -> Champion:
        file = self._champions / f"{seq:08d}.json"
        try:
            return Champion(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise RegistryError(f"{file} is not a champion file: {error}") from error

    def _create(self, champion: Champion) -> None:
        self._champions.mkdir(parents=True, exist_ok=True)
        target = self._champions / f"{champion.seq:08d}.json"
        temporary = self._champions / f".{champion.seq:08d}.{uuid.uuid4().hex}"
        with open(temporary, "w") as file:
            json.dump(asdict(champion), file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, target)  # fails if it exists: the exclusive create
        except FileExistsError:
            raise RegistryError(
                f"another promotion took number {champion.seq} at the same moment; look again"
            ) from None
        finally:
            temporary.unlink()
        folder = os.open(self._champions, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_version(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "manifest.json").is_file()
