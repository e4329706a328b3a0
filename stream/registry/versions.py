"""Model versions: immutable folders, and the champion pointer, which only moves forward.

    models/versions/braid-0001/     model.safetensors, manifest.json
    models/champion/00000001.json   who became champion, and when; the highest number holds
    models/numbers/0001             which run writes the version of this number; given once

The pointer's sequence number is the fencing token of promotions: its file is created exclusively,
so of two that promote at once one fails. A rollback is a new number that names an older version.
The `models` topic carries the same facts to every process; the folder is what they fall back on.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import Manifest, read_manifest, verify
from braid.index.files import created

from ..errors import RegistryError

ABANDONED_S = 3600.0
TOO_LITTLE = "not enough evidence"  # the judge's decision where it has too few records


@dataclass(frozen=True, kw_only=True, slots=True)
class Champion:
    """Which version serves, since when; `seq` only grows.

    Attributes:
        back_to: of a rollback, the number of the promotion that it went back to.
    """

    seq: int
    name: str
    version: int
    space: str
    generation: str
    at_ms: int
    why: str
    back_to: int | None = None


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
        self._numbers = root / "numbers"
        self._base = base
        self._wall = wall

    def path(self, name: str) -> Path:
        """The folder of a version."""
        return self._versions / name

    def page(self, name: str) -> Path:
        """Where a version's plots are: beside its folder, which is never written again."""
        return self._versions / f"{name}.html"

    def names(self) -> list[str]:
        """All finished versions, oldest first."""
        if not self._versions.is_dir():
            return []
        names = [folder.name for folder in self._versions.iterdir() if _is_version(folder)]
        return sorted(names, key=lambda name: (self._number(name), name))

    def next(self) -> tuple[str, int]:
        """Name and number for a new version, one above every version there is or will be."""
        taken = [int(file.name) for file in self._numbers.glob("[0-9]*")]
        number = 1 + max([*taken, *map(self._number, self.names())], default=0)
        return f"{self._base}-{number:04d}", number

    def claim(self, run: str) -> tuple[str, int]:
        """`next`, for `run` alone: no number is given twice, not even that of a removed version."""
        self._numbers.mkdir(parents=True, exist_ok=True)
        while True:
            name, number = self.next()
            try:
                with open(self._numbers / f"{number:04d}", "x") as file:
                    file.write(run)
            except FileExistsError:
                continue
            return name, number

    def sweep(self, living: Collection[str]) -> None:
        """Remove what killed trainers left of versions, except of those that `living` write."""
        for draft in self._versions.glob(".*.tmp"):  # .NAME.RANDOM.tmp
            if draft.name[1:].rsplit(".", 2)[0] not in living:
                _remove(draft)
        for draft in self._champions.glob(".[0-9]*"):
            if self._wall() - draft.stat().st_mtime > ABANDONED_S:  # else it is being linked
                _remove(draft)

    def remove(self, name: str) -> None:
        """Remove a version: it is out of sight at once, and gone when this returns."""
        gone = self._versions / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        self.path(name).rename(gone)
        self.page(name).unlink(missing_ok=True)
        _remove(gone)

    def resolve(self, version: str) -> str:
        """A version's name from its name or its number ("braid-0002", "2").

        Raises:
            RegistryError: there is none; the message lists those that are there.
        """
        names = self.names()
        for name in names:
            if version in (name, str(self._number(name))):
                return name
        raise RegistryError(f"no version {version!r}; there are: {', '.join(names) or 'none yet'}")

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

    def follows(self, name: str, after: int | None) -> None:
        """Raises RegistryError if champion number `after` does not serve any more; see `admit`."""
        now = self.champion()
        seq = now.seq if now else 0
        if after is not None and seq != after:
            raise RegistryError(
                f"{name} is not promoted: it was trained as successor of champion number {after}, "
                f"and number {seq} ({now.name if now else 'nobody'}) was promoted since; it is "
                f"kept: braid models diff, then braid models promote {name}"
            )

    def admit(self, name: str, *, after: int | None = None, force: bool = False) -> Manifest:
        """A version's manifest, if it may become champion now, in its own space or another.

        Args:
            after: only as the successor of this champion number, the one that the caller saw when
                it began; None: of whoever serves now.
            force: although its examination failed.

        Raises:
            RegistryError: missing, damaged, not passed, of another dimension in the champion's
                space, or another was promoted since.
        """
        self.follows(name, after)
        manifest = self.check(name)
        now = self.champion()
        if not force and rejected(manifest):
            raise RegistryError(
                f"{name} did not pass its examination: {failures(manifest)} (--force insists)"
            )
        if now is not None and now.space == manifest.space:
            dim = self.manifest(now.name).dim
            if dim != manifest.dim:
                raise RegistryError(
                    f"{name} makes vectors of {manifest.dim} values, {now.name} of {dim}: they "
                    f"cannot share space {now.space}"
                )
        return manifest

    def promote(
        self,
        name: str,
        *,
        generation: str,
        why: str = "promoted",
        after: int | None = None,
        force: bool = False,
        back_to: int | None = None,
    ) -> Champion:
        """Make a version champion, after checking its files against their checksums.

        Args:
            after, force: see `admit`.
            back_to: see `Champion`.

        Raises:
            RegistryError: `admit` refuses it, it is of another space than the champion, or another
                process promoted at the same moment.
        """
        now = self.champion()  # before it is admitted: who comes in between takes this number
        manifest = self.admit(name, after=after, force=force)
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
            back_to=back_to,
        )
        self._create(champion)
        return champion

    def earlier(self) -> Champion:
        """The promotion before that of the champion, which a rollback goes back to.

        After a rollback the champion's is the one that was gone back to: what was rolled back from
        is no target, and a second rollback goes further back.

        Raises:
            RegistryError: there was no other version before.
        """
        by_seq = {champion.seq: champion for champion in self.history()}
        serves = at = self._promotion(by_seq, max(by_seq, default=0))
        while at is not None:
            at = self._promotion(by_seq, at.seq - 1)
            if at is not None and serves is not None and at.name != serves.name:
                return at
        raise RegistryError("there is no earlier champion to go back to")

    def _promotion(self, by_seq: Mapping[int, Champion], seq: int) -> Champion | None:
        promotion = by_seq.get(seq)
        back_to = None if promotion is None else promotion.back_to
        return promotion if back_to is None else by_seq.get(back_to)

    def _number(self, name: str) -> int:
        """By the manifest, else by the name: one damaged version must not hide the others."""
        try:
            return self.manifest(name).version
        except RegistryError:
            return int(name.rpartition("-")[2]) if name[-1:].isdigit() else 0

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
        try:
            created(
                self._champions / f"{champion.seq:08d}.json", json.dumps(asdict(champion)).encode()
            )
        except FileExistsError:
            raise RegistryError(
                f"another promotion took number {champion.seq} at the same moment; look again"
            ) from None


def failures(manifest: Manifest) -> str:
    """Why a version's examination did not pass, for a person; empty: passed, or never examined."""
    if not manifest.verdict or manifest.verdict.get("passed", False):
        return ""
    return str(manifest.verdict.get("reason") or "not passed")


def rejected(manifest: Manifest) -> bool:
    """Whether it failed its examination. Where there was too little to judge it by, a person may
    decide; nothing promotes it by itself."""
    return bool(failures(manifest)) and manifest.verdict.get("decision") != TOO_LITTLE


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_version(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "manifest.json").is_file()
