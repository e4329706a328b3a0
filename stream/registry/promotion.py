"""Promotions: flips to another generation, rollbacks, the end of the rollback window.

A flip, like every promotion, is one event of the registry's log: the champion, and with it the
states of both generations. Before it, predictions are handed over
(`braid.stream.registry.handover`). Any process may flip; only the first one succeeds. If it dies
between the two, another process returns the predictions (`return_abandoned`).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from ..errors import RegistryError, StreamError
from ..failpoints import Failpoints
from ..kafka.admin import Admin
from ..kafka.topics import ensure
from ..settings import Settings
from .announcements import Tell, announce, announce_champion
from .generations import GenerationRecord, GenerationRecords
from .handover import Handovers
from .ownership import hand_over, pending_predictions
from .versions import Champion, Registry

log = logging.getLogger(__name__)

ABANDONED_MS = 60_000.0  # a flip's promotion follows its handover in moments


def promote(
    settings: Settings,
    registry: Registry,
    name: str,
    *,
    drop_missing: bool = False,
    after: int | None = None,
    force: bool = False,
    why: str = "promoted",
    tell: Tell = announce,
) -> Champion | GenerationRecord:
    """Make a version champion: at once if its space is served, else when its generation is built.

    Args:
        after, force: see `Registry.admit`.
        tell: announces the champion.

    Raises:
        RegistryError: the version is damaged or failed its judge, or another one is being built.
    """
    now_ms = 1000 * time.time()
    return_abandoned(settings, registry, now_ms=now_ms)
    champion = registry.champion()
    manifest = registry.admit(name, after=after, force=force)
    if champion is None or manifest.space == champion.space:
        generation = settings.generation if champion is None else champion.generation
        promoted = registry.promote(name, generation=generation, why=why, after=after, force=force)
        announce_champion(settings, promoted, registry, tell)
        return promoted
    for entry in GenerationRecords(registry.log).all():
        if entry.state == "grace" and entry.space == manifest.space:
            why = f"{entry.generation} is still fed"
            return flip(
                settings, registry, entry.generation, name, why=why, now_ms=now_ms, after=after
            )
    return begin(settings, registry, name, drop_missing=drop_missing)


def begin(
    settings: Settings, registry: Registry, name: str, *, drop_missing: bool = False
) -> GenerationRecord:
    """Open a generation for a version of a new space; workers and index nodes build it.

    A generation that is already being built for this version continues, as the successor of the
    present champion.

    Raises:
        RegistryError: nothing serves yet, or another generation is being built or opened.
    """
    generation_records = GenerationRecords(registry.log)
    champion = registry.champion()
    if champion is None:
        raise RegistryError("nothing serves yet: a first version is promoted, not built beside")
    for entry in generation_records.all():
        if entry.state == "building" and entry.model == name:
            drop_missing = entry.drop_missing or drop_missing
            return generation_records.change(entry, seq=champion.seq, drop_missing=drop_missing)
        if entry.state == "building":
            raise RegistryError(
                f"{entry.generation} is being built for {entry.model}; "
                f"braid models drop {entry.generation} first, then braid models promote {name}"
            )
    manifest = registry.manifest(name)
    adapter = manifest.compatibility.get("adapter") or {}
    stored = not adapter.get("applied", True) and adapter.get("from") == champion.space
    source = champion.generation if stored else None
    entry = GenerationRecord(
        generation=generation_records.next(serving=champion.generation),
        model=name,
        space=manifest.space,
        state="building",
        source=source,
        drop_missing=drop_missing,
        seq=champion.seq,
        why=f"a new space beside {champion.space}"
        + (f", mapped from {source}" if source is not None else ""),
    )
    ensure(settings, entry.generation, role="trainer")
    generation_records.open(entry)
    announce(settings, f"generation/{entry.generation}", _facts(entry))
    return entry


def superseded_by(registry: Registry, entry: GenerationRecord) -> str | None:
    """Why a ready generation may not take over, or None: another version was promoted since."""
    champion = registry.champion()
    if champion is None or champion.generation == entry.generation:
        return None
    if entry.seq in (None, champion.seq):
        return None
    return (
        f"{entry.generation} was begun when champion number {entry.seq} served, and number "
        f"{champion.seq} ({champion.name}) was promoted since: braid models promote "
        f"{entry.model} to let it take over all the same, or braid models drop "
        f"{entry.generation}"
    )


def flip(
    settings: Settings,
    registry: Registry,
    to: str,
    name: str,
    *,
    why: str,
    now_ms: float,
    after: int | None = None,
    back_to: int | None = None,
) -> Champion:
    """Let another generation serve, with a version of its space; the previous one stays fed.

    Args:
        after: only as the successor of this champion number; None: of the present one.
        back_to: see `Champion`.

    Raises:
        RegistryError: another process was first, or no handover could be made.
    """
    failpoint = Failpoints.from_environment()
    return_abandoned(settings, registry, now_ms=now_ms)
    champion = registry.champion()
    assert champion is not None
    registry.follows(name, after)  # before predictions are handed over
    hand_over(settings, registry, champion.generation, to)
    failpoint("flip-handed-over")
    try:
        # The version was judged when its generation was opened, or has served before.
        flipped = registry.promote(
            name,
            generation=to,
            why=why,
            after=champion.seq,
            force=True,
            back_to=back_to,
            until_ms=int(now_ms + 1000 * settings.refresh.rollback_window_s),
        )
    except RegistryError:
        serves = registry.champion()
        if serves is not None and serves.generation != to:  # the winner keeps the predictions
            hand_over(settings, registry, to, serves.generation)
        raise
    failpoint("flip-promoted")
    announce_champion(settings, flipped, registry)
    return flipped


def return_abandoned(settings: Settings, registry: Registry, *, now_ms: float) -> None:
    """Return predictions that were handed over for a flip that never happened.

    Raises:
        RegistryError: the predictions could not be returned.
    """
    newest, champion = Handovers(registry.log).confirmed()[-1:], registry.champion()
    if champion is None or not newest or newest[0].after == champion.generation:
        return
    if now_ms - (newest[0].decided_ms or 0) > ABANDONED_MS:
        hand_over(settings, registry, newest[0].after, champion.generation)


def end_grace(settings: Settings, registry: Registry, *, now_ms: float) -> list[str]:
    """Drop the generations whose rollback window is over, with topic and group.

    A generation with pending predictions is fed until they are published.

    Returns:
        Their names.
    """
    generation_records = GenerationRecords(registry.log)
    champion = registry.champion()
    dropped = []
    for entry in generation_records.all():
        over = entry.state == "grace" and (entry.until_ms or 0) <= now_ms
        if over and champion is not None and entry.generation != champion.generation:
            if (left := pending_predictions(settings, registry, entry.generation)) is not None:
                log.info("the grace of %s is over, it is fed on: %s", entry.generation, left)
                continue
            _drop(settings, registry, entry, why="its grace was over")
            dropped.append(entry.generation)
    return dropped


def drop(
    settings: Settings,
    registry: Registry,
    generation: str,
    *,
    why: str,
    force: bool = False,
) -> None:
    """Drop a generation, and delete its topic and group if they are not in use.

    Args:
        force: even if its pending predictions are lost.

    Raises:
        RegistryError: there is none, it serves, or has pending predictions.
    """
    champion = registry.champion()
    if champion is not None and champion.generation == generation:
        raise RegistryError(f"{generation} serves: promote or roll back first")
    entry = GenerationRecords(registry.log).get(generation)
    if entry is None:
        raise RegistryError(f"no generation {generation!r}: braid models generations")
    if entry.state != "dropped":
        left = pending_predictions(settings, registry, entry.generation)
        if left is not None and not force:
            raise RegistryError(
                f"{entry.generation} is not dropped: {left}; its workers are on it, so try again "
                "in a moment (--force leaves such records without a prediction)"
            )
    _drop(settings, registry, entry, why=why)


def _drop(settings: Settings, registry: Registry, entry: GenerationRecord, *, why: str) -> None:
    gone = GenerationRecords(registry.log).change(entry, state="dropped", until_ms=None, why=why)
    announce(settings, f"generation/{entry.generation}", _facts(gone))
    delete_resources(settings, gone)


def delete_resources(settings: Settings, gone: GenerationRecord) -> bool:
    """Delete the group and the topic of a dropped generation; returns whether both are deleted.

    While its workers are in the group this fails, and a later call succeeds.
    """
    admin, topic = Admin(settings), settings.vectors_topic(gone.generation)
    try:
        if topic in admin.partition_counts():
            admin.delete_group(settings.group(gone.generation))
            admin.delete([topic])
    except StreamError as error:
        log.debug("%s is not deleted yet: %s", gone.generation, error)
        return False
    return True


def rollback(settings: Settings, registry: Registry, *, now_ms: float | None = None) -> Champion:
    """Make the previous champion champion again, at once even across a flip.

    A second rollback goes further back (`Registry.earlier`).

    Raises:
        RegistryError: there was none, or its generation was dropped.
    """
    earlier = registry.earlier()
    champion = registry.champion()
    assert champion is not None
    why = f"rolled back from {champion.name}"
    if earlier.generation == champion.generation:
        back = registry.promote(
            earlier.name, generation=earlier.generation, why=why, force=True, back_to=earlier.seq
        )
        announce_champion(settings, back, registry)
        return back
    entry = GenerationRecords(registry.log).get(earlier.generation)
    if entry is None or entry.state == "dropped":
        raise RegistryError(
            f"{earlier.name} served generation {earlier.generation}, which was dropped when its "
            f"grace was over: promote {earlier.name} to build it anew"
        )
    now_ms = 1000 * time.time() if now_ms is None else now_ms
    return flip(
        settings,
        registry,
        earlier.generation,
        earlier.name,
        why=why,
        now_ms=now_ms,
        back_to=earlier.seq,
    )


def _facts(entry: GenerationRecord) -> dict[str, Any]:
    return {
        "generation": entry.generation,
        "name": entry.model,
        "space": entry.space,
        "status": entry.state,
    }
