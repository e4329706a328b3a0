"""Model versions: immutable folders, and the champion, of which the log has every change.

    models/versions/braid-0001/     model.safetensors, manifest.json
    models/versions/braid-0001.engines/  its encoders as engines take them; made when it is loaded
    models/log/00000001.json        the events: champions, generations, ... (`log`)

The champion's number is the fencing token of promotions: it is decided on the log, so of two that
promote at once one fails. A rollback is a new number that names an older version. The `models`
topic carries the same facts to every process; the log is what they fall back on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import Manifest, verify

from ..errors import RegistryError
from ..settings import Settings
from .log import EventLog
from .object_store import ObjectStore
from .state import Champion as Champion
from .state import Event, State
from .store import FolderStore
from .version_files import CachedVersions, LocalVersions, VersionFiles, is_version

TOO_LITTLE = "not enough evidence"
"""The judge's decision where its records do not show enough, and the status of such a version."""
REFUSED = "refused"


class Registry:
    """The versions and the log of one registry.

    Args:
        root: the registry's folder, or the cache of one in an object store; made when the first
            version is written.
        base: what versions are called: `braid` makes braid-0001, braid-0002, ...
        wall: seconds since 1970.
        store: the object store; None: the registry is the folder.
    """

    def __init__(
        self,
        root: Path,
        *,
        base: str = "braid",
        wall: Callable[[], float] = time.time,
        store: ObjectStore | None = None,
    ) -> None:
        self.root = root
        self.log = EventLog(FolderStore(root) if store is None else store, wall=wall)
        self._folders, self._base, self._store = root / "versions", base, store
        self._versions: VersionFiles = (
            LocalVersions(self._folders)
            if store is None
            else CachedVersions(self._folders, self.log, store)
        )

    @property
    def uri(self) -> str:
        """Where the registry is: file:///..., s3://..., gs://... or az://..."""
        return self.root.absolute().as_uri() if self._store is None else str(self._store)

    @property
    def place(self) -> str:
        """Where the registry is, as a person names it: a folder, or the address of the store."""
        return str(self.log.store)

    def uri_of(self, name: str) -> str:
        """Where a version is."""
        return f"{self.uri}/versions/{quote(name)}"

    def path(self, name: str) -> Path:
        """The folder that a version is written to."""
        return self._folders / name

    def folder(self, name: str) -> Path:
        """A version's folder, to read; downloaded where the registry is in an object store.

        Raises:
            RegistryError: the object store has no such version, or it is damaged there.
            RegistryAway: it is not in the cache, and the object store does not answer.
        """
        return self._versions.folder(name)

    def written(self, name: str) -> bool:
        """Whether a version was written here to its end, published or not."""
        return is_version(self.path(name))

    def publish(self, name: str) -> None:
        """Let every process see a version that was written to `path`. Idempotent.

        Raises:
            RegistryError: it is damaged, or was removed.
            RegistryAway: the object store was away for too long; another call goes on.
        """
        self._versions.publish(name)

    def page(self, name: str) -> Path:
        """Where a version's plots are: beside its folder, which is never written again."""
        return self._folders / f"{name}.html"

    def names(self) -> list[str]:
        """All finished versions, oldest first."""
        return sorted(self._versions.names(), key=lambda name: (self._number(name), name))

    def next(self) -> tuple[str, int]:
        """Name and number for a new version, one above every version there is or will be."""
        return self._next(self.log.state())

    def _next(self, state: State) -> tuple[str, int]:
        number = 1 + max([*state.claims, *map(self._number, self.names())], default=0)
        return f"{self._base}-{number:04d}", number

    def claim(self, run: str) -> tuple[str, int]:
        """`next`, for `run` alone: no number is given twice, not even that of a removed version."""
        state = self.log.append(
            lambda state: self.log.event("claim", number=self._next(state)[1], run=run)
        )
        number = max(state.claims)
        return f"{self._base}-{number:04d}", number

    def sweep(self, living: Collection[str]) -> None:
        """Remove what killed trainers left of versions, except of those that `living` write."""
        self._versions.sweep(living)
        self.log.store.sweep()

    def remove(self, name: str) -> None:
        """Remove a version: it is out of sight at once, and gone when this returns."""
        self._versions.remove(name)

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
        return self._versions.manifest(name)

    def champion(self) -> Champion | None:
        """Who serves now; None before the first promotion."""
        return self.log.state().champion

    def history(self) -> list[Champion]:
        """Every champion that ever was, oldest first."""
        return list(self.log.state().champions)

    def check(self, name: str) -> Manifest:
        """A version's manifest, if it may serve.

        Raises:
            RegistryError: it is missing or damaged.
        """
        manifest = self.manifest(name)
        try:
            verify(self.folder(name))
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

    def admit(
        self,
        name: str,
        *,
        after: int | None = None,
        force: bool = False,
        unproven: bool = False,
    ) -> Manifest:
        """A version's manifest, if it may become champion now, in its own space or another.

        Args:
            after: only as the successor of this champion number, the one that the caller saw when
                it began; None: of whoever serves now.
            force: although it did not pass its examination.
            unproven: although there was not enough evidence; for a canary, which collects some.

        Raises:
            RegistryError: missing, damaged, not passed, of another dimension in the champion's
                space, or another was promoted since.
        """
        self.follows(name, after)
        manifest = self.check(name)
        now = self.champion()
        if not force and failures(manifest) and not (unproven and not refused(manifest)):
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
        until_ms: int | None = None,
    ) -> Champion:
        """Make a version champion, after checking its files against their checksums.

        Args:
            after, force: see `admit`.
            back_to: see `Champion`.
            until_ms: when the rollback window of the generation ends that serves until now, if
                another one takes over; in milliseconds since 1970.

        Raises:
            RegistryError: `admit` refuses it, it is of another space than the champion, its
                generation was dropped, or another process promoted at the same moment.
        """
        now = self.champion()  # before it is admitted: who comes in between takes this number
        seq = now.seq if now else 0
        manifest = self.admit(name, after=after, force=force)
        if now is not None and now.space != manifest.space and now.generation == generation:
            raise RegistryError(
                f"{name} makes vectors of space {manifest.space}, {generation} holds {now.space} "
                f"(from {now.name}): serving it would answer queries of one space with vectors "
                "of another. A new space needs a new generation"
            )

        def next_champion(state: State) -> Event:
            if state.seq != seq:
                raise RegistryError(
                    f"another process promoted as number {state.seq} at the same moment; look again"
                )
            record = state.generations.get(generation)
            if record is not None and record.state == "dropped":
                raise RegistryError(f"{generation} was dropped: {record.why}")
            return self.log.event(
                "champion",
                seq=seq + 1,
                name=name,
                version=manifest.version,
                space=manifest.space,
                generation=generation,
                why=why,
                back_to=back_to,
                until_ms=until_ms,
            )

        return self.log.append(next_champion).champions[seq]

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
        return self._versions.number(name)


def registry_of(settings: Settings) -> Registry:
    """The registry below the settings' home, or where `model.registry` says.

    Raises ConfigError: the object store's address or options are invalid.
    """
    base, place = settings.model.name, settings.model.registry
    if place is None:
        return Registry(settings.models_dir, base=base)
    store = object_store_of(settings)
    if store is None:
        return Registry(Path(unquote(urlsplit(place).path)), base=base)
    cache = settings.home / "registry" / hashlib.sha256(str(store).encode()).hexdigest()[:12]
    return Registry(cache, base=base, store=store)


def object_store_of(settings: Settings) -> ObjectStore | None:
    """The object store of the registry; None: it is a folder. Raises ConfigError."""
    place = settings.model.registry
    if place is None or urlsplit(place).scheme == "file":
        return None
    return ObjectStore(place, settings.model.registry_options)


def serving_generation(settings: Settings, champion: Champion | None) -> str:
    """The generation whose workers publish: the champion's, or the one that the settings name."""
    if champion is None or settings.model.spec is not None:
        return settings.generation
    return champion.generation


def failures(manifest: Manifest) -> str:
    """Why a version's examination did not pass, for a person; empty: passed, or never examined."""
    if not manifest.verdict or manifest.verdict.get("passed", False):
        return ""
    return str(manifest.verdict.get("reason") or "not passed")


def refused(manifest: Manifest) -> bool:
    """Whether it failed its examination, other than for want of evidence."""
    return bool(failures(manifest)) and manifest.verdict.get("decision") != TOO_LITTLE


def status_of(manifest: Manifest, *, serves: bool, building: str = "") -> str:
    """The status of a version, everywhere: champion, building, refused, not enough evidence, or
    candidate, which is one that may be promoted.

    Args:
        serves: it is the champion, whatever its examination said.
        building: the generation that is built for it.
    """
    if serves:
        return "champion"
    if building:
        return "building"
    if refused(manifest):
        return REFUSED
    return TOO_LITTLE if failures(manifest) else "candidate"


def status_line(manifest: Manifest, *, serves: bool, building: str = "") -> str:
    """The status with what it means, for a person."""
    status, why = status_of(manifest, serves=serves, building=building), failures(manifest)
    if status == "building":
        return f"{status}: serves when {building} is built: braid models generations"
    if status == "candidate":
        return f"{status}, waits: braid models promote {manifest.version}"
    if status == TOO_LITTLE:
        number = manifest.version
        ways = f"braid models canary {number}, or braid models promote {number} --force"
        return f"{status}: {why.removeprefix(f'{status}: ')}; {ways}"
    return f"{status}: {why}" if status == REFUSED else status
