"""Canaries in the registry: a challenger predicts a share of the records before a promotion.

At most one canary runs, the last. It belongs to the champion that it began under and ends with the
next promotion. All vectors stay the champion's, so the challenger may have another space.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

from ..errors import RegistryError
from .log import EventLog
from .state import Canary as Canary
from .state import Champion, Event, State
from .versions import Registry

KEY = "canary"
"""Its key on `models`."""


class Canaries:
    """The canaries in a registry's log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def all(self) -> list[Canary]:
        """Oldest first."""
        return list(self._log.state().canaries)

    def last(self) -> Canary | None:
        canaries = self._log.state().canaries
        return canaries[-1] if canaries else None

    def running(self, champion: Champion | None) -> Canary | None:
        """The canary that runs beside this champion, or None."""
        canary = self._log.state().canary
        same = canary is not None and champion is not None and canary.seq == champion.seq
        return canary if same else None

    def begin(
        self,
        registry: Registry,
        name: str,
        *,
        share: float,
        partitions: Collection[int] = (),
        force: bool = False,
    ) -> Canary:
        """Begin a canary of a version beside the champion, also of one of which there is not enough
        evidence; `force`: even if it failed its examination.

        Raises:
            RegistryError: there is no champion, the version may not serve (`Registry.admit`) or
                is the champion, or another canary runs.
        """
        champion = registry.champion()
        if champion is None:
            raise RegistryError("nothing serves yet: a first version is promoted, not tried out")
        if champion.name == name:
            raise RegistryError(f"{name} is the champion: there is nothing to compare it with")
        registry.admit(name, force=force, unproven=True)
        began = {
            "model": name,
            "champion": champion.name,
            "seq": champion.seq,
            "share": share,
            "partitions": sorted(set(partitions)),
            "since_ms": self._log.now_ms(),
        }

        def begun(state: State) -> Event:
            if (other := state.canary) is not None:
                raise RegistryError(
                    f"canary {other.number} runs with {other.model}: "
                    "braid models canary --stop first"
                )
            if state.seq != champion.seq:
                raise RegistryError(f"champion number {state.seq} was promoted at this moment")
            return self._log.event("canary", number=len(state.canaries) + 1, **began)

        return self._log.append(begun).canaries[-1]

    def end(
        self, canary: Canary, state: str, *, why: str, comparison: Mapping[str, Any] | None = None
    ) -> Canary:
        """End a canary, or replace how it ended."""
        ended = replace(canary, state=state, why=why, until_ms=self._log.now_ms())
        return self.keep(ended, comparison or canary.comparison)

    def keep(self, canary: Canary, comparison: Mapping[str, Any] | None) -> Canary:
        """Write a canary with its comparison."""
        kept = replace(canary, comparison=comparison)
        self._log.append(lambda _: self._log.event("canary", **asdict(kept)))
        return kept
