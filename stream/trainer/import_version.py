"""Registers pretrained models as versions without training, and promotes one if nothing serves.

The `models` topic is news only: without a broker the registry has the version all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from braid.encoders.bridging import bridge
from braid.encoders.importing import import_model
from braid.encoders.manifest import Manifest

from ..errors import Unreachable
from ..registry.announcements import Tell, announce
from ..registry.promotion import promote as promote_version
from ..registry.versions import Champion, Registry, registry_of, status_of
from ..settings import Settings
from .job import Job, Outcome, announce_version, prove
from .lock import TrainerLock
from .options import Options

log = logging.getLogger(__name__)


def import_version(
    settings: Settings,
    source: str,
    *,
    promote: bool | None = None,
    tell: Tell = announce,
    **options: Any,
) -> Outcome:
    """The version that was made of `source`.

    Args:
        promote: make it champion; None does so only while there is none.
        options: as `import_model` takes them.

    Raises:
        CheckpointError: nothing at `source`, or a model that cannot be imported.
        LockError: a trainer runs.
        RegistryError: it cannot serve; it is kept.
    """

    def make(out: Path, name: str, version: int) -> Manifest:
        return import_model(source, out, name=name, version=version, **options)

    return registered(settings, f"import {source}", make, promote, tell)


def bridge_versions(
    settings: Settings,
    first: str,
    second: str,
    captions: Sequence[str],
    *,
    force: bool = False,
    promote: bool | None = None,
    tell: Tell = announce,
) -> Outcome:
    """The version that joins two imported ones of the registry.

    Args:
        first, second: names or numbers; the space is the first one's.
        captions, force: as `braid.encoders.bridging.bridge` takes them, whose errors it raises.
        promote, tell: as for `import_version`.

    Raises:
        LockError: a trainer runs.
        RegistryError: there is no such version, or the new one cannot serve; it is kept.
    """
    registry = registry_of(settings)
    names = [registry.resolve(one) for one in (first, second)]
    here, other = (registry.folder(one) for one in names)

    def make(out: Path, name: str, version: int) -> Manifest:
        return bridge(
            here,
            other,
            captions,
            out,
            name=name,
            version=version,
            force=force,
            device=settings.model.device,
        )

    return registered(settings, f"bridge {' '.join(names)}", make, promote, tell)


def registered(
    settings: Settings,
    run: str,
    make: Callable[[Path, str, int], Manifest],
    promote: bool | None,
    tell: Tell,
    *,
    why: str = "imported",
) -> Outcome:
    """The version that `make` writes to the folder, under the name and the number that it gets.

    Args:
        run: what makes it, for the log.
        promote, tell: as for `import_version`.
        why: the reason of its promotion, for display.

    Raises:
        LockError: a trainer runs.
        RegistryError: it cannot serve; it is kept.
    """
    registry = registry_of(settings)

    told = forgiving(tell)
    with TrainerLock(settings):  # whose sweep would remove what is written here
        champion = registry.champion()
        name, version = registry.claim(run)
        manifest = make(registry.path(name), name, version)
        registry.publish(name)
    job = Job(settings=settings, options=Options(promote=promote), tell=told)
    announce_version(job, manifest, status_of(manifest, serves=False))
    outcome = Outcome(manifest=manifest, run="", serves=False, building="")
    if promote or (promote is None and champion is None):
        return promoted(settings, registry, outcome, why=why, tell=told)
    return outcome


def promoted(
    settings: Settings, registry: Registry, outcome: Outcome, *, why: str, tell: Tell
) -> Outcome:
    """The outcome after its version was promoted.

    Raises:
        RegistryError: it cannot serve.
    """
    name = outcome.manifest.name
    prove(registry, name, settings.model.device)
    done = promote_version(settings, registry, name, why=why, tell=tell)
    if isinstance(done, Champion):
        return replace(outcome, serves=True)
    return replace(outcome, building=done.generation)


def forgiving(tell: Tell) -> Tell:
    """`tell`, which logs that no broker answers in place of raising it."""

    def told(settings: Settings, key: str, value: Mapping[str, Any]) -> None:
        try:
            tell(settings, key, value)
        except Unreachable as error:
            log.warning("not announced, processes find it in the registry: %s", error)

    return told
