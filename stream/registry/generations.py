"""Generation records in the registry: building, serving, in the rollback window, dropped.

The champion decides which generation serves: its event in the log makes its generation `serving`
and the one before `grace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from ..errors import RegistryError
from .log import EventLog
from .state import Event, State
from .state import GenerationRecord as GenerationRecord


class GenerationRecords:
    """The generations in a registry's log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def all(self) -> list[GenerationRecord]:
        """Oldest first."""
        records = self._log.state().generations
        return [records[name] for name in sorted(records)]

    def get(self, generation: str) -> GenerationRecord | None:
        return self._log.state().generations.get(generation)

    def open(self, entry: GenerationRecord) -> None:
        """Open a generation.

        Raises RegistryError: another process opened it at the same moment, or another is built.
        """

        def opened(state: State) -> Event:
            for other in state.generations.values():
                if other.generation == entry.generation or other.state == "building":
                    raise RegistryError(
                        f"another process opened {other.generation} at the same moment; look again"
                    )
            return self._event(entry)

        self._log.append(opened)

    def change(self, before: GenerationRecord, **fields: object) -> GenerationRecord:
        """Change fields of a generation's record; returns the new one.

        Raises RegistryError: it is not as `before` any more.
        """
        after = replace(before, **fields)  # type: ignore[arg-type]

        def changed(state: State) -> Event | None:
            now = state.generations.get(before.generation)
            if now == after:  # another process made the same change
                return None
            if now != before:
                raise RegistryError(
                    f"another process changed {before.generation} at the same moment"
                    f"{f' ({now.state}: {now.why})' if now else ''}; look again"
                )
            return self._event(after)

        self._log.append(changed)
        return after

    def put(self, entry: GenerationRecord) -> None:
        """Replace the record of a generation, whatever it is."""
        self._log.append(lambda _: self._event(entry))

    def next(self, *, serving: str) -> str:
        """An unused generation name."""
        taken = [entry.generation for entry in self.all()]
        return f"g{1 + max(int(name[1:]) for name in [*taken, serving]):04d}"

    def fed(self) -> Mapping[str, str]:
        """Generation -> the model that feeds it, for all that are fed.

        These are the champion's generation, those that are built, and those in their rollback
        window, with the last champion of the generation.
        """
        state = self._log.state()
        if state.champion is None:
            return {}
        models = {state.champion.generation: state.champion.name}
        last = {promotion.generation: promotion.name for promotion in state.champions}
        for name, entry in sorted(state.generations.items()):
            if name not in models and entry.state != "dropped":
                models[name] = last.get(name, entry.model)
        return models

    def _event(self, entry: GenerationRecord) -> Event:
        return self._log.event("generation", **asdict(entry))
