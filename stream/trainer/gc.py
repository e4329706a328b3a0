"""`braid models gc`: which versions and windows are removed, and why the others are kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ..registry.canaries import Canaries
from ..registry.generations import GenerationRecords
from ..registry.versions import Registry
from .runs import Runs

CHAMPIONS = 10
"""The number of last promotions whose versions are kept for rollbacks."""


@dataclass(frozen=True, kw_only=True)
class RemovalPlan:
    """A plan: versions and windows to remove with their bytes, and those kept with the reason."""

    kept: dict[str, str] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    bytes: int = 0


def plan(
    registry: Registry,
    runs: Runs,
    *,
    newest: int,
    champions: int = CHAMPIONS,
    needed: Collection[str] = (),
) -> RemovalPlan:
    """Plan what to remove, without removing it.

    Args:
        newest: the number of newest versions that are kept.
        champions: the number of last promotions whose versions are kept; so is the last
            champion of every generation that is not dropped.
        needed: other versions that are kept; so is the challenger of a running canary.
    """
    kept: dict[str, str] = {}
    names = registry.names()
    history = registry.history()
    for name in names[len(names) - newest :] if newest else []:
        kept[name] = f"one of the newest {newest}"
    for name in needed:
        kept[name] = "in use"
    generation_records = GenerationRecords(registry.log).all()
    dropped = {entry.generation for entry in generation_records if entry.state == "dropped"}
    for one in {one.generation: one for one in history if one.generation not in dropped}.values():
        kept[one.name] = f"the last champion of generation {one.generation}"
    for one in history[-champions:]:
        kept[one.name] = f"champion number {one.seq}"
    for run in runs.all():
        if run.state == "open":
            for name in filter(None, (run.parent, run.champion, run.name)):
                kept.setdefault(name, f"run {run.id} needs it")
    if history:
        kept[history[-1].name] = "the champion"
        if (canary := Canaries(registry.log).running(history[-1])) is not None:
            kept[canary.model] = f"canary {canary.number} runs with it"
    gone = [name for name in names if name not in kept]
    windows = [
        run.id
        for run in runs.all()
        if run.state != "open" and run.name not in kept and runs.folder(run.id).is_dir()
    ]
    used = {run.window_of for run in runs.all() if run.id not in windows}
    windows = [id_ for id_ in windows if id_ not in used]
    paths = [*(registry.path(name) for name in gone), *(runs.folder(id_) for id_ in windows)]
    return RemovalPlan(
        kept={name: kept[name] for name in names if name in kept},
        versions=gone,
        windows=windows,
        bytes=sum(map(_size, paths)),
    )


def remove(registry: Registry, runs: Runs, garbage: RemovalPlan) -> None:
    """Remove what `plan` lists, but for a version that has become champion since."""
    now = registry.champion()
    for name in garbage.versions:
        if now is None or now.name != name:
            registry.remove(name)
    for id_ in garbage.windows:
        runs.remove(id_)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
