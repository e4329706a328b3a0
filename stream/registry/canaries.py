"""Canaries in the registry: a challenger predicts a share of the records before a promotion.

    models/canary/00000001.json   the challenger, its share of the traffic, and its state

At most one canary runs, the last: a new one takes the next number by an exclusive create. It
belongs to the champion that it began under and ends with the next promotion, which the first
process to notice writes down. All vectors stay the champion's, so the challenger may have another
space.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from braid.index.files import created, replaced

from ..errors import RegistryError
from .versions import Champion, Registry

FOLDER = "canary"
KEY = "canary"
"""Its key on `models`."""
STATES = ("running", "stopped", "promoted", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """One challenger on a share of the live traffic."""

    number: int
    model: str  # the challenger
    champion: str  # the version that it is compared with
    seq: int  # the champion's number at the beginning
    share: float  # of the records, in (0, 1]; of those in `partitions`, if there are any
    partitions: tuple[int, ...] = ()  # of `records`; empty: all
    since_ms: int
    state: str = "running"
    until_ms: int | None = None
    why: str = ""  # the reason for the state, for display
    comparison: Mapping[str, Any] | None = None  # `canary_comparison.Comparison`, as JSON

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RegistryError(f"share must be over 0 and at most 1, is {self.share:g}")
        if self.state not in STATES:
            raise RegistryError(f"state {self.state!r:.40}, not one of {STATES}")

    def facts(self) -> dict[str, Any]:
        """The facts announced on `models`."""
        facts = asdict(self) | {"name": self.model, "status": self.state}
        return {key: facts[key] for key in ("number", "name", "status", "share", "seq")}


class Canaries:
    """The canaries below a registry's folder.

    Args:
        wall: seconds since 1970.
    """

    def __init__(self, root: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._folder = root / FOLDER
        self._wall = wall

    def all(self) -> list[Canary]:
        """Oldest first. Raises RegistryError for an invalid file."""
        return [self._read(path) for path in self._paths()]

    def last(self) -> Canary | None:
        paths = self._paths()
        return self._read(paths[-1]) if paths else None

    def running(self, champion: Champion | None) -> Canary | None:
        """The canary that runs beside this champion, or None."""
        last = self.last()
        if last is None or champion is None or (last.state, last.seq) != ("running", champion.seq):
            return None
        return last

    def reconcile(self, champion: Champion | None) -> Canary | None:
        """The last canary; ends it if another version was promoted since it began."""
        last = self.last()
        if last is None or last.state != "running" or champion is None or last.seq == champion.seq:
            return last
        if champion.name == last.model:
            return self.end(last, "promoted", why=f"champion number {champion.seq}")
        why = f"{champion.name} became champion number {champion.seq} meanwhile"
        return self.end(last, "stopped", why=why)

    def begin(
        self,
        registry: Registry,
        name: str,
        *,
        share: float,
        partitions: Collection[int] = (),
        force: bool = False,
    ) -> Canary:
        """Begin a canary of a version beside the champion; `force`: if its examination failed.

        Raises:
            RegistryError: there is no champion, the version may not serve (`Registry.admit`) or
                is the champion, or another canary runs.
        """
        champion = registry.champion()
        if champion is None:
            raise RegistryError("nothing serves yet: a first version is promoted, not tried out")
        if champion.name == name:
            raise RegistryError(f"{name} is the champion: there is nothing to compare it with")
        registry.admit(name, force=force)
        before = self.reconcile(champion)
        if before is not None and before.state == "running":
            raise RegistryError(
                f"canary {before.number} runs with {before.model}: braid models canary --stop first"
            )
        canary = Canary(
            number=1 if before is None else before.number + 1,
            model=name,
            champion=champion.name,
            seq=champion.seq,
            share=share,
            partitions=tuple(sorted(set(partitions))),
            since_ms=int(self._wall() * 1000),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            created(self._path(canary.number), json.dumps(asdict(canary)).encode())
        except FileExistsError:
            raise RegistryError(
                f"another process began canary {canary.number} at the same moment; look again"
            ) from None
        return canary

    def end(
        self, canary: Canary, state: str, *, why: str, comparison: Mapping[str, Any] | None = None
    ) -> Canary:
        """End a canary, or replace how it ended."""
        ended = replace(canary, state=state, why=why, until_ms=int(self._wall() * 1000))
        return self.keep(ended, comparison or canary.comparison)

    def keep(self, canary: Canary, comparison: Mapping[str, Any] | None) -> Canary:
        """Write a canary with its comparison."""
        kept = replace(canary, comparison=comparison)
        replaced(self._path(kept.number), json.dumps(asdict(kept)).encode())
        return kept

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"{8 * '[0-9]'}.json"))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"

    def _read(self, path: Path) -> Canary:
        try:
            plain = json.loads(path.read_text())
            return Canary(**{**plain, "partitions": tuple(plain["partitions"])})
        except (OSError, ValueError, TypeError, LookupError, RegistryError) as error:
            raise RegistryError(f"{path} is no canary: {error}") from error
