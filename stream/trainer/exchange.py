"""Pushes versions of the registry to a place, and registers those that are pulled from one.

A pulled version keeps its space, weights and verdict, and gets the registry's next name. The
records of its frozen queries are pushed only where asked: they are as they came.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from braid.encoders.errors import CheckpointError
from braid.encoders.manifest import FILE_NAME, Manifest, read_manifest, verify
from braid.encoders.model.frozen_queries import QUERIES
from braid.index.files import replaced, sync_folder

from ..errors import RegistryError
from ..registry import hub_card
from ..registry.announcements import Tell, announce
from ..registry.generations import GenerationRecords
from ..registry.places import Folder, Place, place_of
from ..registry.version_files import inner_files
from ..registry.versions import Registry, registry_of
from ..settings import Settings
from .import_version import forgiving, promoted, registered
from .job import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A version at a place.

    Attributes:
        place: its address, as `pull_version` takes it.
        files: their names there.
    """

    manifest: Manifest
    place: str
    files: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A version that was at a place.

    Attributes:
        known: the registry had it before; nothing was downloaded but its manifest.
    """

    outcome: Outcome
    known: bool


def push_version(
    settings: Settings,
    version: str,
    target: str,
    *,
    records: bool = False,
    public: bool = False,
    licence: str | None = None,
) -> Pushed:
    """Write a version's files and a model card to a place.

    Args:
        version: a name or a number.
        target: as `braid.stream.registry.places` describes them.
        records: with the records of its frozen queries.
        public, licence: as for `place_of` and `hub_card`.

    Raises:
        ConfigError: no such place.
        RegistryError: there is no such version, it is damaged, or the place refuses it.
    """
    registry = registry_of(settings)
    name = registry.resolve(version)
    place = place_of(target, settings.model.registry_options, public=public)
    if isinstance(place, Folder) and place.is_within(registry.root):
        raise RegistryError(f"{place} is in the registry: push to a folder outside of it")
    manifest, folder = registry.check(name), registry.folder(name)
    if not records:
        kept = {file: sha256 for file, sha256 in manifest.files.items() if file != QUERIES}
        manifest = replace(manifest, files=kept)
    with TemporaryDirectory(prefix="braid-push-") as made:
        card, described = Path(made) / hub_card.NAME, Path(made) / FILE_NAME
        text = hub_card.hub_card(manifest, place=str(place), licence=licence)
        card.write_text(text, encoding="utf-8")
        described.write_text(manifest.to_json(), encoding="utf-8")
        files = {file: folder / file for file in inner_files(manifest)}
        files |= {hub_card.NAME: card, FILE_NAME: described}
        place.put(files, f"braid: {name}, space {manifest.space}")
    return Pushed(manifest=manifest, place=str(place), files=sorted(files))


def pull_version(
    settings: Settings, source: str, *, promote: bool | None = None, tell: Tell = announce
) -> Pulled:
    """The version at a place, in the registry: a new one, unless it is there already.

    Args:
        source: as `braid.stream.registry.places` describes them.
        promote: make it champion; None does so only while there is none.

    Raises:
        ConfigError: no such place.
        LockError: a trainer runs.
        RegistryError: no version is there, it is damaged, or it cannot serve.
    """
    registry = registry_of(settings)
    place = place_of(source, settings.model.registry_options, pull=True)
    with TemporaryDirectory(prefix="braid-pull-") as made:
        there = _manifest(place, Path(made))
    for name in registry.names():
        if _same(registry, name, there):
            outcome = _outcome(registry, name)
            if promote and not outcome.serves:
                outcome = promoted(settings, registry, outcome, why="pulled", tell=forgiving(tell))
            return Pulled(outcome=outcome, known=True)

    def make(out: Path, name: str, version: int) -> Manifest:
        return _fetched(place, there, out, name=name, version=version)

    outcome = registered(settings, f"pull {place}", make, promote, tell, why="pulled")
    return Pulled(outcome=outcome, known=False)


def _manifest(place: Place, folder: Path) -> Manifest:
    place.fetch(FILE_NAME, folder / FILE_NAME)
    try:
        manifest = read_manifest(folder)
        inner_files(manifest)
    except (CheckpointError, RegistryError) as error:
        raise RegistryError(f"{place} has no version that this braid reads: {error}") from error
    return manifest


def _fetched(place: Place, there: Manifest, out: Path, *, name: str, version: int) -> Manifest:
    """The version folder `out`, whole and checked against its manifest, under its new name."""
    draft = out.with_name(f".{name}.{uuid.uuid4().hex[:8]}.tmp")  # `Registry.sweep` knows these
    draft.mkdir(parents=True)
    try:
        for file in inner_files(there):
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            place.fetch(file, draft / file)
        (draft / FILE_NAME).write_text(there.to_json(), encoding="utf-8")
        try:
            verify(draft)
        except CheckpointError as error:
            why = str(error).removeprefix(f"{draft}: ")
            raise RegistryError(f"the version at {place} is damaged: {why}") from error
        origin: dict[str, Any] = {"place": str(place), "name": there.name, "parent": there.parent}
        manifest = replace(there, name=name, version=version, parent=None, pulled=origin)
        replaced(draft / FILE_NAME, manifest.to_json().encode())
        draft.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("%s is %s of %s", name, there.name, place)
    return manifest


def _same(registry: Registry, name: str, there: Manifest) -> bool:
    """Whether a version of the registry has the same space, configuration and files."""
    try:
        here = registry.manifest(name)
    except RegistryError:  # damaged: `braid models list` shows it
        return False
    return _identity(here) == _identity(there)


def _identity(manifest: Manifest) -> tuple[object, ...]:
    files = {name: sha256 for name, sha256 in manifest.files.items() if name != QUERIES}
    return manifest.space, manifest.config_sha256, files


def _outcome(registry: Registry, name: str) -> Outcome:
    champion = registry.champion()
    building = next(
        (
            entry.generation
            for entry in GenerationRecords(registry.log).all()
            if entry.model == name and entry.state == "building"
        ),
        "",
    )
    serves = champion is not None and champion.name == name
    return Outcome(manifest=registry.manifest(name), run="", serves=serves, building=building)
